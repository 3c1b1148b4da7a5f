"""Who may talk to the server at all: host names and web pages.

Laws of this file:
- A request must name a host that is ours. Otherwise a web page could point its own name at our
  address and read everything (DNS rebinding, CVE-2024-28224 in Ollama).
- A request with an Origin comes from a web page, and only our own pages, and those that are named
  in the configuration, may change or run anything.
- One object decides for every listener and every route, the hot path included.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from modelyard.core.errors import Forbidden
from modelyard.http.cors import Cors

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
WILDCARDS = frozenset({"0.0.0.0", "::", ""})


class Door:
    """Decides by the Host and Origin headers. Answers are remembered, so a check is a lookup."""

    def __init__(
        self, bound_host: str, allowed_hosts: Iterable[str], origins: Iterable[str] = ()
    ) -> None:
        """`origins` are those of other web pages that may use the server."""
        self.cors = Cors(origins)
        ours = {host.casefold() for host in allowed_hosts} | LOOPBACK
        self._ours = ours | ({bound_host.casefold()} - WILDCARDS)
        self._any = "*" in ours
        self._known_hosts: dict[bytes, bool] = {}

    def check(self, host: bytes | None, origin: bytes | None) -> None:
        """Raises Forbidden for a request that may not enter."""
        if host is None or not self._is_ours(host):
            shown = (host or b"").decode("latin-1")[:200]
            raise Forbidden(
                f"this server is not known as {shown!r}",
                hint="add the name to server.allowed_hosts",
            )
        if origin is None or self._origin_is_ours(origin) or self.cors.allows(origin):
            return
        shown = origin.decode("latin-1")[:200]
        raise Forbidden(
            f"web pages of {shown!r} may not use this server",
            hint="name them in server.cors_origins if they may",
        )

    def _is_ours(self, host: bytes) -> bool:
        known = self._known_hosts.get(host)
        if known is None:
            known = self._any or _name_of(host.decode("latin-1")) in self._ours
            if len(self._known_hosts) < 1000:
                self._known_hosts[host] = known
        return known

    def _origin_is_ours(self, origin: bytes) -> bool:
        try:
            parts = urlsplit(origin.decode("latin-1"))
            name = (parts.hostname or "").casefold()
        except ValueError:
            return False
        return parts.scheme in ("http", "https") and (self._any or name in self._ours)


def _name_of(host: str) -> str:
    """The host without its port: `name`, `1.2.3.4:80`, `[::1]:80`."""
    if host.startswith("["):
        return host[1:].partition("]")[0].casefold()
    return host.partition(":")[0].casefold()
