"""The answer as the client gets it: a head, a body in our own framing, and an end.

Laws of this file:
- The client's framing is ours: what the engine sent as framing, hop-by-hop or CORS headers, stays
  behind. A chunk that came to the byte as we write it is not written anew.
- The head waits for the first part of the body and is written together with it. Until then an
  answer can be forgotten and another one begun.
- A body without a known length is chunked, and ends with the connection for HTTP/1.0.
"""

from __future__ import annotations

from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from modelyard.runtime.framing import AnswerHead, as_chunk, as_lines
from modelyard.runtime.relay import Relay
from modelyard.runtime.upstream import Headers

NOT_RETURNED = frozenset(
    b"access-control-allow-credentials access-control-allow-headers access-control-allow-methods "
    b"access-control-allow-origin access-control-expose-headers alt-svc clear-site-data connection "
    b"content-length date keep-alive nel openai-organization openai-project proxy-authenticate "
    b"proxy-connection report-to request-id server set-cookie strict-transport-security te trailer "
    b"transfer-encoding upgrade www-authenticate x-request-id".split()
)


EVENT_STREAM = b"text/event-stream"


def kept_of(headers: Headers) -> Headers:
    """Of an engine's header lines, those that its client gets."""
    return [header for header in headers if header[0] not in NOT_RETURNED]


def look_at(head: AnswerHead) -> bytes:
    """The header lines that a client gets of this head, and in the head whether events follow."""
    kept = kept_of(head.headers)
    head.is_stream = any(name == b"content-type" and EVENT_STREAM in value for name, value in kept)
    head.lines = as_lines(kept)
    return head.lines


class Answer:
    """One answer, from nothing to its end."""

    __slots__ = (
        "_chunked",
        "_head",
        "_may_chunk",
        "_write",
        "bytes_out",
        "has_body",
        "is_begun",
        "keep_alive",
        "last_part",
        "status",
    )

    def __init__(
        self,
        write: Callable[[bytes], None],
        *,
        keep_alive: bool,
        may_chunk: bool,
    ) -> None:
        self._write = write
        self._may_chunk = may_chunk
        self._chunked = False
        self._head = b""
        self.keep_alive = keep_alive
        self.is_begun = False
        """Whether the head has been written: its status can no longer change."""
        self.has_body = False
        """Whether something of an engine's answer has been written."""
        self.last_part = b""
        self.status = 0
        self.bytes_out = 0

    def begin(self, status: int, common: bytes, lines: bytes, length: int | None) -> None:
        """Have this head written with the first part, unless one has been written already.

        `common` are the header lines that every answer of the server has, `lines` its own.
        """
        if not self.is_begun:
            self._head = self._head_of(status, common, lines, length)

    def part(self, body: bytes, complete: bool) -> None:
        """The next part of the body; `complete` says that it is the last."""
        if body:
            self.last_part = body
            self.has_body = True
            self.bytes_out += len(body)
            if self._chunked:
                body = as_chunk(body)
        if complete and self._chunked:
            body += b"0\r\n\r\n"
        if self._head:
            self.is_begun = True
            body = self._head + body
            self._head = b""
        if body:
            self._write(body)

    def relay(self) -> Relay | None:
        """Who may send on chunks; None until a head is written that says that they come."""
        return Relay(self._write) if self._chunked and self.has_body else None

    def whole(self, status: int, common: bytes, headers: Headers, body: bytes) -> None:
        """An answer at once."""
        self.is_begun = True
        self.bytes_out += len(body)
        self._write(self._head_of(status, common, as_lines(headers), len(body)) + body)

    def last_event(self, event: bytes) -> None:
        """End a stream that has begun with one more event, apart from what was cut before it."""
        if self.last_part and not self.last_part.endswith((b"\n\n", b"\r\n\r\n")):
            event = b"\n\n" + event
        self.part(event, True)

    def beat(self, heartbeat: bytes, common: bytes, headers: Headers) -> None:
        """Keep a waiting client's stream alive; the first beat sends the head."""
        head = b"" if self.is_begun else self._head_of(200, common, as_lines(headers), None)
        if heartbeat and self._chunked:
            heartbeat = as_chunk(heartbeat)
        self.is_begun = True
        if head or heartbeat:
            self._write(head + heartbeat)

    def forget(self) -> None:
        """Take back a head that has not been written."""
        if not self.is_begun:
            self._head = b""
            self._chunked = False
            self.status = 0
        self.last_part = b""

    def _head_of(self, status: int, common: bytes, lines: bytes, length: int | None) -> bytes:
        self.status = status
        if length is not None:
            framing = b"content-length: %d\r\n" % length
        elif self._may_chunk:
            self._chunked = True
            framing = b"transfer-encoding: chunked\r\n"
        else:
            self.keep_alive = False
            framing = b""
        end = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        return b"%b%b%b%b%b" % (STATUS_LINE[status], common, lines, framing, end)
