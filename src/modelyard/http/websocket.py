"""A WebSocket from a client to an engine that has one: we read the handshake and pass the rest.

Laws of this file:
- Who may ask a model may open a WebSocket to it, and nobody else: host, origin and key are checked
  as for any request, and the lease is held until both ends are closed.
- The engine's handshake is checked; its headers stay behind, but for those of the handshake.
- Frames are not looked into. Either end is read only as fast as the other takes what it gets.
- Silence of both is bounded, and so is what a client sends before its engine has answered.
- A key that a browser puts into the list of subprotocols stays here.

Sources: RFC 6455 (4.1, 4.2 handshakes), OpenAI's Realtime API (`/v1/realtime?model=`, and the
subprotocol `openai-insecure-api-key.KEY` of browsers), vLLM's route of the same name.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import time
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, cast
from urllib.parse import parse_qs, parse_qsl, urlencode

from modelyard.core.errors import (
    BadEngineAnswer,
    EngineDied,
    EngineTimeout,
    InvalidRequest,
    ModelyardError,
    RequestCancelled,
)
from modelyard.core.specs import ModelSpec
from modelyard.http.access import ANYONE, Caller, resolved
from modelyard.http.head import WrongHead
from modelyard.http.record import Record
from modelyard.http.request_head import CREDENTIALS, NOT_FORWARDED
from modelyard.http.turns import answer_to
from modelyard.runtime.upstream import Headers, Lease

if TYPE_CHECKING:
    from modelyard.http.gateway import Gateway, GatewayProtocol

PATHS = frozenset({b"/v1/realtime"})
"""Where clients open WebSockets; engines know the same paths."""
MAX_EARLY_BYTES = 64 * 1024
"""What a client may send before its engine has answered."""
MAX_HEAD_BYTES = 16 * 1024
HANDSHAKE_S = 30.0
"""How long an engine may take to answer the handshake."""
SWITCHING = 101

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY_PROTOCOL = b"openai-insecure-api-key."
_PASSED_ON = frozenset({b"sec-websocket-protocol", b"sec-websocket-extensions"})
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5]\d\d)[ \r\n]")
_KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")


class Phase(IntEnum):
    """Where a WebSocket is."""

    READING = 0
    WAITING = 1
    SENDING = 2
    ANSWERING = 3
    DONE = 4


def wants_websocket(headers: Headers) -> bool:
    """Whether a head that asks for another protocol asks for this one."""
    return any(name == b"upgrade" and value.lower() == b"websocket" for name, value in headers)


def accept_of(key: bytes) -> bytes:
    """What a server answers to a handshake's key (RFC 6455, 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())


