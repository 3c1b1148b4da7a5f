"""The asking of one replica, or of one remote upstream after another, until somebody answers.

Laws of this file:
- A request is sent a second time only if it was provably not seen (no connection was made, or a
  pooled one was closed before a byte of an answer), or to another upstream of a remote model while
  nothing of an answer has reached the client.
- Whoever broke down hears of it exactly once.
- Redirects are not followed, and a remote's refusal of our key is not shown as the client's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from modelyard.core.errors import (
    EngineDied,
    ModelyardError,
    UpstreamRedirects,
    UpstreamRefusesKey,
)
from modelyard.dialects.base import Reply
from modelyard.http import remotes
from modelyard.http.translated import Hearer, Translated
from modelyard.runtime.failover import Failover
from modelyard.runtime.framing import AnswerHead
from modelyard.runtime.relay import Relay
from modelyard.runtime.upstream import Buffer, Connection, Headers, Lease, Upstream

GONE_WAIT_S = 2.0
"""How long a request whose engine took no connection waits for news of that engine's end."""
MAX_ENGINE_ERROR = 64 * 1024
"""Bytes of an engine's error answer that are read."""


class Asker(Protocol):
    """Whose request it is."""

    def request_to(self, upstream: Upstream) -> tuple[bytes, Buffer, Reply | None]:
        """The request as this upstream wants it, and what turns its answer into OpenAI's shape;
        None if it is in that shape. Raises ModelyardError."""
        ...

    def engine_answers(self, head: AnswerHead, length: int | None) -> None:
        """The head of a proper answer has come; its body follows from the connection."""
        ...

    def answer_continues(self, body: bytes, complete: bool) -> None: ...

    def answer_fails(self, error: ModelyardError) -> None: ...

    def engine_refuses(self, status: int, headers: Headers, body: bytes) -> None:
        """The engine's own error, whole."""
        ...

    def starts_over(self) -> bool:
        """Forget an answer of which nothing has reached the client; False if something has."""
        ...

    def unseen(self) -> None:
        """The replica never saw the request: another one may be asked."""
        ...

    def fail(self, error: ModelyardError) -> None:
        """There will be no answer."""
        ...


