"""The hot path: inference requests leave uvicorn's protocol before ASGI and go to an engine.

Laws of this file:
- Nothing on the way of a request awaits, except opening a new connection to an engine. No disk, no
  lock, no logging.
- What is not a POST to an inference route is uvicorn's business and the ASGI application's.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from modelyard.config import Server
from modelyard.http.exchange import Exchange
from modelyard.http.origin import Door
from modelyard.http.routes import INFERENCE
from modelyard.runtime.loop import Loop
from modelyard.runtime.tasks import Tasks

SWEEP_S = 0.25
"""How often time-outs and heartbeats of all exchanges are looked at."""


class Gateway:
    """What all connections of a server share."""

    def __init__(self, yard: Loop, settings: Server, door: Door) -> None:
        self.yard = yard
        self.settings = settings
        self.door = door
        self.tasks = Tasks()
        self.answered = 0
        self.active: set[Exchange] = set()
        self.connections: set[GatewayProtocol] = set()
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self._sweep: asyncio.TimerHandle | None = None
        self._id_prefix = b"req-%b-" % os.urandom(6).hex().encode()
        self._ids = 0

    def protocol(self) -> type[GatewayProtocol]:
        """The protocol class that uvicorn makes for each connection of this server."""
        return type("BoundGatewayProtocol", (GatewayProtocol,), {"gateway": self})

    def next_request_id(self) -> bytes:
        self._ids += 1
        return b"%b%x" % (self._id_prefix, self._ids)

    def connected(self, protocol: GatewayProtocol) -> None:
        self.connections.add(protocol)
        if self._sweep is None:
            self._sweep = self._loop.call_later(SWEEP_S, self._look_at_all)

    def left(self, exchange: Exchange) -> None:
        self.active.discard(exchange)
        self.answered += 1

    async def close(self) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
        await self.tasks.close()

    def _look_at_all(self) -> None:
        """One timer for all time-outs, heartbeats and idle connections: none is set per request."""
        self._sweep = None
        now = self.now()
        for exchange in tuple(self.active):
            exchange.look(now)
        idle_since = now - self.settings.keep_alive_s
        for protocol in tuple(self.connections):
            if protocol.idle_since is not None and protocol.idle_since < idle_since:
                protocol.transport.close()
        if self.connections:
            self._sweep = self._loop.call_later(SWEEP_S, self._look_at_all)


class GatewayProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol, with POSTs to inference routes taken out."""

    gateway: Gateway
    cycle: Any
    """The newest request read: an Exchange, or uvicorn's own cycle."""
    serving: Exchange | None = None
    """The exchange whose answer is being written; an older one than `cycle` when a client
    pipelines."""

    idle_since: float | None = None
    """Since when the connection waits for a further request, after an exchange."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.gateway.connected(self)

    def on_message_begin(self) -> None:
        self.idle_since = None
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        route = INFERENCE.get(self.url.partition(b"?")[0])
        if route is None or self.parser.get_method() != b"POST":
            self._leave_to_asgi()
            return
        before = self.cycle
        version = self.parser.get_http_version()
        keep_alive = version != "1.0" and self.parser.should_keep_alive()
        self.cycle = Exchange(self, self.gateway, route, self.headers, version, keep_alive)
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def on_body(self, body: bytes) -> None:
        if isinstance(self.cycle, Exchange):
            self.cycle.receive(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if isinstance(self.cycle, Exchange):
            self.cycle.more_body = False
            self.cycle.set()
        else:
            super().on_message_complete()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if isinstance(cycle, Exchange):
            self.serving = cycle
            cycle.begin()
        else:
            super()._start_asgi_task(cycle, app)

    def exchange_ended(self) -> None:
        """What uvicorn does when a response is complete, without setting a timer for each."""
        self.serving = None
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        else:
            self.idle_since = self.gateway.now()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gateway.connections.discard(self)
        unserved = [cycle for cycle, _ in self.pipeline]
        self.pipeline.clear()
        super().connection_lost(exc)
        for exchange in (self.serving, *unserved):
            if isinstance(exchange, Exchange):
                exchange.client_left()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.serving is not None:
            self.serving.hold_engine()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.serving is not None:
            self.serving.resume_engine()

    def _leave_to_asgi(self) -> None:
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.headers, self.expect_100_continue = url, headers, expects
        self.scope["headers"] = headers
        super().on_headers_complete()
