"""Connections to one run of an engine, and the leases that requests hold on it.

Laws of this file:
- A lease is given back exactly once, when its response stream is closed, however that came about.
- A connection carries one exchange at a time. Whoever goes away in the middle takes the connection
  with it: closing it is what makes the engine stop working.
- Pooled connections are used again only while they are fresh, well inside the keep-alive times of
  the engines (cpp-httplib and uvicorn close after 5 s), so a request is not written to a connection
  that the engine is closing at that moment.
- No more than `MAX_IDLE` connections stay idle for longer than `CROWD_S`: the oldest go. Those that
  are no longer fresh go when the pool is next aired or looked into.
- A remote's connections are encrypted where its address says so, and its certificate is checked.
- What the engine sent as framing stays here: callers get a head, body bytes, and an end.
- An answer whose head came before, byte for byte but for its length, is not parsed: the parser
  stands before it, and does not notice. Nor are its chunks, if it comes in any, while they are
  framed as we frame our own; where one is not, the parser reads the head first (`_skipped`).
- A chunk that is framed as we frame our own is offered to the relay first: the parser stands
  between two chunks then, or before the head.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

import httptools

from modelyard.core.errors import BadEngineAnswer, EngineDied, ModelyardError
from modelyard.core.specs import Endpoint
from modelyard.engines.quirks import Quirks
from modelyard.runtime.dialing import dial
from modelyard.runtime.framing import AnswerHead, Template, plain_head, unframed
from modelyard.runtime.relay import Relay

if TYPE_CHECKING:
    from modelyard.runtime.failover import Failover

FRESH_FOR_S = 2.0
MAX_IDLE = 256
"""Idle connections kept to one engine; after a crowd the oldest go."""
CROWD_S = 0.25
"""How long more may be idle. Streams that are paced alike end together, and their clients ask again
at once: whoever closed the surplus at that moment would dial it again."""
CONNECT_TIMEOUT_S = 5.0
MAX_HEADERS = 100
MAX_HEAD_BYTES = 64 * 1024

Headers = list[tuple[bytes, bytes]]
Buffer = bytes | bytearray | memoryview
P = TypeVar("P", bound=asyncio.BaseProtocol)


class Listener(Protocol):
    """Who gets the body of an engine's answer."""

    def answer_continues(self, body: bytes, complete: bool) -> None:
        """Body bytes have arrived; `complete` says that they were the last."""
        ...

    def answer_fails(self, error: ModelyardError) -> None:
        """The engine has got the request, and no more of an answer will come."""
        ...


class Receiver(Listener, Protocol):
    """Who gets an engine's answer."""

    def answer_begins(self, head: AnswerHead, length: int | None) -> None:
        """The head has arrived; `length` is the body's, if the engine announced one."""
        ...


def _unheard(_: int) -> None:
    """What becomes of an answer that nobody counts."""