class Attempt:
    """One lease, and whoever is asked under it."""

    # Most attempts leave these as they are; making one costs only what is set in __init__.
    _connection: Connection | None = None
    _is_over = False
    _tried: tuple[Upstream, ...] = ()
    """Upstreams of a remote model that were asked; the last one is being asked."""
    _reply: Reply | None = None
    _answers = False
    """Whether the head of an answer has come."""
    _error: tuple[int, Headers] | None = None
    """Status and headers of an error answer whose body is being read."""
    _error_body = b""

    def __init__(
        self,
        asker: Asker,
        lease: Lease,
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
        *,
        is_last: bool,
    ) -> None:
        """`is_last` says that a replica that takes no connection is not replaced any more."""
        self._asker = asker
        self._lease = lease
        self._spawn = spawn
        self._is_last = is_last

    def begin(self) -> None:
        failover = self._lease.upstream.failover
        if failover is None:
            self._reach(self._lease.upstream)
        elif not self._ask_next(failover):
            self._asker.fail(failover.error((), ""))

    def close(self, *, served: bool) -> None:
        """Give the lease back; an engine that is still at work hears that nobody listens."""
        self._is_over = True
        connection, self._connection = self._connection, None
        if connection is not None and not served:
            connection.abort()
        self._lease.close(served=served)

    def hold(self) -> None:
        if self._connection is not None and self._answers:
            self._connection.pause_reading()

    def resume(self) -> None:
        if self._connection is not None and self._answers:
            self._connection.resume_reading()

    def relay_to(self, relay: Relay) -> None:
        """Offer each chunk of the answer to `relay` first, if nobody stands between."""
        if self._connection is not None and self._connection.listener is self._asker:
            self._connection.relay = relay

    def blame(self, why: str) -> None:
        """Whoever has been asked has broken down."""
        failover = self._lease.upstream.failover
        if failover is None:
            self._lease.upstream.broken()
        elif self._tried:
            failover.failed(self._tried[-1], why)

    # --------------------------------------------------------------------------------- connections

    def _reach(self, upstream: Upstream) -> None:
        connection = upstream.idle_connection()
        if connection is not None:
            self._send(connection)
        else:
            self._spawn(self._connect(upstream), "connect to an engine")

    async def _connect(self, upstream: Upstream) -> None:
        connection: Connection | None = None
        refusal: OSError | None = None
        try:
            connection = await upstream.connect()
        except OSError as error:
            refusal = error
        failover = self._lease.upstream.failover
        if connection is not None:
            if self._is_over:
                connection.close()
            else:
                self._send(connection)
        elif refusal is not None:
            if failover is None:
                await self._unreachable(refusal)
            elif not self._is_over:
                self._failed_there(failover, remotes.words_of(refusal))

    async def _unreachable(self, error: OSError) -> None:
        """The engine took no connection, so it never saw the request: another try, once."""
        upstream = self._lease.upstream
        if self._is_over:
            return
        if self._is_last:
            self._asker.fail(EngineDied(upstream.model, str(error) or type(error).__name__))
            return
        self._lease.close(served=False)
        with contextlib.suppress(TimeoutError):  # it lives and may take connections again
            await asyncio.wait_for(upstream.gone.wait(), GONE_WAIT_S)
        if not self._is_over:
            self._asker.unseen()

    def _send(self, connection: Connection) -> None:
        try:
            request, body, self._reply = self._asker.request_to(connection.upstream)
        except ModelyardError as error:
            connection.upstream.finished(connection)
            self._asker.fail(error)
            return
        self._connection = connection
        connection.send(self, request, body)

    # ----------------------------------------------------------------------------- remote upstreams

    def _ask_next(self, failover: Failover) -> bool:
        """Send the request to an upstream that has not had it; whether there is one."""
        upstream = failover.next(self._tried)
        if upstream is None:
            return False
        self._tried = (*self._tried, upstream)
        self._reach(upstream)
        return True

    def _failed_there(self, failover: Failover, why: str) -> None:
        """The upstream asked last gave no answer: ask another one, or give up."""
        failover.failed(self._tried[-1], why)
        if not (self._starts_over() and self._ask_next(failover)):
            self._asker.fail(failover.error(self._tried, why))

    def _starts_over(self) -> bool:
        if not self._asker.starts_over():
            return False
        self._connection = None
        self._answers = False
        self._error, self._error_body = None, b""
        return True

    # ------------------------------------------------------------------ runtime.upstream.Receiver

    def answer_begins(self, head: AnswerHead, length: int | None) -> None:
        self._answers = True
        status = head.status
        if status < 300:
            hearer: Hearer = self._asker
            if self._reply is not None:
                hearer = Translated(self._asker, self._reply, self._lease.upstream.model)
            if self._connection is not None:
                self._connection.listener = hearer
            hearer.engine_answers(head, length)
        elif status < 400:
            place = remotes.place_in(head.headers)
            self._asker.fail(UpstreamRedirects(self._lease.upstream.model, status, place))
        else:
            self._error_begins(status, head.headers)

    def _error_begins(self, status: int, headers: Headers) -> None:
        """An error: ask somebody else, or pass it on in our words."""
        failover = self._lease.upstream.failover
        if failover is not None:
            asked = self._tried[-1]
            if status in remotes.REFUSED:
                name = failover.name_of(asked)
                self._asker.fail(UpstreamRefusesKey(self._lease.upstream.model, name, status))
                return
            if failover.is_asked_elsewhere(asked, status, headers):
                connection = self._connection
                if self._starts_over() and self._ask_next(failover):
                    if connection is not None:
                        connection.abort()
                    return
                self._answers, self._connection = True, connection
        self._error = status, headers

    def answer_continues(self, body: bytes, complete: bool) -> None:
        if len(self._error_body) < MAX_ENGINE_ERROR:
            self._error_body += body
        if complete and self._error is not None:
            self._asker.engine_refuses(*self._error, self._error_body)

    def answer_fails(self, error: ModelyardError) -> None:
        """The connection broke; also called by the asker, for an answer that had begun."""
        connection, self._connection = self._connection, None
        failover = self._lease.upstream.failover
        if failover is None or connection is None:
            self._asker.fail(error)
        elif connection.is_used and not self._answers:
            # It was pooled, and closed before it had the request: its upstream did nothing wrong.
            self._spawn(self._connect(connection.upstream), "connect to an engine")
        else:
            self._failed_there(failover, str(error))
