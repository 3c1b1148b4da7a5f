"""One inference request and its answer, between a client's connection and an engine's.

Laws of this file:
- An exchange ends exactly once (`_end`): its lease is given back there, whatever ended it.
- The client's framing is ours: what the engine sent as framing, hop-by-hop or CORS headers, stays
  behind, and so do the client's credentials on the way in.
- An error before the first byte has its own status; after it, a stream gets an error event in the
  dialect's shape, and any other answer is visibly cut, never quietly completed.
- A remote model's request may go to one upstream after another, until the first byte of an answer
  has reached the client. What the client says of itself stays here, but for
  `remotes.TO_REMOTES`.
- A client that reads slowly stops the reading from its engine; a client that leaves stops the work.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from modelyard.core.errors import (
    BadEngineAnswer,
    BodyTooLarge,
    EngineDied,
    EngineTimeout,
    ModelyardError,
    RequestTimeout,
    UpstreamRedirects,
    UpstreamRefusesKey,
    WrongTask,
)
from modelyard.core.specs import ModelSpec
from modelyard.engines.dialect import Dialect
from modelyard.http import openai, remotes
from modelyard.http.errors import JSON_TYPE, headers_of, openai_error, status_of
from modelyard.http.routes import Route, request_line
from modelyard.runtime.failover import Failover
from modelyard.runtime.upstream import Connection, Headers, Lease, Upstream

if TYPE_CHECKING:
    from modelyard.http.gateway import Gateway, GatewayProtocol

GONE_WAIT_S = 2.0
"""How long a request whose engine refused it waits for news of that engine's end."""
MAX_ENGINE_ERROR = 64 * 1024
"""Bytes of an engine's error answer that are read."""
MAX_REWRITTEN = 32 * 1024 * 1024
"""Bytes of an answer that is rewritten as a whole."""
MAX_REQUEST_ID = 128
LINGER_S = 1.0
"""How long the rest of a refused body is read and dropped, so that the client sees the answer."""

HEARTBEAT = b": ping\n"
"""One newline: a comment followed by an empty line makes some clients see an empty event."""

NOT_FORWARDED = frozenset(
    b"accept-encoding authorization connection content-length cookie expect host keep-alive origin "
    b"proxy-authorization proxy-connection referer te trailer transfer-encoding upgrade x-api-key "
    b"x-request-id".split()
)
NOT_RETURNED = frozenset(
    b"access-control-allow-credentials access-control-allow-headers access-control-allow-methods "
    b"access-control-allow-origin access-control-expose-headers alt-svc clear-site-data connection "
    b"content-length date keep-alive nel openai-organization openai-project proxy-authenticate "
    b"proxy-connection report-to server set-cookie strict-transport-security te trailer "
    b"transfer-encoding upgrade www-authenticate x-request-id".split()
)
EVENT_STREAM = b"text/event-stream"
STREAM_HEADERS: Headers = [(b"content-type", EVENT_STREAM), (b"cache-control", b"no-cache")]


class Phase(IntEnum):
    """Where an exchange is. It only ever moves down this list, but for a retried connection."""

    READING = 0
    WAITING = 1
    SENDING = 2
    ANSWERING = 3
    DONE = 4


