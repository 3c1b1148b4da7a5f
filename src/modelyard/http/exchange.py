"""One inference request and its answer, between a client's connection and an engine's.

Laws of this file:
- An exchange ends exactly once (`_end`): its lease is given back and its record is complete there,
  whatever ended it.
- What the client says of its credentials stays here, and of a remote's client nearly all does.
- An error before the first byte has its own status; after it, a stream gets an error event in the
  dialect's shape, and any other answer is visibly cut, never quietly completed.
- A client that reads slowly stops the reading from its engine; a client that leaves stops the work.
- An engine is asked for its usage always, and a client that did not ask does not see it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from enum import IntEnum
from typing import TYPE_CHECKING

from modelyard.core.errors import (
    BadEngineAnswer,
    BodyTooLarge,
    EngineTimeout,
    ModelNotFound,
    ModelyardError,
    RequestCancelled,
    RequestTimeout,
)
from modelyard.core.specs import ModelSpec
from modelyard.dialects import openai as openai_dialect
from modelyard.dialects.base import Problem, Reply, UnreadableAnswer
from modelyard.http import openai
from modelyard.http.access import ANYONE
from modelyard.http.answer import Answer, kept_of, look_at
from modelyard.http.asking import Asking
from modelyard.http.attempt import Attempt
from modelyard.http.captures import Capture
from modelyard.http.counts import note_whole
from modelyard.http.errors import JSON_TYPE, headers_of, problem_of
from modelyard.http.limits import limit_lines
from modelyard.http.loading import Company
from modelyard.http.record import Record
from modelyard.http.request_head import RequestHead
from modelyard.http.skim import Skim
from modelyard.http.usage import StreamTap, WholeTap
from modelyard.runtime.framing import AnswerHead, as_lines
from modelyard.runtime.relay import Relay
from modelyard.runtime.upstream import Buffer, Headers, Lease, Upstream

if TYPE_CHECKING:
    from modelyard.http.gateway import Gateway, GatewayProtocol

MAX_REWRITTEN = 32 * 1024 * 1024
"""Bytes of an answer that is rewritten as a whole."""
TOO_MANY = 429
ELSEWHERE = frozenset({
    "bad_engine_answer", "engine_died", "engine_start_failed", "engine_timeout",
    "insufficient_memory", "model_stopped", "no_device", "queue_full", "upstream_redirects",
    "upstream_refuses_key", "upstreams_failed", "wait_timeout",
})  # fmt: skip
"""Errors after which another model may do: they are the model's, not the request's."""
ANSWERING_LOOK_S = 1.0
"""How often time-outs of an answer that comes are looked at, at least."""
CLIENT_LEFT = 499
"""nginx's status for a client that left before its answer: nobody is ever told."""


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
    body: bytes | bytearray = b""
    _held: int | None = None
    """What the caller's limits hold back for this request; None until it has entered."""
    _capture: Capture | None = None
    _spec: ModelSpec | None = None
    _skim: Skim | None = None
    """Looks into a large body."""
    _targets: list[str]
    """Who else may be asked, for a virtual model."""
    _asking: Asking
    """Known from the moment that `_spec` is."""
    _is_stream = False
    _ticket = 0
    _attempt: Attempt | None = None
    _is_retried = False
    _next_beat = 0.0
    _company: Company | None = None
    """Known once the request has waited for so long that its client is told."""
    _heard = True
    """Whether anything came from the engine since the last look."""
    _next_look = 0.0
    """When time-outs are looked at next, while an answer comes."""
    _is_timed = False
    """Whether the model's shape bounds its time."""
    _tap: StreamTap | None = None
    """Reads a stream as it passes."""
    _relay: Relay | None = None
    """Sends on chunks of a stream as they come."""
    _relayed = 0
    """Events that it had sent on at the last look."""
    _whole: WholeTap | None = None
    """Reads any other answer, if that comes in parts."""
    _kept: tuple[int, Headers] | None = None
    """Status and headers of an answer that is kept until it is whole."""
    _parts: list[bytes]
    _kept_bytes = 0

    def __init__(self, protocol: GatewayProtocol, gateway: Gateway, head: RequestHead) -> None:
        self._protocol = protocol
        self._gateway = gateway
        self._head = head
        self._route = head.route
        self._error = head.error
        self._caller = head.caller
        self._began = self._since = gateway.now()
        self._request_id = head.request_id or gateway.next_request_id()
        self.record = Record(
            self._request_id.decode(), time.time(), head.path, head.client, head.caller.name
        )
        write: Callable[[bytes], None] = protocol.transport.write
        if gateway.captures.are_on:
            self._capture = gateway.captures.open(self.record, head.headers, write)
            write = self._capture.write
        self._answer = Answer(write, keep_alive=head.keep_alive, may_chunk=head.may_chunk)
        gateway.active.add(self)

    @property
    def keep_alive(self) -> bool:
        """uvicorn asks its cycles."""
        return self._answer.keep_alive

    @keep_alive.setter
    def keep_alive(self, wanted: bool) -> None:
        self._answer.keep_alive = wanted

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def ticket(self) -> int:
        """What it waits for its model under; 0 if it does not wait."""
        return self._ticket

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
                if len(self.body) > openai.LARGE_BODY:
                    self._gateway.after_others(self)
                else:
                    self._dispatch()
            elif self._phase is Phase.DONE:  # refused earlier; now nothing is left unread
                self._protocol.transport.close()

    def begin(self) -> None:
        """It is this exchange's turn on its connection."""
        self._begun = True
        if self._error is not None:
            self._refuse(self._error)
        elif self._head.expects_continue and self.more_body:
            self._protocol.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self.disconnected or not self.more_body:
            self.set()

    def begin_whole(self, body: bytes) -> None:
        """Begin with a request that has come whole; its length has been checked."""
        self.body = body
        self.more_body = False
        self._begun = True
        self._dispatch()

    def receive(self, data: bytes) -> None:
        """A part of the body."""
        if self._error is not None or self._phase is not Phase.READING:
            return
        limit = self._gateway.settings.max_body_bytes
        if len(self.body) + len(data) > limit:
            self.reject(BodyTooLarge(limit))
        else:
            self._heard = True
            if not self.body:
                self.body = data
            else:
                if isinstance(self.body, bytes):
                    self.body = bytearray(self.body)
                self.body += data

    def client_left(self) -> None:
        """The client's connection is gone: whatever was done for it stops."""
        self.disconnected = True
        if self._phase is not Phase.DONE:
            self.record.error = self.record.error or "client_left"
            self._end(served=False)

    def cancel(self) -> None:
        """Somebody who may wants the request ended: its engine stops, its client is told why."""
        error = RequestCancelled("the request was cancelled by those who run this server")
        if self._phase is Phase.READING:
            self.reject(error)
        else:
            self.fail(error)

    def look(self, now: float) -> None:
        """Time-outs and heartbeats; called a few times a second."""
        if now < self._next_look:
            return
        settings = self._gateway.settings
        if self._relay is not None and self._relay.events != self._relayed:
            self._relayed = self._relay.events
            self._heard = True
        if self._heard:
            self._heard = False
            self._since = now
            self.record.parts = self._events()
        silent_s = now - self._since
        if self._phase is Phase.READING:
            if self._begun and silent_s > settings.body_timeout_s:
                self.reject(RequestTimeout("the request body took too long to arrive"))
            return
        if self._is_stream and self._phase is not Phase.ANSWERING and now >= self._next_beat:
            self._keep_company(now)
        if self._is_late(now):
            return
        if self._phase is not Phase.WAITING and self._spec is not None:
            bound_s = self._spec.limits.response_timeout_s
            if self._phase is Phase.ANSWERING and not self._is_timed:
                self._next_look = now + min(ANSWERING_LOOK_S, bound_s / 8)
            if silent_s > bound_s and not self._protocol.flow.write_paused:
                error = EngineTimeout(self._spec.id, bound_s)
                if self._attempt is not None:
                    self._attempt.blame(str(error))
                self.fail(error)

    def _keep_company(self, now: float) -> None:
        """Tell a client that waits how it goes, or that somebody is there."""
        company, gateway, spec = self._company, self._gateway, self._spec
        assert spec is not None, "who streams has been understood"
        if company is None:
            company = self._company = Company(
                self._head,
                self._route,
                spec,
                gateway.settings,
                began=self._began,
                name=self.record.named,
                request_id=self.record.id,
            )
        word = company.word(gateway.yard, spec.id, self._ticket, self._asking.reply, now)
        self._next_beat = company.next_look(now)
        if word is not None:
            self._answer.beat(word, self._common_lines(), self._stream_headers())

    def _is_late(self, now: float) -> bool:
        """End a request that takes longer than its model's shape allows; whether it has ended."""
        if self._spec is None or self._asking.shape is None:
            return False
        bound_s = self._asking.shape.timeout_s
        self._is_timed = bound_s is not None
        if bound_s is None or now - self._began <= bound_s:
            return False
        self._targets.clear()
        self.fail(EngineTimeout(self._spec.id, bound_s))
        return True

    def reject(self, error: ModelyardError) -> None:
        """Refuse a request whose body is not read to its end."""
        self._error = error
        self._answer.keep_alive = False
        if self._begun:
            self._refuse(error)

    def go_on(self) -> None:
        """Look into the next piece of a body that is too large for one go."""
        if self._phase is not Phase.READING:  # its client has left
            return
        if self._skim is None and self._route.translate is None and not self._route.is_form:
            self._skim = Skim(self.body)
        if self._skim is not None and self._skim.go_on():
            self._gateway.after_others(self)
        else:
            self._dispatch()

    def _dispatch(self) -> None:
        """The request is complete: find its model and get in line for it."""
        try:
            spec = self._understand()
        except ModelyardError as error:
            self._refuse(error)
            return
        self._spec = spec
        self._heard = True
        if self._asking.wants_stream:
            self._is_stream = self.record.stream = True
            self._next_beat = self._since + self._gateway.settings.heartbeat_after_s
        self._acquire(spec)

    def _understand(self) -> ModelSpec:
        """The model that is asked. Raises ModelyardError."""
        record = self.record
        record.bytes_in = len(self.body)
        asking = self._asking = Asking(self._route, self.body, self._head.content_type, self._skim)
        yard = self._gateway.yard
        record.named = asking.seen.model or asking.only(yard.names, self._caller)
        self._targets = yard.targets(record.named) if yard.names.virtuals else [record.named]
        spec = self._aim()
        if self._caller is not ANYONE:
            self._held = self._caller.enter(self._gateway.now(), record.bytes_in)
        return spec

    def _aim(self) -> ModelSpec:
        """The next model that the request may go to. Raises ModelyardError if none is left."""
        names = self._gateway.yard.names
        while True:
            name = self._targets.pop(0)
            try:
                spec = self._asking.aim(name, names, self._caller)
            except ModelNotFound as error:
                if not self._targets:  # whom a virtual model stands for is not everybody's business
                    raise self._caller.unknown(self.record.named, error) from None
            except ModelyardError:
                if not self._targets:
                    raise
            else:
                self.record.model = spec.id
                return spec

    def _falls_back(self) -> bool:
        """Ask the next target of a virtual model in place of one that cannot answer."""
        if not self._targets or self.disconnected or not self.starts_over():
            return False
        try:
            spec = self._aim()
        except ModelyardError:
            return False
        if self._ticket and self._spec is not None:
            self._gateway.yard.leave(self._spec.id, self._ticket)
        if self._attempt is not None:
            self._attempt.close(served=False)
        self._ticket, self._attempt, self._is_retried = 0, None, False
        self._spec = spec
        self._acquire(spec)
        return True

    def _acquire(self, spec: ModelSpec) -> None:
        yard, load = self._gateway.yard, self._asking.load
        if load is not None and not load.load:
            self._whole_answer(200, [JSON_TYPE], load.answer(time.time()), served=True)
            return
        prefix = self._asking.prefix() if spec.replicas.max > 1 else None
        lease = yard.lease(spec.id, prefix)
        if lease is not None:
            self._ask(lease)
            return
        self._phase = Phase.WAITING
        ticket = yard.wait(spec.id, self, self._sender(), self._caller.priority)
        if self._phase is Phase.WAITING:
            self._ticket = ticket

    def _sender(self) -> str:
        """Who shares turns with this request in a queue: the same key, else the same credential,
        else the same host.

        No credential is kept or shown: it stands here by its digest.
        """
        if self._caller.name or not self._head.credential:
            return self._caller.name or self._head.client
        return hashlib.sha256(self._head.credential).hexdigest()[:16]

    # ---------------------------------------------------------------------------- the engine's turn

    def granted(self, lease: Lease) -> None:
        """The waiting is over: a replica is ours."""
        self._ticket = 0
        if self._phase is Phase.DONE:  # something failed while it was put into the queue
            lease.close(served=False)
            return
        self.record.queue_s = self._gateway.now() - self._began
        self.record.load_s = lease.upstream.loading_since(self._began)
        self._ask(lease)

    def _ask(self, lease: Lease) -> None:
        """Send the request to the replica that is ours."""
        self._phase = Phase.SENDING
        self._heard = True
        spawn, load = self._gateway.tasks.spawn, self._asking.load
        self._attempt = Attempt(self, lease, spawn, is_last=self._is_retried)
        if load is None:
            self._attempt.begin()
        else:  # to be ready was all that was asked
            self._whole_answer(200, [JSON_TYPE], load.answer(time.time()), served=True)

    def refused(self, error: ModelyardError) -> None:
        """No replica will be ours."""
        self._ticket = 0
        if not (error.code in ELSEWHERE and self._falls_back()):
            self._refuse(error)

    def unseen(self) -> None:
        """The replica never saw the request: another one may be asked, once."""
        self._is_retried = True
        self._attempt = None
        if self._spec is not None:
            self._acquire(self._spec)

    def request_to(self, upstream: Upstream) -> tuple[bytes, Buffer, Reply | None]:
        """The request as this upstream wants it, a body to be sent after it, and what turns its
        answer into OpenAI's shape; None if it is in that shape. Raises ModelyardError."""
        asking = self._asking
        request, body = asking.head_and_body(upstream, self._head, self._request_id)
        return request, body, asking.engine_reply

    def starts_over(self) -> bool:
        """Forget an answer of which nothing has reached the client; False if something has."""
        if self._answer.has_body:
            return False
        self._phase = Phase.SENDING
        self._next_look = 0.0
        self._answer.forget()
        self._kept = self._tap = self._whole = None
        self._relay = None
        self._is_stream = self.record.stream
        self._asking.translate()
        if self._company is not None:
            self._company.resume(self._asking.reply)
        self._heard = True
        return True

    def hold_engine(self) -> None:
        if self._attempt is not None:
            self._attempt.hold()

    def resume_engine(self) -> None:
        if self._attempt is not None:
            self._attempt.resume()
            self._heard = True

    # -------------------------------------------------------------------------- the engine's answer

    def engine_answers(self, head: AnswerHead, length: int | None) -> None:
        """The head of a proper answer."""
        self._phase = Phase.ANSWERING
        self._heard = True
        if self._protocol.flow.write_paused:
            self.hold_engine()
        lines = look_at(head) if head.lines is None else head.lines
        self._is_stream = head.is_stream
        if self._answer.is_begun and not head.is_stream:
            self._is_stream = True  # as the client has been told
            self.fail(BadEngineAnswer(self.record.model, "it is no stream, as was asked for"))
            return
        if head.is_stream:
            translated = self._asking.reply is not None
            hides = not translated and not self._asking.seen.wants_usage
            self._tap = StreamTap(self.record, hides=hides)
            if translated or hides:
                length = None
            if translated:
                kept = _but_content(kept_of(head.headers))
                lines = as_lines([*kept, *self._stream_headers()])
        elif self._asking.rewrites:
            self._kept = head.status, kept_of(head.headers)
            self._parts, self._kept_bytes = [], 0
            return
        self._answer.begin(head.status, self._common_lines(), lines, length)

    def answer_continues(self, body: bytes, complete: bool) -> None:
        """The next part of a proper answer."""
        self._heard = True
        record = self.record
        if record.first_s is None and body:
            record.first_s = self._gateway.now() - self._began
        if self._tap is not None:
            body = self._tap.feed(body)
        elif complete and self._whole is None:  # an answer in one part
            note_whole(record, body)
        else:
            if self._whole is None:
                self._whole = WholeTap(record)
            self._whole.feed(body)
        if self._kept is not None:
            self._keep(body, complete)
            return
        if self._is_stream and (complete or self._asking.reply is not None):
            try:
                body = self._shown(body, complete)
            except UnreadableAnswer as error:
                self.fail(BadEngineAnswer(record.model, str(error)))
                return
        if body or complete:
            self._answer.part(body, complete)
        if complete:
            self._end(served=True)
        elif self._tap is not None:
            self._let_pass(self._tap)

    def _let_pass(self, tap: StreamTap) -> None:
        """Have chunks sent on as they come, while no event is held back."""
        if self._relay is None and self._asking.reply is None and self._attempt is not None:
            self._relay = self._answer.relay()
            if self._relay is not None:
                self._attempt.relay_to(self._relay)
        if self._relay is not None:
            self._relay.is_held = tap.holds

    def _shown(self, data: bytes, complete: bool) -> bytes:
        """What the client gets of a stream."""
        reply = self._asking.reply
        if reply is not None:
            data = reply.part(data)
            return data + reply.end() if complete else data
        return data + self._tap.end() if complete and self._tap is not None else data

    def _keep(self, body: bytes, complete: bool) -> None:
        """Collect an answer that is rewritten as a whole, and send it when it is complete."""
        assert self._kept is not None, "kept from its beginning"
        self._parts.append(body)
        self._kept_bytes += len(body)
        if self._kept_bytes > MAX_REWRITTEN:
            self.fail(BadEngineAnswer(self.record.model, f"it exceeds {MAX_REWRITTEN} bytes"))
        elif complete:
            status, headers = self._kept
            try:
                whole = self._asking.rewritten(b"".join(self._parts))
            except UnreadableAnswer as error:
                self.fail(BadEngineAnswer(self.record.model, str(error)))
                return
            if self._asking.reply is not None:
                headers = [*_but_content(headers), JSON_TYPE]
            self._whole_answer(status, headers, whole, served=True)

    def answer_fails(self, error: ModelyardError) -> None:
        """The connection broke in the middle of an answer."""
        if self._attempt is not None:
            self._attempt.answer_fails(error)

    def engine_refuses(self, status: int, headers: Headers, body: bytes) -> None:
        """The engine's own error, whole."""
        if (status >= 500 or status == TOO_MANY) and self._falls_back():
            return
        problem = openai.engine_problem(status, body, self._request_id.decode())
        self.record.error = "engine_error"
        if self._answer.is_begun:
            self._break_off(problem, served=True)
        else:
            later = [header for header in headers if header[0] == b"retry-after"]
            dialect = self._route.dialect
            headers = [JSON_TYPE, *later]
            status = dialect.status(problem)
            self._whole_answer(status, headers, dialect.error(problem), served=True)

    # -------------------------------------------------------------------------------------- endings

    def fail(self, error: ModelyardError) -> None:
        """The engine or the request broke down: say so as well as it can still be said."""
        if self._phase is Phase.DONE:
            return
        if error.code in ELSEWHERE and self._falls_back():
            return
        self.record.error = error.code
        if not self._answer.is_begun:
            self._refuse(error)
        elif self._is_stream:
            self._break_off(self._problem(error), served=False)
        else:
            self._answer.keep_alive = False
            self._end(served=False)

    def _refuse(self, error: ModelyardError) -> None:
        """Answer with an error that is ours."""
        if self._phase is Phase.DONE:
            return
        self.record.error = error.code
        problem = self._problem(error)
        if self._answer.is_begun:
            self._break_off(problem, served=False)
        else:
            dialect = self._route.dialect
            status = dialect.status(problem)
            self._whole_answer(status, headers_of(error), dialect.error(problem), served=False)

    def _problem(self, error: ModelyardError) -> Problem:
        """An error of ours for the dialect to shape. Of a virtual model's target, it names both."""
        problem = problem_of(error, self.record.id)
        named = self.record.named
        if named not in self._gateway.yard.names.virtuals or repr(named) in problem.message:
            return problem
        asked = f" asked {self.record.model!r}" if self.record.model else ""
        return replace(problem, message=f"the virtual model {named!r}{asked}: {problem.message}")

    def _whole_answer(self, status: int, headers: Headers, body: bytes, *, served: bool) -> None:
        if self.more_body:  # what is left of the request is not read
            self._answer.keep_alive = False
        self._answer.whole(status, self._common_lines(), headers, body)
        self._end(served=served)

    def _break_off(self, problem: Problem, *, served: bool) -> None:
        """End a stream that has begun with an error."""
        reply = self._asking.reply
        if reply is None:
            event = self._route.dialect.error_event or openai_dialect.error_event
            self._answer.last_event(event(problem))
        else:
            self._answer.part(reply.failed(problem), True)
        self._end(served=served)

    def _stream_headers(self) -> Headers:
        kind = self._route.dialect.stream_type
        return [(b"content-type", kind), (b"cache-control", b"no-cache")]

    def _common_lines(self) -> bytes:
        """Header lines that every answer has."""
        name = self._route.dialect.request_id_header
        lines = b"%b%b: %b\r\n" % (
            self._gateway.lines_of(self._protocol.server_state.default_headers),
            name,
            self._request_id,
        )
        if self._caller is ANYONE and self._head.origin is None:
            return lines
        lines += limit_lines(self._caller.balances(self._gateway.now()))
        if self._head.origin is not None:
            granted = self._gateway.door.cors.headers(self._head.origin)
            lines += as_lines(granted)
        return lines

    def _end(self, *, served: bool) -> None:
        """The exchange is over: give everything back, let the connection's next request begin."""
        before, self._phase = self._phase, Phase.DONE
        if self._ticket and self._spec is not None:
            self._gateway.yard.leave(self._spec.id, self._ticket)
        attempt, self._attempt = self._attempt, None  # which knows this exchange: no circle stays
        if attempt is not None:
            attempt.close(served=served)
        self._account(before)
        if self._spec is not None and self._asking.keep_s is not None:
            self._gateway.yard.keep(self._spec.id, self._asking.keep_s)
        self._gateway.left(self)
        self.response_complete = True
        if self.disconnected:
            return
        transport = self._protocol.transport
        if self.more_body:  # closing on unread bytes would reset the connection under the answer
            self._protocol.linger()
            return
        if not self._answer.keep_alive:
            transport.close()
        self._protocol.exchange_ended()

    def _events(self) -> int:
        """Those of a stream that the client was sent."""
        relayed = 0 if self._relay is None else self._relay.events
        return relayed if self._tap is None else relayed + self._tap.events

    def _account(self, before: Phase) -> None:
        """Complete the record; `before` is where the exchange was when it ended."""
        record = self.record
        record.total_s = self._gateway.now() - self._began
        record.status = self._answer.status or CLIENT_LEFT
        record.bytes_out = self._answer.bytes_out
        if self._relay is not None:
            record.bytes_out += self._relay.size
        record.parts = self._events()
        if record.error and before >= Phase.SENDING:
            is_clients_own = self._route.translate is not None and self._asking.reply is None
            record.reckon(begins_with_usage=self._is_stream and is_clients_own)
        if self._held is not None:
            self._caller.leave(self._held, record, self._gateway.now())
        if self._capture is not None:
            self._capture.end(self.body)


def _but_content(headers: Headers) -> Headers:
    """Header lines that hold for a body in another shape, too."""
    return [each for each in headers if not each[0].startswith((b"content-", b"cache-control"))]