class Tunnel:
    """One WebSocket. Stands where uvicorn keeps its cycle, as the last one of its connection."""

    more_body = False
    keep_alive = False
    disconnected = False
    response_complete = False

    def __init__(
        self, protocol: GatewayProtocol, gateway: Gateway, target: bytes, headers: Headers
    ) -> None:
        self._protocol = protocol
        self._gateway = gateway
        self._target = target
        self._headers = headers
        self._wanted = _Wanted(headers)
        self._caller: Caller = ANYONE
        self._held = 0
        self._spec: ModelSpec | None = None
        self._ticket = 0
        self._lease: Lease | None = None
        self._engine: _EngineSide | None = None
        self._early = b""
        self._phase = Phase.READING
        self._heard = True
        self._began = self._since = gateway.now()
        self._id = gateway.next_request_id()
        path = target.partition(b"?")[0].decode("ascii")
        self.record = Record(self._id.decode(), time.time(), path, client=self._client_host)
        gateway.active.add(self)

    @property
    def _client_host(self) -> str:
        client = self._protocol.client
        return client[0] if client else ""

    @property
    def ticket(self) -> int:
        """What it waits for its model under; 0 if it does not wait."""
        return self._ticket

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def message_event(self) -> Tunnel:
        """uvicorn sets a cycle's event when the client is gone."""
        return self

    def set(self) -> None:
        """Nobody waits."""

    # ---------------------------------------------------------------------------- the client's side

    def begin(self) -> None:
        """It is this WebSocket's turn on its connection: find its model and get in line for it."""
        gateway, wanted = self._gateway, self._wanted
        try:
            gateway.door.check(wanted.host, wanted.origin)
            self._caller = gateway.access.caller(wanted.credential, self._client_host)
            wanted.check()
            spec = self._model()
            self._held = self._caller.enter(gateway.now(), 0)
        except ModelyardError as error:
            self.reject(error)
            return
        self._spec = spec
        self._phase = Phase.WAITING
        self._acquire(spec)

    def _model(self) -> ModelSpec:
        """The model that is named. Raises ModelyardError."""
        query = self._target.partition(b"?")[2].decode("latin-1")
        names = parse_qs(query, max_num_fields=100).get("model", [])
        if len(names) != 1:
            raise InvalidRequest(
                "a WebSocket names one model in its address", hint="add ?model=ID to it"
            )
        self.record.named = names[0]
        self.record.key = self._caller.name
        meaning = resolved(self._gateway.yard.names, names[0], self._caller)
        spec = meaning.spec
        self.record.model = spec.id
        if not meaning.is_engines:
            path = self._target.partition(b"?")[0]
            asked = [(name, value) for name, value in parse_qsl(query) if name != "model"]
            self._target = path + b"?" + urlencode([("model", spec.id), *asked]).encode()
        return spec

    def _acquire(self, spec: ModelSpec) -> None:
        yard = self._gateway.yard
        lease = yard.lease(spec.id)
        if lease is not None:
            self.granted(lease)
            return
        sender = self._caller.name or self._client_host
        ticket = yard.wait(spec.id, self, sender, self._caller.priority)
        if self._phase is Phase.WAITING:
            self._ticket = ticket

    def receive(self, data: bytes) -> None:
        """Bytes of the client."""
        self._heard = True
        self.record.bytes_in += len(data)
        if self._phase is Phase.ANSWERING and self._engine is not None:
            self._engine.write(data)
        elif self._phase is not Phase.DONE:
            self._early += data
            if len(self._early) > MAX_EARLY_BYTES:
                self.reject(InvalidRequest("the client did not wait for the handshake's end"))

    def reject(self, error: ModelyardError) -> None:
        """There will be no WebSocket, or no more of it."""
        if self._phase is Phase.DONE:
            return
        self.record.error = error.code
        if self._phase is not Phase.ANSWERING:
            protocol = self._protocol
            answer = answer_to(error, protocol.common_headers(self._id))
            self.record.status = int(answer[9:12])
            protocol.transport.write(answer)
            self._end(served=False)
            protocol.linger()
        else:
            self._end(served=False)
            self._protocol.transport.close()

    def cancel(self) -> None:
        """Somebody who may wants it ended."""
        self.reject(RequestCancelled("the request was cancelled by those who run this server"))

    def client_left(self) -> None:
        self.disconnected = True
        self._end(served=self._phase is Phase.ANSWERING)

    def hold_engine(self) -> None:
        if self._engine is not None:
            self._engine.pause_reading()

    def resume_engine(self) -> None:
        self._heard = True
        if self._engine is not None:
            self._engine.resume_reading()

    def look(self, now: float) -> None:
        """Time-outs; called a few times a second."""
        if self._heard:
            self._heard = False
            self._since = now
        silent_s = now - self._since
        if self._phase is Phase.SENDING and silent_s > HANDSHAKE_S:
            self.reject(EngineTimeout(self.record.model, HANDSHAKE_S))
        elif self._phase is Phase.ANSWERING and silent_s > self._gateway.settings.websocket_idle_s:
            self.record.error = "idle"
            self._end(served=True)
            self._protocol.transport.close()

    # ---------------------------------------------------------------------------- the engine's side

    def granted(self, lease: Lease) -> None:
        """A replica is ours: open a connection to it."""
        self._ticket = 0
        if self._phase is Phase.DONE:
            lease.close(served=False)
            return
        self._lease = lease
        self._phase = Phase.SENDING
        self._heard = True
        self.record.queue_s = self._gateway.now() - self._began
        if lease.upstream.failover is not None:
            name = self.record.model
            self.reject(InvalidRequest(f"no WebSocket leads to {name!r}: it is elsewhere"))
            return
        self._gateway.tasks.spawn(self._connect(lease), "connect to an engine")

    def refused(self, error: ModelyardError) -> None:
        """No replica will be ours."""
        self._ticket = 0
        self.reject(error)

    async def _connect(self, lease: Lease) -> None:
        upstream = lease.upstream
        engine = _EngineSide(self)
        try:
            await upstream.dial(lambda: engine)
        except OSError as error:
            upstream.broken()
            self.reject(EngineDied(upstream.model, str(error) or type(error).__name__))
            return
        if self._phase is not Phase.SENDING:
            engine.close()
            return
        self._engine = engine
        engine.write(
            b"GET %b HTTP/1.1\r\n%b%bx-request-id: %b\r\n\r\n"
            % (self._target, upstream.own_headers, self._wanted.forwarded(), self._id)
        )

    def engine_says(self, head: bytes) -> None:
        """The head of the engine's answer."""
        assert self._lease is not None, "asked with a lease"
        model = self._lease.upstream.model
        found = _STATUS.match(head)
        if found is None:
            self._broken(BadEngineAnswer(model, "it does not speak HTTP"))
            return
        status = int(found[1])
        if status in (404, 405, 426, 501):
            path = self.record.route
            self.reject(InvalidRequest(f"the engine of {model!r} has no WebSocket at {path}"))
            return
        if status != SWITCHING:
            text = f"it answered the handshake with status {status}"
            self.reject(BadEngineAnswer(model, text))
            return
        lines = dict(_lines(head))
        if lines.get(b"sec-websocket-accept") != accept_of(self._wanted.key):
            self._broken(BadEngineAnswer(model, "its handshake does not belong to ours"))
            return
        self._open(lines)

    def _open(self, lines: dict[bytes, bytes]) -> None:
        """Both ends agree: what comes from now on is theirs."""
        assert self._engine is not None, "it has answered"
        protocol = self._protocol
        out = [b"HTTP/1.1 101 Switching Protocols\r\n", protocol.own_lines()]
        out.append(b"upgrade: websocket\r\nconnection: Upgrade\r\nx-request-id: %b\r\n" % self._id)
        out.append(b"sec-websocket-accept: %b\r\n" % accept_of(self._wanted.key))
        out += [b"%b: %b\r\n" % (name, lines[name]) for name in _PASSED_ON if name in lines]
        self._phase = Phase.ANSWERING
        self._heard = True
        self.record.status = SWITCHING
        self.record.stream = True
        protocol.transport.write(b"".join([*out, b"\r\n"]))
        early, self._early = self._early, b""
        if early:
            self._engine.write(early)
        if protocol.flow.write_paused:
            self.hold_engine()

    def engine_sends(self, data: bytes) -> None:
        """Bytes of the engine, after the handshake."""
        self._heard = True
        self.record.bytes_out += len(data)
        if self._phase is Phase.ANSWERING:
            self._protocol.transport.write(data)

    def engine_left(self, error: Exception | None) -> None:
        """The engine's end is closed."""
        if self._phase is Phase.DONE:
            return
        if self._phase is Phase.ANSWERING and error is None:
            self._end(served=True)
            self._protocol.transport.close()
        else:
            self._broken(EngineDied(self.record.model, str(error or "its connection closed")))

    def engine_is_slow(self, slow: bool) -> None:
        """Whether the engine takes what it gets more slowly than the client sends it."""
        if slow:
            self._protocol.flow.pause_reading()
        else:
            self._protocol.flow.resume_reading()

    def _broken(self, error: ModelyardError) -> None:
        if self._lease is not None:
            self._lease.upstream.broken()
        self.reject(error)

    def _end(self, *, served: bool) -> None:
        """Give everything back, once."""
        if self._phase is Phase.DONE:
            return
        self._phase = Phase.DONE
        gateway, record = self._gateway, self.record
        if self._ticket and self._spec is not None:
            gateway.yard.leave(self._spec.id, self._ticket)
        if self._engine is not None:
            self._engine.close()
        if self._lease is not None:
            self._lease.close(served=served)
        record.total_s = gateway.now() - self._began
        record.status = record.status or 499
        if self._spec is not None:
            self._caller.leave(self._held, record, gateway.now())
        self._early = b""
        self.response_complete = True
        gateway.left(self)


