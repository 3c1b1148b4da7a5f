"""What the head of an inference request says, read once for all requests that repeat it.

Laws of this file:
- Clients send the same head again and again on one connection; only the length of the body differs.
  A head that is repeated byte for byte means the same, so it is not parsed anew.
- It is read anew at least every second, and whenever keys change: who asks, and what they may, is
  never older than that. A head that was refused, or that holds for one request only, is not kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from modelyard.core.errors import BodyTooLarge, ModelyardError
from modelyard.http.access import ANYONE, Caller
from modelyard.http.head import Headers
from modelyard.http.routes import Route
from modelyard.runtime.framing import Template, as_lines

if TYPE_CHECKING:
    from modelyard.http.gateway import Gateway

FRESH_S: Final = 1.0
MAX_REQUEST_ID: Final = 128
CREDENTIALS: Final = frozenset({b"authorization", b"x-api-key", b"api-key"})
NOT_FORWARDED: Final = frozenset({
    b"accept-encoding", b"connection", b"content-length", b"cookie", b"expect", b"host",
    b"keep-alive", b"origin", b"proxy-authorization", b"proxy-connection", b"referer", b"te",
    b"trailer", b"transfer-encoding", b"upgrade", b"x-modelyard-loading-state", b"x-request-id",
    *CREDENTIALS,
})  # fmt: skip


class RequestHead:
    """One head: where the request goes, who asks, and which lines go on to the engine."""

    __slots__ = (
        "_gateway", "_generation", "_template", "_until", "caller", "client", "content_type",
        "credential", "error", "expects_continue", "forwarded", "headers", "keep_alive", "lines",
        "may_chunk", "origin", "path", "request_id", "route",
    )  # fmt: skip

    def __init__(
        self,
        gateway: Gateway,
        route: Route,
        path: str,
        headers: Headers,
        client: str,
        *,
        keep_alive: bool,
        may_chunk: bool,
        expects_continue: bool,
    ) -> None:
        """`headers` are lower-case, and fit to be passed on by `head.Head`."""
        self.route = route
        self.path = path
        self.headers = headers
        self.client = client
        """Address of the client."""
        self.keep_alive = keep_alive
        self.may_chunk = may_chunk
        """Whether the client takes bodies in chunks."""
        self.expects_continue = expects_continue
        self.content_type = b""
        self.credential = b""
        self.request_id = b""
        """The client's own; empty where there is none."""
        self.origin: bytes | None = None
        """The web page that asks, if one does."""
        self.caller: Caller = ANYONE
        self.error: ModelyardError | None = None
        """Why the request is refused, whatever its body."""
        self.forwarded: Headers = []
        """Headers for the engine."""
        self._gateway = gateway
        self._template: Template | None = None
        self._read(headers)
        self.lines = as_lines(self.forwarded)

    def _read(self, headers: Headers) -> None:
        gateway = self._gateway
        host = None
        for name, value in headers:
            if name not in NOT_FORWARDED:
                self.forwarded.append((name, value))
                if name == b"content-type":
                    self.content_type = value
            elif name == b"host":
                host = value
            elif name == b"origin":
                self.origin = value
            elif name == b"content-length" and int(value) > gateway.settings.max_body_bytes:
                self.error = BodyTooLarge(gateway.settings.max_body_bytes)
            elif name == b"x-request-id" and _is_sane_id(value):
                self.request_id = value
            elif name == b"authorization" or (name in CREDENTIALS and not self.credential):
                self.credential = value
        try:
            gateway.door.check(host, self.origin)
            self.caller = gateway.access.caller(self.credential, self.client)
        except ModelyardError as error:
            self.error = error

    def said(self, name: bytes) -> bytes:
        """The value of a header, the last one where there are several; empty if there is none."""
        return next((value for key, value in reversed(self.headers) if key == name), b"")

    def remember(self, raw: bytes, lines: int) -> bool:
        """Keep how the head was written, with so many header lines at the beginning of `raw`, if
        requests may repeat it; whether they may."""
        if self.error is None and not self.request_id and not self.expects_continue:
            self._template = Template.of(raw, lines)
            self._generation = self._gateway.access.generation
            self._until = self._gateway.clock + FRESH_S
        return self._template is not None

    def body_in(self, data: bytes) -> tuple[int, int] | None:
        """Where the body begins, and how long it will be, if `data` begins with this head again."""
        gateway = self._gateway
        if (
            self._template is None
            or gateway.clock > self._until
            or gateway.access.generation != self._generation
            or gateway.captures.are_on
        ):
            return None
        found = self._template.match(data)
        if found is None or found[1] > gateway.settings.max_body_bytes:
            return None
        return found


def _is_sane_id(value: bytes) -> bool:
    return len(value) <= MAX_REQUEST_ID and value.isascii() and value.decode().isprintable()
