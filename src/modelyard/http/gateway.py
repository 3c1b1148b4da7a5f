"""The hot path: inference requests leave uvicorn's protocol before ASGI and go to an engine.

Laws of this file:
- Nothing on the way of a request awaits, except opening a new connection to an engine. No disk, no
  lock, no logging.
- What is not a POST to an inference route is uvicorn's business and the ASGI application's.
- Every request, for whomever, obeys `head.py`, `server.max_body` and the time-outs; the answer to
  one that does not comes in its turn and is the last of its connection.
- A connection always has a moment by which something must have happened on it (`deadline`).
"""

from __future__ import annotations

import asyncio
import logging
import os
from functools import partial
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from modelyard.config import Server
from modelyard.core.errors import (
    BodyTooLarge,
    InvalidRequest,
    ModelyardError,
    RequestTimeout,
)
from modelyard.http import head
from modelyard.http.access import Access
from modelyard.http.captures import Captures
from modelyard.http.exchange import Exchange
from modelyard.http.head import CHECKED, Head, Headers, WrongHead
from modelyard.http.origin import Door
from modelyard.http.record import Records
from modelyard.http.request_head import RequestHead
from modelyard.http.routes import INFERENCE
from modelyard.http.turns import LINGER_S, Active, Refusal, Turn
from modelyard.http.websocket import PATHS, Tunnel, wants_websocket
from modelyard.runtime.framing import as_lines
from modelyard.runtime.loop import Loop
from modelyard.runtime.tasks import Tasks

log = logging.getLogger("modelyard.http")

SWEEP_S = 0.25
"""How often time-outs and heartbeats of all exchanges are looked at."""


class Gateway:
    """What all connections of a server share."""

    def __init__(
        self, yard: Loop, settings: Server, door: Door, access: Access, captures: Captures
    ) -> None:
        self.yard = yard
        self.settings = settings
        self.door = door
        self.access = access
        self.captures = captures
        self.tasks = Tasks()
        self.answered = 0
        self.active: set[Active] = set()
        self.records = Records()
        self.connections: set[GatewayProtocol] = set()
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self.clock = self.now()
        """The time of the last sweep, for what need not be exact."""
        self._sweep: asyncio.TimerHandle | None = None
        self._id_prefix = b"req-%b-" % os.urandom(6).hex().encode()
        self._ids = 0
        self._own_headers: Headers = []
        self._own_lines = b""

    def protocol(self) -> type[GatewayProtocol]:
        """What uvicorn calls for each connection of this server, as it would a class of its own."""
        return cast(type[GatewayProtocol], partial(GatewayProtocol, self))

    def lines_of(self, headers: Headers) -> bytes:
        """Header lines that all answers have; made anew when uvicorn has another date."""
        if headers is not self._own_headers:
            self._own_headers = headers
            self._own_lines = as_lines(headers)
        return self._own_lines

    def next_request_id(self) -> bytes:
        self._ids += 1
        return b"%b%x" % (self._id_prefix, self._ids)

    def after_others(self, exchange: Exchange) -> None:
        """Let the exchange go on once everybody whose bytes have come has been served: a callback
        alone would run before the loop looks for them."""
        self._loop.call_soon(self._loop.call_soon, self._go_on, exchange)

    def _go_on(self, exchange: Exchange) -> None:
        try:
            exchange.go_on()
        except Exception as error:
            self._broken(exchange, error)

    def connected(self, protocol: GatewayProtocol) -> None:
        self.connections.add(protocol)
        if self._sweep is None:
            self.clock = self.now()
            self._sweep = self._loop.call_later(SWEEP_S, self._look_at_all)

    def left(self, exchange: Active) -> None:
        self.active.discard(exchange)
        self.answered += 1
        self.records.add(exchange.record)

    def _broken(self, exchange: Active, error: Exception) -> None:
        """A fault of ours: the request is over, and nobody else's."""
        log.error("a request broke the gateway", exc_info=error)
        exchange.reject(ModelyardError("the server failed on this request"))

    async def close(self) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
        await self.tasks.close()

    def _look_at_all(self) -> None:
        """One timer for all time-outs, heartbeats and idle connections: none is set per request."""
        self._sweep = None
        if self.connections:  # first of all, so that nothing below can end it
            self._sweep = self._loop.call_later(SWEEP_S, self._look_at_all)
        now = self.now()
        for exchange in tuple(self.active):
            try:
                exchange.look(now)
            except Exception as error:
                self._broken(exchange, error)
        self.clock = now
        for protocol in tuple(self.connections):
            if protocol.deadline < now:
                protocol.is_late()


class GatewayProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol, with POSTs to inference routes taken out."""

    cycle: Any
    """The newest request read: a Turn, or uvicorn's own cycle."""
    serving: Turn | None = None
    """Whose answer is being written; an older one than `cycle` when a client pipelines."""

    deadline = 0.0
    """When the sweep asks what became of this connection (`is_late`)."""

    _asgi: RequestResponseCycle | None = None
    """The newest request that the application was given; uvicorn looks after `cycle` alone."""
    _known: RequestHead | None = None
    """The head of the newest request that the parser has read, if it may come again."""
    _left = 0
    """Bytes of a body that follow a head which came again: the parser sees neither."""
    _fed = b""
    """What the parser is reading, while that is the message with which it begins."""
    _head: Head | None = None
    """While a head is being read."""
    _in_head = False
    """A request has begun, and its head is not complete."""
    _is_unread = False
    """The head of `cycle` has been read, and its body has not, to the end."""
    _again = b""
    """A head that wanted another protocol, without that wish."""
    _tunnel: Tunnel | None = None
    """The WebSocket that the connection has become, or waits to become."""
    _is_deaf = False
    """Nothing that still comes is read."""
    _arrived = 0
    """Bytes of the message being read, body included, but for those that came with its first."""
    _chunk = 0
    """Bytes that are being parsed."""
    _body = 0
    """Bytes of the body that were read."""
    _unsent = 0
    """Bytes that waited for the client at the last look."""
    _drains = 0
    """How often the client has caught up."""
    _drains_seen = 0

    def __init__(self, gateway: Gateway, *settings: Any, **named: Any) -> None:
        """`settings` are uvicorn's."""
        super().__init__(*settings, **named)
        self.gateway = gateway

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.gateway.connected(self)
        self.deadline = self.gateway.clock + self.gateway.settings.keep_alive_s

    # -------------------------------------------------------------------------- what a client sends

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            if self._tunnel is not None:
                self._tunnel.receive(data)
            return
        try:
            if self._left:
                data = self._read_on(data)
            elif self._known is not None and self._read_known(self._known, data):
                return
        except Exception as error:  # the parser would have caught it for us
            self._broken(error)
            return
        self._fed = b"" if self._in_head or self._is_unread else data
        while data:
            self._chunk = len(data)
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                rest = data[upgrade.args[0] :]
                if self._tunnel is not None:
                    self._tunnel.receive(rest)
                    return
                data = self._read_again(rest)
            except httptools.HttpParserError as error:
                self._not_understood(error)
                return
            else:
                break
        self._arrived += self._chunk
        if self._arrived > head.MAX_HEAD_BYTES + head.WORST_FRAMING * self._body:
            self._too_much()

    def _read_known(self, known: RequestHead, data: bytes) -> bool:
        """Begin a request whose head came before, byte for byte; whether it is one.

        The parser stands between two messages then, and does not notice.
        """
        before = self.cycle
        if self._in_head or self._is_unread or not (before.response_complete and before.keep_alive):
            return False
        found = known.body_in(data)
        if found is None:
            return False
        at, length = found
        left = length - len(data) + at
        if left < 0:  # more requests follow: they wait for their turns
            return False
        if left:
            self._arrived = self._body = 0
            self._infer(known)
            if len(data) > at:
                self.on_body(data[at:])
            self._left = left
        else:
            gateway = self.gateway
            self.deadline = gateway.clock + gateway.settings.send_timeout_s
            exchange = Exchange(self, gateway, known)
            self.cycle = self.serving = exchange
            exchange.begin_whole(data[at:])
        return True

    def _read_on(self, data: bytes) -> bytes:
        """Go on with the body of such a request; returns what comes after it."""
        body, rest = data[: self._left], data[self._left :]
        self._left -= len(body)
        self.on_body(body)
        if not self._left:
            self.on_message_complete()
        return rest

    def _read_again(self, rest: bytes) -> bytes:
        """What the parser is to read in place of a request that wants another protocol.

        It takes whatever follows such a head for that protocol; here it is HTTP like any other.
        """
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        again, self._again = self._again, b""
        self._fed = b""
        return again + rest

    def _not_understood(self, error: httptools.HttpParserError) -> None:
        """The parser gave up, or one of our own callbacks refused the request."""
        if self._is_deaf:
            return
        cause = error.__context__
        if isinstance(error, httptools.HttpParserCallbackError) and cause is not None:
            if isinstance(cause, ModelyardError):
                self._refuse(cause)
                return
            self._broken(cause)
            return
        self._refuse(InvalidRequest(f"this is not HTTP as RFC 9112 has it: {error}"))

    def _broken(self, cause: BaseException) -> None:
        """A fault of ours on a request: it is answered as well as it still can be."""
        log.error("a request broke the gateway", exc_info=cause)
        failed = ModelyardError("the server failed on this request")
        cycle = self.cycle
        if cycle is None or isinstance(cycle, RequestResponseCycle) or cycle.response_complete:
            self._refuse(failed)
        else:  # whatever it was doing is over
            self._is_deaf = True
            cycle.reject(failed)

    def _too_much(self) -> None:
        """More came than a body explains; all but the framing of small chunks is refused."""
        if self._in_head:
            self._refuse(head.too_large(f"it has more than {head.MAX_HEAD_BYTES} bytes"))
        elif self._is_unread:
            self._refuse(InvalidRequest("the body is framed at too great a length"))

    def _refuse(self, error: ModelyardError) -> None:
        """Answer the request that is being read with an error, in its turn, and read no further."""
        self._is_deaf = True
        cycle = self.cycle
        if not self._is_unread:
            self._take_turn(Refusal(self, error))
        elif not isinstance(cycle, RequestResponseCycle):
            cycle.reject(error)
        elif self.pipeline and self.pipeline[0][0] is cycle:
            self.pipeline[0] = (cast(Any, Refusal(self, error)), self.app)
        else:  # the application is answering it
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.close()
            else:
                cycle.response_complete = True
                self._take_turn(Refusal(self, error))

    def _take_turn(self, turn: Turn) -> None:
        """Begin to answer, or wait until earlier requests have been answered."""
        before, self.cycle = self.cycle, turn
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    # ---------------------------------------------------------------------------- the parser's news

    def on_message_begin(self) -> None:
        before = self.cycle
        if before is not None and not before.keep_alive:
            self._is_deaf = True
            raise InvalidRequest("the connection's last request has been read")
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._in_head = True
        self._arrived = self._body = 0
        self.deadline = self.gateway.clock + self.gateway.settings.header_timeout_s

    def on_url(self, url: bytes) -> None:
        self.url = self.url + url
        if len(self.url) > head.MAX_TARGET_BYTES:
            raise WrongHead(
                "request_target_too_long",
                f"the target of the request is longer than {head.MAX_TARGET_BYTES} bytes",
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # a trailer would come later; nobody here wants one
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        version = self.parser.get_http_version()
        method = self.parser.get_method()
        lines = len(self.headers)
        self._known, self._head = None, Head()
        self.headers = [(name.lower(), value) for name, value in self.headers]
        for name, value in self.headers:
            if name in CHECKED:
                self._head.check(name, value)
        if method in (b"CONNECT", b"TRACE"):
            raise WrongHead("method_not_allowed", f"{method.decode()} is not done here")
        if self.parser.should_upgrade():
            if method == b"GET" and version == "1.1" and self._opens_websocket():
                return
            self._again = head.without_upgrade(method, self.url, version, self.headers)
            return
        self._seen.complete(version, self.headers)
        if self._arrived + self._chunk > head.MAX_HEAD_BYTES:
            head.check_size(self.url, self.headers)
        if not self.url.startswith(b"/"):
            self.url = head.origin_form(method, self.url, self.headers)
        self.expect_100_continue = self._seen.expects_continue and version != "1.0"
        path = self.url.partition(b"?")[0]
        route = INFERENCE.get(path)
        if route is None or method != b"POST":
            self._leave_to_asgi(method, path)
            return
        known = RequestHead(
            self.gateway,
            route,
            path.decode("ascii"),
            self.headers,
            self.client[0] if self.client else "",
            may_chunk=version != "1.0",
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            expects_continue=self.expect_100_continue,
        )
        if self._fed and known.remember(self._fed, lines):
            self._known = known
        self._infer(known)

    def _infer(self, known: RequestHead) -> None:
        """Begin an inference request."""
        self.deadline = self.gateway.clock + self.gateway.settings.send_timeout_s
        self._is_unread = True
        before = self.cycle
        exchange = Exchange(self, self.gateway, known)
        if before is None or before.response_complete:
            self.cycle = self.serving = exchange
            exchange.begin()
        else:
            self._take_turn(exchange)

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        cycle = self.cycle
        if not isinstance(cycle, RequestResponseCycle):
            cycle.receive(body)
            return
        if self._body > self.gateway.settings.max_body_bytes:
            raise BodyTooLarge(self.gateway.settings.max_body_bytes)
        self.deadline = self.gateway.clock + self.gateway.settings.body_timeout_s
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._again or self._tunnel is not None:
            return
        self._is_unread = False
        self._fed = b""
        self.deadline = self.gateway.clock + self.gateway.settings.send_timeout_s
        if isinstance(self.cycle, RequestResponseCycle):
            super().on_message_complete()
        else:
            self.cycle.more_body = False
            self.cycle.set()

    def _opens_websocket(self) -> bool:
        """Hand the connection to an engine, if that is what is asked."""
        if self.url.partition(b"?")[0] not in PATHS or not wants_websocket(self.headers):
            return False
        self._seen.complete("1.1", self.headers)
        if self._seen.length or self._seen.has_coding:
            raise InvalidRequest("the handshake of a WebSocket has no body")
        self._tunnel = Tunnel(self, self.gateway, self.url, self.headers)
        self._take_turn(self._tunnel)
        self._is_deaf = True
        return True

    def _leave_to_asgi(self, method: bytes, path: bytes) -> None:
        if path in PATHS:
            raise WrongHead(
                "upgrade_required", f"{path.decode()} is a WebSocket: send a handshake to it"
            )
        if b"#" in self.url:
            raise InvalidRequest("the target of a request has no fragment")
        if method == b"POST":
            near = head.meant(path, INFERENCE)
            if near:
                raise WrongHead(
                    "not_found",
                    f"there is no route POST {path.decode('latin-1')[:200]}",
                    hint=f"did you mean {near}?",
                )
        if (self._seen.length or 0) > self.gateway.settings.max_body_bytes:
            raise BodyTooLarge(self.gateway.settings.max_body_bytes)
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.headers, self.expect_100_continue = url, headers, expects
        self.scope["headers"] = headers
        self._is_unread = True
        super().on_headers_complete()
        self.deadline = self.gateway.clock + self.gateway.settings.body_timeout_s

    @property
    def _seen(self) -> Head:
        assert self._head is not None, "a message has begun"
        return self._head

    # -------------------------------------------------------------------------- whose turn it is

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if isinstance(cycle, RequestResponseCycle):
            self.serving = None
            self._asgi = cycle
            super()._start_asgi_task(cycle, app)
        else:
            self.serving = cycle
            cycle.begin()

    def own_lines(self) -> bytes:
        """Header lines of the server itself."""
        return self.gateway.lines_of(self.server_state.default_headers)

    def exchange_ended(self) -> None:
        """What uvicorn does when a response is complete, without setting a timer for each."""
        self.serving = None
        self.server_state.total_requests += 1
        gateway, is_closing = self.gateway, self.transport.is_closing()
        if is_closing or self.pipeline or self._in_head:
            self.deadline = gateway.clock + gateway.settings.send_timeout_s
        else:
            self.deadline = gateway.clock + gateway.settings.keep_alive_s
        if is_closing:
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """uvicorn's own cycles have ended."""
        self.exchange_ended()

    def common_headers(self, request_id: bytes = b"") -> Headers:
        """Headers of the server itself, and an id, for an answer that comes of no exchange."""
        made = request_id or self.gateway.next_request_id()
        return [*self.server_state.default_headers, (b"x-request-id", made)]

    def linger(self) -> None:
        """The last answer is written: close once the client has had time to see it."""
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)
        self.deadline = self.gateway.clock + self.gateway.settings.send_timeout_s

    def connection_lost(self, exc: Exception | None) -> None:
        self.gateway.connections.discard(self)
        self._is_deaf = True
        unserved: list[Any] = [cycle for cycle, _ in self.pipeline]
        self.pipeline.clear()
        super().connection_lost(exc)
        if self._asgi is not None and not self._asgi.response_complete:
            self._asgi.disconnected = True
            self._asgi.message_event.set()
        for turn in (self.serving, *unserved):
            if turn is not None and not isinstance(turn, RequestResponseCycle):
                turn.client_left()
        self.cycle = self.serving = self._tunnel = None  # which know it: no circle stays

    # --------------------------------------------------------------------------------- slow clients

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.serving is not None:
            self.serving.hold_engine()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._drains += 1
        if self.serving is not None:
            self.serving.resume_engine()

    def is_late(self) -> None:
        """The deadline has passed: whoever is waited for in vain has had his time."""
        gateway, cycle = self.gateway, self.cycle
        self.deadline = gateway.clock + gateway.settings.send_timeout_s
        unsent, closing = self.transport.get_write_buffer_size(), self.transport.is_closing()
        if unsent or closing:  # a WebSocket's, too
            stuck = unsent >= self._unsent > 0 and self._drains == self._drains_seen
            self._unsent, self._drains_seen = unsent, self._drains
            if stuck or not unsent:
                self.transport.abort()
        elif self.flow.read_paused or self._is_deaf:
            pass  # it is not the client who is waited for, or it is closing in a second
        elif self._in_head:
            self._refuse(RequestTimeout("the head of the request took too long to arrive"))
        elif cycle is None or cycle.response_complete:
            self.transport.close()
        elif self._is_unread and isinstance(cycle, RequestResponseCycle):
            self._refuse(RequestTimeout("the body of the request took too long to arrive"))