class _Wanted:
    """What a client's handshake says."""

    def __init__(self, headers: Headers) -> None:
        self.host: bytes | None = None
        self.origin: bytes | None = None
        self.key = b""
        self.credential = b""
        self._version = b""
        self._others: list[bytes] = []
        for name, value in headers:
            self._take(name, value)

    def _take(self, name: bytes, value: bytes) -> None:
        if name == b"host":
            self.host = value
        elif name == b"origin":
            self.origin = value
        elif name == b"sec-websocket-key":
            self.key = value.strip()
        elif name == b"sec-websocket-version":
            self._version = value.strip()
        elif name == b"authorization" or (name in CREDENTIALS and not self.credential):
            self.credential = value
        elif name == b"sec-websocket-protocol":
            self._take_protocols(value)
        elif name not in NOT_FORWARDED:
            self._others.append(b"%b: %b\r\n" % (name, value))

    def _take_protocols(self, value: bytes) -> None:
        protocols = [part.strip() for part in value.split(b",")]
        for protocol in protocols:
            if protocol.startswith(_KEY_PROTOCOL) and not self.credential:
                self.credential = protocol.removeprefix(_KEY_PROTOCOL)
        kept = [each for each in protocols if not each.startswith(_KEY_PROTOCOL)]
        if kept:
            self._others.append(b"sec-websocket-protocol: %b\r\n" % b", ".join(kept))

    def check(self) -> None:
        """Raises a ModelyardError for what is no handshake of RFC 6455."""
        if self._version != b"13":
            raise WrongHead("upgrade_required", "the version of WebSockets spoken here is 13")
        if not _KEY.fullmatch(self.key):
            raise InvalidRequest("the handshake has no Sec-WebSocket-Key of 16 bytes in base64")

    def forwarded(self) -> bytes:
        """Header lines of the engine's handshake."""
        own = b"upgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-version: 13\r\n"
        return own + b"sec-websocket-key: %b\r\n" % self.key + b"".join(self._others)


