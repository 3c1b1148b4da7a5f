"""What the head of a request must be like, beyond what the parser (llhttp, strict) sees to.

Laws of this file:
- What two servers could read in two ways is refused, never repaired: the next server behind us
  would have to make the same repair.
- A path is compared as it was written. `%2F` is no slash, two slashes are not one, and dots name
  nothing, so an inference route has one spelling and an engine's control route has none.
- Trailers and what the `Connection` header names go no further.
- A head is bounded in bytes, lines and time; what comes between the parts of a body, too.

Sources: RFC 9112 (3.2 targets and Host, 5.2 folding, 6.1 Transfer-Encoding, 6.3 lengths, 11.2
smuggling), RFC 9110 (7.2 Host, 7.6.1 Connection, 10.1.1 Expect).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from urllib.parse import unquote

from modelyard.core.errors import InvalidRequest, ModelyardError
from modelyard.runtime.framing import as_lines

MAX_TARGET_BYTES = 8 * 1024
"""The path and query of a request; RFC 9112 wants at least 8000 octets to be taken."""
MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 100
WORST_FRAMING = 16
"""Bytes of framing that a byte of a body may cost; a chunk of one byte costs six."""

Headers = list[tuple[bytes, bytes]]

CHECKED = frozenset({
    b"host", b"connection", b"content-encoding", b"content-length", b"expect", b"transfer-encoding",
})  # fmt: skip
"""Headers that `Head.check` wants to see."""

_OF_UPGRADES = frozenset({b"connection", b"upgrade", b"http2-settings"})
_USUAL_CONNECTION = frozenset({b"keep-alive", b"close"})
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)([^#]*)", re.IGNORECASE)
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[^\x00-\x20\x7f/?#@,:\\\[\]]+)(?::[0-9]{0,5})?")
_END_TO_END = frozenset({b"host", b"content-length", b"content-type", b"authorization"})
"""What `Connection` may not take away: without them it would be another request."""


class WrongHead(ModelyardError):
    """The head of a request is refused; `code` says by which rule."""

    def __init__(self, code: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code = code


class Head:
    """What was seen in the head of one request, apart from its header lines."""

    __slots__ = ("expects_continue", "has_coding", "host", "length", "nominated")

    def __init__(self) -> None:
        self.host: bytes | None = None
        self.length: int | None = None
        self.has_coding = False
        self.expects_continue = False
        self.nominated: Collection[bytes] = ()
        """Lower-case names of headers that are for this connection alone."""

    def check(self, name: bytes, value: bytes) -> None:
        """Take note of a header of CHECKED. Raises a ModelyardError for what is refused."""
        if name == b"host":
            if self.host is not None:
                raise InvalidRequest("the request has two Host headers")
            self.host = value
        elif name == b"content-length":
            if self.length is not None or not value.strip().isdigit():
                raise InvalidRequest(
                    "the request has two Content-Lengths, or one that is no number"
                )
            self.length = int(value)
        elif name == b"connection":
            if value.lower() not in _USUAL_CONNECTION:
                names = {part.strip().lower() for part in value.split(b",")}
                self.nominated = {*self.nominated, *names} - _END_TO_END
        elif name == b"expect":
            if value.strip().lower() != b"100-continue":
                raise WrongHead("expectation_failed", f"nobody here can meet {_shown(value)}")
            self.expects_continue = True
        elif name == b"transfer-encoding":
            self._check_coding(value)
        elif value.strip().lower() not in (b"identity", b""):
            raise WrongHead(
                "unsupported_content_encoding",
                f"request bodies are not taken in the encoding {_shown(value)}",
                hint="send the body as it is",
            )

    def _check_coding(self, value: bytes) -> None:
        if self.has_coding or value.strip().lower() != b"chunked":
            raise WrongHead(
                "unsupported_transfer_encoding",
                f"the transfer encoding {_shown(value)} is not taken; only `chunked` is, once",
            )
        self.has_coding = True

    def complete(self, version: str, headers: Headers) -> None:
        """The head is whole. Raises a ModelyardError for what is refused."""
        if version not in ("1.1", "1.0"):
            raise WrongHead(
                "http_version_not_supported", f"HTTP/{version} is not spoken here; use HTTP/1.1"
            )
        if len(headers) > MAX_HEADERS:
            raise too_large(f"it has more than {MAX_HEADERS} lines")
        if self.host is None:
            if version != "1.0":
                raise InvalidRequest("the request has no Host header")
        elif not is_host(self.host):
            raise InvalidRequest(f"the Host header {_shown(self.host)} names no host")
        if self.has_coding:
            if version == "1.0":
                raise InvalidRequest("HTTP/1.0 has no Transfer-Encoding")
            if self.length is not None:
                raise InvalidRequest("the request has a Content-Length and a Transfer-Encoding")
        if self.nominated:
            headers[:] = [header for header in headers if header[0] not in self.nominated]


def is_host(value: bytes) -> bool:
    """Whether a Host header is a name or an address, with or without a port."""
    return _HOST.fullmatch(value) is not None


def too_large(why: str) -> WrongHead:
    """The head is larger than is read."""
    return WrongHead("request_head_too_large", f"the head of the request is too large: {why}")


def check_size(target: bytes, headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raises WrongHead for a head of more than MAX_HEAD_BYTES."""
    size = len(target) + sum(len(name) + len(value) + 4 for name, value in headers)
    if size > MAX_HEAD_BYTES:
        raise too_large(f"it has {size} bytes of at most {MAX_HEAD_BYTES}")


def origin_form(method: bytes, target: bytes, headers: Headers) -> bytes:
    """The target as a path: a whole address loses its host, which takes the Host header's place.

    Raises a ModelyardError for a target that is neither.
    """
    if method == b"OPTIONS" and target == b"*":
        return target
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise InvalidRequest(f"{_shown(target)} is not the target of a request")
    host, path = absolute.groups()
    if not is_host(host):
        raise InvalidRequest(f"{_shown(target)} names no host")
    for at, (name, _) in enumerate(headers):
        if name == b"host":
            headers[at] = (name, host)
    return path if path.startswith(b"/") else b"/" + path


def without_upgrade(method: bytes, target: bytes, version: str, headers: Headers) -> bytes:
    """The same head without the wish for another protocol, which may be ignored (RFC 9110 7.8)."""
    closes = any(
        name == b"connection" and b"close" in value.lower().replace(b" ", b"").split(b",")
        for name, value in headers
    )
    kept = [(name, value) for name, value in headers if name not in _OF_UPGRADES]
    if closes:
        kept.append((b"connection", b"close"))
    lines = as_lines(kept)
    return b"%b %b HTTP/%b\r\n%b\r\n" % (method, target, version.encode(), lines)


def meant(path: bytes, routes: Collection[bytes]) -> str:
    """The route that was probably meant by a path that is none; empty if there is none."""
    plain = unquote(path.decode("latin-1"))
    for _ in range(2):  # whoever encodes twice meant the same
        plain = unquote(plain)
    parts = [part for part in plain.casefold().split("/") if part]
    near = "/" + "/".join(parts)
    return near if near.encode() in routes and near.encode() != path else ""


def _shown(value: bytes) -> str:
    return repr(value.decode("latin-1")[:100])