class Upstream:
    """One run of one engine, as seen by those who send requests to it."""

    def __init__(
        self, model: str, run: int, endpoint: Endpoint, on_broken: Callable[[], None]
    ) -> None:
        self.model = model
        self.run = run
        self.endpoint = endpoint
        self.leases = 0
        self.gone = asyncio.Event()
        """Set when no process of the run is left."""
        self.broken = on_broken
        """Called when the engine broke an exchange off."""
        self.answered: Callable[[int], None] = _unheard
        """Called with the status of each answer that begins."""
        self.quirks: Quirks | None = None
        """How this engine wants to be asked, if not as clients ask."""
        self.speaks: frozenset[str] = frozenset()
        """Routes of other dialects than OpenAI's that the engine takes as clients write them."""
        self.is_remote = False
        """Whether it is somebody else's, on another machine perhaps."""
        self.tells_usage = True
        """Whether it takes `stream_options`, and ends a stream with its usage then."""
        self.failover: Failover | None = None
        """Where requests go in place of `endpoint`, for a remote: it has several of these."""
        self.own_headers = b"host: %b\r\n" % endpoint.authority.encode()
        """Header lines of ours, with which each request begins."""
        self.known: tuple[Template, AnswerHead] | None = None
        """How the newest answer with a length began that may come again."""
        self.known_stream: tuple[bytes, AnswerHead] | None = None
        """The same of one that came in chunks: the head as it was written."""
        self.tls: ssl.SSLContext | None = None
        self.fresh_for_s = FRESH_FOR_S
        self.connect_timeout_s = CONNECT_TIMEOUT_S
        self._loop = asyncio.get_running_loop()
        self._loading: tuple[float, float] = (self._loop.time(), math.inf)
        """When the engine began to start or to wake, and when it was ready."""
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._drained: asyncio.Event | None = None
        self._retired = False
        self._airing: asyncio.TimerHandle | None = None
        self._thinning: asyncio.TimerHandle | None = None

    def begins_loading(self) -> None:
        """The engine is being woken."""
        self._loading = self._loop.time(), math.inf

    def is_loaded(self) -> None:
        """The engine is ready."""
        self._loading = self._loading[0], self._loop.time()

    def loading_since(self, moment: float) -> float:
        """Of the seconds since `moment` by the loop's clock, those in which the engine loaded."""
        began, ready = self._loading
        return max(0.0, min(ready, self._loop.time()) - max(began, moment))

    async def drained(self) -> None:
        """Return once no request holds a lease."""
        if self.leases:
            self._drained = asyncio.Event()
            await self._drained.wait()

    def lease_closed(self) -> None:
        self.leases -= 1
        if not self.leases and self._drained is not None:
            self._drained.set()

    def idle_connection(self) -> Connection | None:
        """The most recently used pooled connection, if a fresh one is left."""
        while self._idle:
            connection = self._idle.pop()
            age_s = self._loop.time() - connection.idle_since
            if age_s < self.fresh_for_s and connection.is_open:
                return connection
            connection.close()
        return None

    async def connect(self) -> Connection:
        """A new connection. Raises OSError (TimeoutError among them) if there is none to be had."""
        make = cast(Callable[[], asyncio.BaseProtocol], lambda: Connection(self))
        return cast(Connection, await self.dial(make))

    async def dial(self, protocol: Callable[[], P]) -> P:
        """A connection in no pool, which speaks what `protocol` makes of it. Raises OSError."""
        return await dial(self.endpoint, protocol, self.tls, self.connect_timeout_s)

    def opened(self, connection: Connection) -> None:
        self._open.add(connection)

    def finished(self, connection: Connection) -> None:
        """The connection has carried an exchange to its end and can carry another."""
        connection.idle_since = self._loop.time()
        connection.is_used = True
        if self._retired:
            connection.close()
            return
        self._idle.append(connection)
        if len(self._idle) > MAX_IDLE and self._thinning is None:
            self._thinning = self._loop.call_later(CROWD_S, self._thin)
        if self._airing is None:
            self._airing = self._loop.call_later(self.fresh_for_s, self._air)

    def _air(self) -> None:
        """Close what is no longer fresh, so that a crowd's connections go when the crowd has."""
        self._airing = None
        self._close_idle_for(self.fresh_for_s, keep=0)
        if self._idle:
            self._airing = self._loop.call_later(self.fresh_for_s, self._air)

    def _thin(self) -> None:
        """Close what more than `MAX_IDLE` are idle, unless they have only just become so."""
        self._thinning = None
        self._close_idle_for(CROWD_S, keep=MAX_IDLE)
        if len(self._idle) > MAX_IDLE:
            self._thinning = self._loop.call_later(CROWD_S, self._thin)

    def _close_idle_for(self, seconds: float, keep: int) -> None:
        """Close what has been idle for so long, but for the newest `keep`."""
        since = self._loop.time() - seconds
        surplus = self._idle[: max(0, len(self._idle) - keep)]
        old = [connection for connection in surplus if connection.idle_since <= since]
        self._idle = self._idle[len(old) :]  # they are in the order of their last use
        for connection in old:
            connection.close()

    def lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def retire(self) -> None:
        """Drop the pooled connections; exchanges go on and take theirs with them at their end."""
        self._retired = True
        while self._idle:
            self._idle.pop().close()

    def close(self) -> None:
        """Drop every connection; exchanges on them fail."""
        self._idle.clear()
        for connection in tuple(self._open):
            connection.close()


class Lease:
    """The right of one request to use one run, until `close`."""

    __slots__ = ("_open", "_release", "upstream")

    def __init__(self, upstream: Upstream, release: Callable[[Upstream, bool], None]) -> None:
        self.upstream = upstream
        self._release = release
        self._open = True

    def close(self, *, served: bool) -> None:
        """Give the lease back; `served` says that the engine answered properly. Idempotent."""
        if self._open:
            self._open = False
            self._release(self.upstream, served)