class _EngineSide(asyncio.Protocol):
    """The connection to the engine."""

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel
        self._transport: asyncio.Transport | None = None
        self._head = b""
        self._is_open = False
        """Whether the head of the engine's answer is complete."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._is_open:
            self._tunnel.engine_sends(data)
            return
        self._head += data
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if end:
            self._is_open = True
            self._head = b""
            self._tunnel.engine_says(head + end)
            if rest:
                self._tunnel.engine_sends(rest)
        elif len(self._head) > MAX_HEAD_BYTES:
            self._lost(ValueError("its answer to the handshake has no end"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(exc)

    def pause_writing(self) -> None:
        self._tunnel.engine_is_slow(True)

    def resume_writing(self) -> None:
        self._tunnel.engine_is_slow(False)

    def write(self, data: bytes) -> None:
        self._if_open(lambda transport: transport.write(data))

    def pause_reading(self) -> None:
        self._if_open(lambda transport: transport.pause_reading())

    def resume_reading(self) -> None:
        self._if_open(lambda transport: transport.resume_reading())

    def close(self) -> None:
        """Close; what the engine would not take is dropped."""
        if self._transport is not None and not self._transport.is_closing():
            if self._transport.get_write_buffer_size():
                self._transport.abort()
            else:
                self._transport.close()

    def _if_open(self, use: Callable[[asyncio.Transport], None]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            use(self._transport)

    def _lost(self, error: Exception | None) -> None:
        self._tunnel.engine_left(error)
        self.close()


def _lines(head: bytes) -> list[tuple[bytes, bytes]]:
    """The header lines of a head, with names in lower case."""
    pairs = (line.partition(b":") for line in head.split(b"\r\n")[1:] if line)
    return [(name.strip().lower(), value.strip()) for name, _, value in pairs]
