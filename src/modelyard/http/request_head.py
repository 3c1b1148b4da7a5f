"""What the head of an inference request says, read once for all requests that repeat it.

Laws of this file:
- Clients send the same head again and again on one connection; only the length of the body differs.
  A head that is repeated byte for byte means the same, so it is not read anew.
- It is read anew at least every second, and whenever keys change: who asks, and what they may, is
  never older than that. A head that was refused, or that holds for one request only, is not kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from modelyard.core.errors import BodyTooLarge, ModelyardError
from modelyard.http.access import ANYONE, Caller
from modelyard.http.head import Headers
from modelyard.http.routes import Route

if TYPE_CHECKING:
    from modelyard.http.gateway import Gateway

FRESH_S: Final = 1.0
MAX_REQUEST_ID: Final = 128
MAX_LENGTH_DIGITS: Final = 12
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
        "_access", "_at", "_gateway", "_generation", "_raw", "_until", "_url", "_version",
        "caller", "client", "content_type", "credential", "error", "expects_continue",
        "forwarded", "headers", "keep_alive", "may_chunk", "origin", "path", "request_id", "route",
    )  # fmt: skip

    def __init__(
        self,
        gateway: Gateway,
        route: Route,
        path: str,
        headers: Headers,
        client: str,
        *,
        version: str,
        keep_alive: bool,
        expects_continue: bool,
    ) -> None:
        """`headers` are lower-case, and fit to be passed on by `head.Head`."""
        self.route = route
        self.path = path
        self.headers = headers
        self.client = client
        """Address of the client."""
        self.keep_alive = keep_alive
        self.may_chunk = version != "1.0"
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
        self.forwarded: list[bytes] = []
        """Header lines for the engine, each in four parts."""
        self._gateway = gateway
        self._version = version
        self._raw: Headers | None = None
        self._read(headers)

    def _read(self, headers: Headers) -> None:
        gateway = self._gateway
        host = None
        for name, value in headers:
            if name not in NOT_FORWARDED:
                self.forwarded += (name, b": ", value, b"\r\n")
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

    def remember(self, url: bytes, raw: Headers) -> bool:
        """Keep how the head was written, if requests may repeat it; whether they may."""
        if self.error is not None or self.request_id or self.expects_continue:
            return False
        self._url = url
        self._raw = raw
        self._at = next(
            (at for at, (name, _) in enumerate(raw) if name.lower() == b"content-length"), -1
        )
        self._generation = self._gateway.access.generation
        self._until = self._gateway.clock + FRESH_S
        return True

    def is_repeated(self, url: bytes, raw: Headers, method: bytes, version: str) -> bool:
        """Whether this head has come again, but for the length of the body."""
        gateway = self._gateway
        before = self._raw
        if (
            before is None
            or url != self._url
            or method != b"POST"
            or version != self._version
            or len(raw) != len(before)
            or gateway.clock > self._until
            or gateway.access.generation != self._generation
            or gateway.captures.are_on
        ):
            return False
        at = self._at
        if at < 0 or raw[at] == before[at]:
            return raw == before
        name, value = raw[at]
        if name != before[at][0] or not value.isdigit() or len(value) > MAX_LENGTH_DIGITS:
            return False
        if int(value) > gateway.settings.max_body_bytes:
            return False
        return raw[:at] == before[:at] and raw[at + 1 :] == before[at + 1 :]


def _is_sane_id(value: bytes) -> bool:
    return len(value) <= MAX_REQUEST_ID and value.isascii() and value.decode().isprintable()