class Connection:
    """One connection to an engine; speaks HTTP/1.1 through llhttp.

    An asyncio.Protocol by what it does: with a base class that is not compiled, its attributes
    would be slow.
    """

    # These two are looked at for each chunk of thousands of streams: what is declared first stands
    # together in memory, where it is compiled.
    relay: Relay | None = None
    """Who is offered each chunk first, as it came. What it does not take goes the usual way."""
    _between = False
    """What comes next is the beginning of a chunk, or the end of a body in chunks."""
    _fed = b""
    """What the parser is reading, while that is the answer with which it begins."""
    _has_begun = False
    """Something of the present answer has come."""
    _left = 0
    """Bytes of a body that follow a head which came before: the parser sees neither."""
    _skipped = b""
    """A head that came before, of a body in chunks, of which the parser has seen nothing yet."""
    _catches_up = False
    """The parser reads a head that has been dealt with."""
    _until_close = False

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.idle_since = 0.0
        self.is_used = False
        """Whether it has carried an exchange before: its other end may be closing it just now."""
        self._transport: asyncio.Transport | None = None
        self._receiver: Receiver | None = None
        self.listener: Listener | None = None
        """Who gets the body: the receiver, or whoever it hands on to once the head has come."""
        self._parser = httptools.HttpResponseParser(self)
        self._headers: Headers = []
        self._head_bytes = 0
        self._parts: list[bytes] = []
        self._complete = False
        self._in_head = False
        self._unread = 0
        """Bytes of a head that has no end yet."""
        self._reusable = True

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, receiver: Receiver, request: bytes, body: Buffer = b"") -> None:
        """Begin an exchange: the answer goes to `receiver`. A `body` that does not stand in the
        request already is sent without being copied, and must not change any more."""
        assert self._transport is not None, "not connected"
        assert self.listener is None, "one exchange at a time"
        self._receiver = self.listener = receiver
        self.relay = None
        self._skipped = b""
        self._between = self._complete = self._has_begun = False
        self._transport.write(request)
        if body:
            self._transport.write(body)

    def abort(self) -> None:
        """The receiver has gone: forget it and close, so that the engine stops working for it."""
        self._receiver = self.listener = self.relay = None
        self.close()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def pause_reading(self) -> None:
        if self.is_open:
            self._transport.pause_reading()  # type: ignore[union-attr]  # is_open implies it

    def resume_reading(self) -> None:
        if self.is_open:
            self._transport.resume_reading()  # type: ignore[union-attr]  # is_open implies it

    # ---------------------------------------------------------------------------- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.upstream.opened(self)

    def pause_writing(self) -> None:
        """The engine does not read; its requests are as large as bodies may be, and no larger."""

    def resume_writing(self) -> None:
        """The engine reads again."""

    def data_received(self, data: bytes) -> None:
        if self._between and self.relay is not None and self.relay.takes(data):
            return
        if self.listener is None:  # bytes that nobody asked for
            self.close()
        elif self._left:
            self._read_on(data)
        elif self._skipped:
            self._read_chunks(data)
        elif self._has_begun or not (self._read_known(data) or self._read_known_stream(data)):
            self._parse(data)

    def _read_known(self, data: bytes) -> bool:
        """Read an answer with a length whose head came before; whether it is one."""
        if self.upstream.known is None:
            return False
        template, head = self.upstream.known
        found = template.match(data)
        if found is None:
            return False
        at, length = found
        if length < len(data) - at:  # more than was asked for
            return False
        self._begins_again(head, length)
        self._left = length
        self._read_on(data[at:])
        return True

    def _read_known_stream(self, data: bytes) -> bool:
        """Read an answer in chunks whose head came before; whether it is one."""
        if self.upstream.known_stream is None:
            return False
        begin, head = self.upstream.known_stream
        at = len(begin)
        if data[:at] != begin:
            return False
        self._skipped = begin
        self._between = True
        self._begins_again(head, None)
        if len(data) > at and self.listener is not None:
            self._read_chunks(data[at:])
        return True

    def _begins_again(self, head: AnswerHead, length: int | None) -> None:
        """Tell of a head that came before."""
        self._has_begun = self._reusable = True
        self._until_close = False
        self.upstream.answered(head.status)
        if self._receiver is not None:
            self._receiver.answer_begins(head, length)

    def _read_chunks(self, data: bytes) -> None:
        """The next part of the body of an answer that the parser has not seen."""
        read = unframed(data)
        if read is None:
            head, self._skipped = self._skipped, b""
            self._catches_up = True
            self._parse(head + data)
            return
        body, self._complete = read
        if self._complete:
            self._deliver(body)
        elif self.listener is not None:
            self.listener.answer_continues(body, False)

    def _read_on(self, data: bytes) -> None:
        """The next part of the body of such an answer."""
        if len(data) > self._left:
            data = data[: self._left]
            self._reusable = False  # the answer is whole; what came after it is nobody's
        self._left -= len(data)
        if not self._left:
            self._complete = True
            self._deliver(data)
        elif data and self.listener is not None:
            self.listener.answer_continues(data, False)

    def _parse(self, data: bytes) -> None:
        self._fed = b"" if self._has_begun else data
        self._has_begun = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._complete:
                self._fail(BadEngineAnswer(self.upstream.model, str(error)))
                return
            self._reusable = False  # the answer is whole; what came after it is nobody's
        # What ends here, after a chunk, may be the first digits of the next one's size.
        self._between = self._between and data.endswith(b"\r\n")
        if self._in_head:
            self._unread += len(data)
            if self._unread > MAX_HEAD_BYTES:
                self._fail(BadEngineAnswer(self.upstream.model, "its head is too large"))
                return
        parts = self._parts
        if self.listener is None:  # it has gone on hearing the head
            return
        if self._complete:
            self._parts = []
            self._deliver(b"".join(parts))
        elif parts:
            self._parts = []
            self.listener.answer_continues(parts[0] if len(parts) == 1 else b"".join(parts), False)

    def eof_received(self) -> None:
        """An answer without any framing ends where the connection does (RFC 9112, 6.3)."""
        if self.listener is not None and not self._complete and self._until_close:
            self._complete = True
            self._reusable = False
            self._deliver(b"")

    def connection_lost(self, exc: Exception | None) -> None:
        self.upstream.lost(self)
        if self.listener is not None and not self._complete:
            if exc is None and self._until_close:
                self._complete = True
                self._deliver(b"")
            else:
                detail = str(exc) if exc else "the connection to it closed"
                self._fail(EngineDied(self.upstream.model, detail))

    # -------------------------------------------------------------------------- parser callbacks

    def on_message_begin(self) -> None:
        if self._complete:
            raise ValueError("it sent more than was asked for")
        self._in_head = True
        self._unread = 0
        self._headers = []
        self._head_bytes = 0
        self._until_close = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if len(self._headers) >= MAX_HEADERS or self._head_bytes > MAX_HEAD_BYTES:
            raise ValueError("its head is too large")
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._catches_up:
            self._catches_up = False
            return
        fed, self._fed = self._fed, b""
        status = self._parser.get_status_code()
        if status < 200:  # an interim answer; the real one follows
            return
        if status > 599:
            raise ValueError(f"there is no status {status}")
        self.upstream.answered(status)
        length = None
        chunked = False
        for name, value in self._headers:
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                chunked = True
        if status in (204, 304):  # they have no body, whatever is said of it (RFC 9112, 6.3)
            length, chunked = 0, False
        self._until_close = length is None and not chunked
        self._between = chunked
        self._reusable = self._parser.should_keep_alive() and not self._until_close
        head = AnswerHead(status, self._headers)
        if fed and status == 200 and self._reusable:
            self._remember(head, fed)
        if self._receiver is not None:
            self._receiver.answer_begins(head, None if chunked else length)

    def _remember(self, head: AnswerHead, fed: bytes) -> None:
        """Know this head, with which `fed` begins, when it comes again."""
        codings = [value.lower() for name, value in head.headers if name == b"transfer-encoding"]
        if not codings:
            template = Template.of(fed, len(head.headers))
            self.upstream.known = None if template is None else (template, head)
        elif codings == [b"chunked"]:
            plain = plain_head(fed, len(head.headers))
            self.upstream.known_stream = (plain, head) if plain else None

    def on_chunk_header(self) -> None:
        self._between = False

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_chunk_complete(self) -> None:
        self._between = True

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() >= 200:
            self._complete = True

    # ------------------------------------------------------------------------------------- helpers

    def _deliver(self, body: bytes) -> None:
        listener = self.listener
        if listener is None:
            return
        complete = self._complete
        if complete:
            self._receiver = self.listener = self.relay = None
            self._between = False
            if self._reusable:  # one that is closing is found out before it is used again
                self.upstream.finished(self)
            else:
                self.close()
        listener.answer_continues(body, complete)

    def _fail(self, error: ModelyardError) -> None:
        listener = self.listener
        self._receiver = self.listener = self.relay = None
        self.close()
        self.upstream.broken()
        if listener is not None:
            listener.answer_fails(error)