class Exchange:
    """One inference request and its answer. Stands where uvicorn keeps its cycle."""

    # What uvicorn's protocol reads and writes of a cycle, beside `body`:
    more_body = True
    response_complete = False
    disconnected = False

    # Most exchanges leave these as they are; making one costs only what is set in __init__.
    _phase = Phase.READING
    _begun = False
    _request_id = b""
    _credential = b""
    _error: ModelyardError | None = None
    _spec: ModelSpec | None = None
    _is_stream = False
    _ticket = 0
    _lease: Lease | None = None
    _connection: Connection | None = None
    _retried = False
    _tried: tuple[Upstream, ...] = ()
    """Upstreams of a remote model that were asked; the last one is being asked."""
    _wants_stream = False
    _next_beat = 0.0
    _head = b""
    """The head of the answer, until it is written together with the first part of the body."""
    _head_sent = False
    _chunked = False
    _last_part = b""
    _heard = True
    """Whether anything came from the engine since the last look."""
    _error_status = 0
    _error_body = b""
    _retry_after: Headers = []  # noqa: RUF012 - replaced, never changed
    """What an engine's error says of when to come again."""
    _named: str | None = None
    """The model's name as the client wrote it."""
    _rewrite: Callable[[bytes, bytes], bytes] | None = None
    """From the engine's whole answer and the request to what the client gets."""
    _kept: tuple[int, Headers] | None = None
    """Status and headers of an answer that is kept until it is whole."""

    def __init__(
        self,
        protocol: GatewayProtocol,
        gateway: Gateway,
        route: Route,
        headers: Headers,
        http_version: str,
        keep_alive: bool,
    ) -> None:
        self.body = bytearray()
        self.keep_alive = keep_alive
        self._protocol = protocol
        self._gateway = gateway
        self._write = protocol.transport.write
        self._route = route
        self._may_chunk = http_version != "1.0"
        self._since = gateway.now()
        self._forwarded = self._look_at_headers(headers)
        gateway.active.add(self)

    # ------------------------------------------------------------------------ the client's request

    @property
    def message_event(self) -> Exchange:
        """uvicorn sets a cycle's event when the body is complete and when the client is gone."""
        return self

    def set(self) -> None:
        if self.disconnected:
            self.client_left()
        elif self._begun and not self.more_body:
            if self._phase is Phase.READING:
                self._dispatch()
            elif self._phase is Phase.DONE:  # refused earlier; now nothing is left unread
                self._protocol.transport.close()

    def begin(self) -> None:
        """It is this exchange's turn on its connection."""
        self._begun = True
        if self._error is not None:
            self._refuse(self._error)
        elif self._expects_continue():
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.set()

    def receive(self, data: bytes) -> None:
        """A part of the body."""
        if self._error is not None or self._phase is not Phase.READING:
            return
        limit = self._gateway.settings.max_body_bytes
        if len(self.body) + len(data) > limit:
            self._reject(BodyTooLarge(limit))
        else:
            self._heard = True
            self.body += data

    def client_left(self) -> None:
        """The client's connection is gone: whatever was done for it stops."""
        self.disconnected = True
        if self._phase is not Phase.DONE:
            self._end(served=False)

    def look(self, now: float) -> None:
        """Time-outs and heartbeats; called a few times a second."""
        settings = self._gateway.settings
        if self._heard:
            self._heard = False
            self._since = now
        silent_s = now - self._since
        if self._phase is Phase.READING:
            if self._begun and silent_s > settings.body_timeout_s:
                self._reject(RequestTimeout("the request body took too long to arrive"))
            return
        if self._is_stream and self._phase is not Phase.ANSWERING and now >= self._next_beat:
            self._next_beat = now + settings.heartbeat_every_s
            self._beat()
        if self._phase is not Phase.WAITING and self._spec is not None:
            bound_s = self._spec.limits.response_timeout_s
            if silent_s > bound_s and not self._protocol.flow.write_paused:
                error = EngineTimeout(self._spec.id, bound_s)
                if self._lease is not None:
                    self._blame(self._lease, str(error))
                self._fail(error)

    def _look_at_headers(self, headers: Headers) -> list[bytes]:
        """Note what concerns the gateway; return the lines that go on to the engine."""
        gateway = self._gateway
        host = origin = None
        forwarded: list[bytes] = []
        for name, value in headers:
            if name not in NOT_FORWARDED:
                forwarded += (name, b": ", value, b"\r\n")
            elif name == b"host":
                host = value
            elif name == b"origin":
                origin = value
            elif name == b"content-length" and int(value) > gateway.settings.max_body_bytes:
                self._error = BodyTooLarge(gateway.settings.max_body_bytes)
            elif name == b"x-request-id" and _is_sane_id(value):
                self._request_id = value
            elif name == b"authorization" or name == b"x-api-key":
                self._credential = value
        if not self._request_id:
            self._request_id = gateway.next_request_id()
        self._error = gateway.door.refusal(host, origin) or self._error
        return forwarded

    def _expects_continue(self) -> bool:
        return self._protocol.expect_100_continue and self.more_body

    def _reject(self, error: ModelyardError) -> None:
        """Refuse a request whose body is not read to its end."""
        self._error = error
        self.keep_alive = False
        if self._begun:
            self._refuse(error)

    def _dispatch(self) -> None:
        """The request is complete: find its model and get in line for it."""
        try:
            seen = openai.peek(self.body)
            spec = self._gateway.yard.names.resolve(seen.model or "")
            if self._route.task not in spec.tasks:
                raise WrongTask(spec.id, sorted(spec.tasks), self._route.task)
        except ModelyardError as error:
            self._refuse(error)
            return
        self._spec = spec
        self._named = seen.model
        if seen.stream and self._route.streams:
            self._is_stream = self._wants_stream = True
            self._next_beat = self._since + self._gateway.settings.heartbeat_after_s
        self._acquire(spec)

    def _acquire(self, spec: ModelSpec) -> None:
        yard = self._gateway.yard
        prefix = openai.prefix(self.body) if spec.replicas.max > 1 else None
        lease = yard.lease(spec.id, prefix)
        if lease is not None:
            self.granted(lease)
            return
        self._phase = Phase.WAITING
        ticket = yard.wait(spec.id, self, self._sender())
        if self._phase is Phase.WAITING:
            self._ticket = ticket

    def _sender(self) -> str:
        """Who shares turns with this request in a queue: the same credential, else the same host.

        No credential is kept or shown: it stands here by its digest.
        """
        if self._credential:
            return hashlib.sha256(self._credential).hexdigest()[:16]
        client = self._protocol.client
        return client[0] if client else ""

    # ---------------------------------------------------------------------------- the engine's turn

    def granted(self, lease: Lease) -> None:
        """A replica is ours: send it the request."""
        self._ticket = 0
        self._lease = lease
        self._phase = Phase.SENDING
        self._heard = True
        if lease.upstream.failover is None:
            self._reach(lease, lease.upstream)
        elif not self._ask_next(lease, lease.upstream.failover):
            self._fail(lease.upstream.failover.error((), ""))

    def refused(self, error: ModelyardError) -> None:
        """No replica will be ours."""
        self._ticket = 0
        self._refuse(error)

    def _reach(self, lease: Lease, upstream: Upstream) -> None:
        connection = upstream.idle_connection()
        if connection is not None:
            self._send(connection)
        else:
            self._gateway.tasks.spawn(self._connect(lease, upstream), "connect to an engine")

    async def _connect(self, lease: Lease, upstream: Upstream) -> None:
        try:
            connection = await upstream.connect()
        except OSError as error:
            if lease.upstream.failover is None:
                await self._unreachable(lease, error)
            elif self._phase is Phase.SENDING:
                self._failed_there(lease, lease.upstream.failover, remotes.words_of(error))
            return
        if self._phase is Phase.SENDING and self._lease is lease:
            self._send(connection)
        else:
            connection.close()

    def _ask_next(self, lease: Lease, failover: Failover) -> bool:
        """Send the request to an upstream that has not had it; whether there is one."""
        upstream = failover.next(self._tried)
        if upstream is None:
            return False
        self._tried = (*self._tried, upstream)
        self._reach(lease, upstream)
        return True

    def _failed_there(self, lease: Lease, failover: Failover, why: str) -> None:
        """The upstream asked last gave no answer: ask another one, or give up."""
        failover.failed(self._tried[-1], why)
        if not (self._starts_over() and self._ask_next(lease, failover)):
            self._fail(failover.error(self._tried, why))

    def _starts_over(self) -> bool:
        """Forget an answer of which nothing has reached the client; False if something has."""
        if self._last_part and self._kept is None:
            return False
        self._phase = Phase.SENDING
        self._connection = None
        self._kept = None
        self._last_part = self._error_body = b""
        self._error_status = 0
        if not self._head_sent:
            self._head = b""
            self._chunked = False
            self._is_stream = self._wants_stream
        self._heard = True
        return True

    def _blame(self, lease: Lease, why: str) -> None:
        """Whoever has been asked has broken down."""
        failover = lease.upstream.failover
        if failover is None:
            lease.upstream.broken()
        elif self._tried:
            failover.failed(self._tried[-1], why)

    async def _unreachable(self, lease: Lease, error: OSError) -> None:
        """The engine took no connection, so it never saw the request: try once more."""
        if self._phase is not Phase.SENDING or self._spec is None:
            return
        if self._retried:
            self._fail(EngineDied(self._spec.id, str(error) or type(error).__name__))
            return
        self._retried = True
        lease.close(served=False)
        try:
            async with asyncio.timeout(GONE_WAIT_S):
                await lease.upstream.gone.wait()
        except TimeoutError:
            pass  # it lives and may take connections again
        if self._phase is Phase.SENDING:
            self._acquire(self._spec)

    def _send(self, connection: Connection) -> None:
        self._connection = connection
        first = self._route.engine_request
        body: bytes | bytearray = self.body
        if connection.upstream.dialect is not None:
            first, body = self._translated(connection.upstream.dialect)
        is_remote = bool(self._tried)
        request: list[bytes | bytearray] = [
            first,
            connection.upstream.own_headers,
            *(remotes.fit_to_leave(self._forwarded) if is_remote else self._forwarded),
            b"x-request-id: %b\r\ncontent-length: %d\r\n\r\n" % (self._request_id, len(body)),
            body,
        ]
        connection.send(self, b"".join(request))

    def _translated(self, dialect: Dialect) -> tuple[bytes, bytes]:
        """The request as this engine wants it; its answer will be as the client wants it."""
        task = self._route.task
        self._rewrite = dialect.answers.get(task)
        path = dialect.paths.get(task)
        first = self._route.engine_request if path is None else request_line(path.encode())
        return first, dialect.request(task, bytes(self.body), self._named)

    def hold_engine(self) -> None:
        if self._connection is not None and self._phase is Phase.ANSWERING:
            self._connection.pause_reading()

    def resume_engine(self) -> None:
        if self._connection is not None and self._phase is Phase.ANSWERING:
            self._connection.resume_reading()
            self._heard = True

    # -------------------------------------------------------------------------- the engine's answer

    def answer_begins(self, status: int, headers: Headers, length: int | None) -> None:
        self._phase = Phase.ANSWERING
        if self._protocol.flow.write_paused:
            self.hold_engine()
        if status >= 300:
            self._answer_refuses(status, headers)
        elif not self._head_sent:
            returned = [header for header in headers if header[0] not in NOT_RETURNED]
            if self._rewrite is not None:
                self._kept = status, returned
                return
            self._is_stream = any(n == b"content-type" and EVENT_STREAM in v for n, v in returned)
            self._head = self._head_of(status, returned, length)

    def _answer_refuses(self, status: int, headers: Headers) -> None:
        """The answer is a redirect or an error: ask somebody else, or pass it on in our words."""
        assert self._lease is not None, "asked with a lease"
        assert self._spec is not None, "asked for a model"
        if status < 400:
            self._fail(UpstreamRedirects(self._spec.id, status, remotes.place_in(headers)))
            return
        failover = self._lease.upstream.failover
        if failover is not None:
            asked = self._tried[-1]
            if status in remotes.REFUSED:
                self._fail(UpstreamRefusesKey(self._spec.id, failover.name_of(asked), status))
                return
            if failover.is_asked_elsewhere(asked, status, headers):
                connection = self._connection
                self._starts_over()  # nothing of an answer whose head has just come is sent
                if self._ask_next(self._lease, failover):
                    if connection is not None:
                        connection.abort()
                    return
                self._phase, self._connection = Phase.ANSWERING, connection
        self._error_status = status
        self._retry_after = [header for header in headers if header[0] == b"retry-after"]

    def answer_continues(self, body: bytes, complete: bool) -> None:
        self._heard = True
        if self._error_status:
            self._engine_error(body, complete)
            return
        if self._kept is not None:
            self._keep(body, complete)
            return
        if body:
            self._last_part = body
            if self._chunked:
                body = b"%x\r\n%b\r\n" % (len(body), body)
        if complete and self._chunked:
            body += b"0\r\n\r\n"
        if self._head:
            self._head_sent = True
            body = self._head + body
            self._head = b""
        self._write(body)
        if complete:
            self._end(served=True)

    def _keep(self, body: bytes, complete: bool) -> None:
        """Collect an answer that is rewritten as a whole, and send it when it is complete."""
        assert self._kept is not None, "kept from its beginning"
        assert self._rewrite is not None, "kept to be rewritten"
        assert self._spec is not None, "answered for a model"
        self._last_part += body
        if len(self._last_part) > MAX_REWRITTEN:
            self._fail(BadEngineAnswer(self._spec.id, f"it is larger than {MAX_REWRITTEN} bytes"))
        elif complete:
            status, headers = self._kept
            whole = self._rewrite(self._last_part, bytes(self.body))
            self._whole_answer(status, headers, whole, served=True)

    def answer_fails(self, error: ModelyardError) -> None:
        connection, self._connection = self._connection, None
        lease = self._lease
        if lease is None or lease.upstream.failover is None or connection is None:
            self._fail(error)
        elif self._last_part and self._kept is None:  # too late for another upstream
            self._blame(lease, str(error))
            self._fail(error)
        elif connection.is_used and self._phase is Phase.SENDING:
            # It was pooled, and closed before it had the request: its upstream did nothing wrong.
            self._gateway.tasks.spawn(
                self._connect(lease, connection.upstream), "connect to an engine"
            )
        else:
            self._failed_there(lease, lease.upstream.failover, str(error))

    def _engine_error(self, body: bytes, complete: bool) -> None:
        if len(self._error_body) < MAX_ENGINE_ERROR:
            self._error_body += body
        if not complete:
            return
        status = self._error_status
        shaped = openai.engine_error(status, self._error_body)
        if self._head_sent:
            self._finish_stream(b"data: " + shaped + b"\n\n", served=True)
        else:
            self._whole_answer(status, [JSON_TYPE, *self._retry_after], shaped, served=True)

    # -------------------------------------------------------------------------------------- endings

    def _fail(self, error: ModelyardError) -> None:
        """The engine or the request broke down: say so as well as it can still be said."""
        if self._phase is Phase.DONE:
            return
        if not self._head_sent:
            self._refuse(error)
        elif self._is_stream:
            self._finish_stream(openai.error_event(error), served=False)
        else:
            self.keep_alive = False
            self._end(served=False)

    def _refuse(self, error: ModelyardError) -> None:
        """Answer with an error that is ours."""
        if self._phase is Phase.DONE:
            return
        if self._head_sent:
            self._finish_stream(openai.error_event(error), served=False)
        else:
            self._whole_answer(
                status_of(error), headers_of(error), openai_error(error), served=False
            )

    def _whole_answer(self, status: int, headers: Headers, body: bytes, *, served: bool) -> None:
        if self.more_body:  # what is left of the request is not read
            self.keep_alive = False
        self._write(self._head_of(status, headers, len(body)) + body)
        self._end(served=served)

    def _finish_stream(self, event: bytes, *, served: bool) -> None:
        if self._last_part and not self._last_part.endswith(b"\n\n"):
            event = b"\n\n" + event
        if self._chunked:
            event = b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event)
        self._write(event)
        self._end(served=served)

    def _beat(self) -> None:
        """Keep a waiting client's stream alive; the first beat sends the head."""
        beat = HEARTBEAT
        head = b"" if self._head_sent else self._head_of(200, STREAM_HEADERS, None)
        if self._chunked:
            beat = b"%x\r\n%b\r\n" % (len(beat), beat)
        self._head_sent = True
        self._write(head + beat)

    def _head_of(self, status: int, headers: Headers, length: int | None) -> bytes:
        """The head of an answer, and with it how its body is framed."""
        if length is not None:
            framing = b"content-length: %d\r\n" % length
        elif self._may_chunk:
            self._chunked = True
            framing = b"transfer-encoding: chunked\r\n"
        else:  # HTTP/1.0: the body ends with the connection
            self.keep_alive = False
            framing = b""
        out = [STATUS_LINE[status]]
        for name, value in self._protocol.server_state.default_headers:
            out += (name, b": ", value, b"\r\n")
        for name, value in headers:
            out += (name, b": ", value, b"\r\n")
        ending = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        out += (b"x-request-id: ", self._request_id, b"\r\n", framing, ending)
        return b"".join(out)

    def _end(self, *, served: bool) -> None:
        """The exchange is over: give everything back, let the connection's next request begin."""
        self._phase = Phase.DONE
        if self._ticket and self._spec is not None:
            self._gateway.yard.leave(self._spec.id, self._ticket)
        connection, self._connection = self._connection, None
        if connection is not None and not served:
            connection.abort()
        if self._lease is not None:
            self._lease.close(served=served)
        self._gateway.left(self)
        self.response_complete = True
        if self.disconnected:
            return
        transport = self._protocol.transport
        if self.more_body:  # closing on unread bytes would reset the connection under the answer
            self._protocol.loop.call_later(LINGER_S, transport.close)
            return
        if not self.keep_alive:
            transport.close()
        self._protocol.exchange_ended()


def _is_sane_id(value: bytes) -> bool:
    return len(value) <= MAX_REQUEST_ID and value.isascii() and value.decode().isprintable()
