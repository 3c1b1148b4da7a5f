"""What a dialect is: requests in, answers out, errors in its own shape.

Laws of this package:
- Engines are asked in OpenAI's shapes. A dialect turns a client's request into one of those, once,
  and turns the answer back; nothing in between knows which dialect a client speaks.
- Pure: no clock, no I/O, no global state. What one request needs is in its `Reply`.
- What is not understood goes on to the engine as the client wrote it, and is never dropped
  silently: it is passed on, or refused with a sentence that names it.
- A stream may be cut anywhere: a `Reply` makes the same of any division into parts, and what it
  keeps of a stream is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from modelyard.core.errors import InvalidRequest
from modelyard.core.specs import Task

MAX_EVENT_BYTES = 16 * 1024 * 1024
"""Longest single event of an engine's stream that is taken apart."""


@dataclass(frozen=True, slots=True)
class Problem:
    """An error, before it has a dialect's shape."""

    status: int
    message: str
    code: str | None = None
    """A stable word, like `model_not_found`."""
    param: str | None = None
    request_id: str = ""


class Reply(Protocol):
    """Turns the answer to one request into what its client expects. Used once, in order."""

    def whole(self, answer: bytes) -> bytes:
        """A complete answer that is not a stream. Raises UnreadableAnswer."""
        ...

    def part(self, data: bytes) -> bytes:
        """The next bytes of a stream of the engine, cut anywhere; what can be said by now.

        Raises UnreadableAnswer.
        """
        ...

    def end(self) -> bytes:
        """The engine's stream is over: what is left to be said."""
        ...

    def failed(self, problem: Problem) -> bytes:
        """The stream breaks off here: the dialect's own error event. Nothing follows it."""
        ...


@runtime_checkable
class WaitingReply(Reply, Protocol):
    """A reply that can say within its stream that the answer is still waited for."""

    def waiting(self, wall: float) -> bytes:
        """Nothing of an answer has come yet. Before the first part; as often as wanted.

        `wall` is the moment in seconds since 1970.
        """
        ...


class UnreadableAnswer(Exception):
    """An engine's answer is not in the shape that its route promises."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A client's request as an engine is asked."""

    body: bytes
    """JSON in OpenAI's shape, `stream` included."""
    reply: Reply
    task: Task | None = None
    """What the model is asked to do, where a path of the dialect stands for several tasks; the
    engine is asked on that task's OpenAI route. None is the route's own."""
    keep_alive_s: float | None = None
    """How long the client wants the model kept loaded after this request: 0 not at all, infinity
    always; None says nothing. A wish, not a promise: memory that others wait for is taken."""


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """A request that asks the model nothing: to have it loaded, or to let it go."""

    model: str
    load: bool
    """False lets the model go once its requests are done."""
    answer: Callable[[float], bytes]
    """The JSON to answer with, status 200, given the moment in seconds since the epoch: when the
    model is ready, or at once if it is let go."""
    keep_alive_s: float | None = None


Translate = Callable[[bytes], Asked | LoadRequest | None]
"""A client's whole request body to what an engine is asked; None where the engine is asked in the
client's own words, and its answer is passed on as it is. Raises InvalidRequest."""


def own_status(problem: Problem) -> int:
    """The status of an error where a dialect has no other for it."""
    return problem.status


def _only_as_written(_: str) -> Sequence[str]:
    """Nobody of the dialect means a model by another name than its own."""
    return ()


@dataclass(frozen=True, slots=True)
class Dialect:
    """What all routes of one API family share."""

    name: str
    error: Callable[[Problem], bytes]
    """The body of an error answer."""
    stream_type: bytes = b"text/event-stream"
    heartbeat: bytes = b": ping\n"
    """What keeps a waiting client's stream alive. One newline: a comment followed by an empty line
    makes some clients see an empty event. Empty where the format has nothing to say nothing."""
    request_id_header: bytes = b"x-request-id"
    status: Callable[[Problem], int] = own_status
    """The status that an error is answered with, where the family has one of its own."""
    error_event: Callable[[Problem], bytes] | None = None
    """An error within a stream that an engine writes in the dialect itself; None for OpenAI's."""
    spellings: Callable[[str], Sequence[str]] = _only_as_written
    """Other names that clients of the dialect may mean a model by, tried in their order where no
    model has the one they wrote."""


class WholeReply:
    """A reply to what is never streamed."""

    def __init__(self, whole: Callable[[bytes], bytes], error: Callable[[Problem], bytes]) -> None:
        """`whole` is as in `Reply`, `error` as in `Dialect`."""
        self._whole = whole
        self._error = error

    def whole(self, answer: bytes) -> bytes:
        return self._whole(answer)

    def part(self, data: bytes) -> bytes:
        raise UnreadableAnswer(f"it is a stream, of which the first is {data[:40]!r}")

    def end(self) -> bytes:
        return b""

    def failed(self, problem: Problem) -> bytes:
        return self._error(problem)


def refused(what: str, *, param: str | None = None, hint: str | None = None) -> InvalidRequest:
    """An error for what a dialect asks and Modelyard cannot do."""
    return InvalidRequest(what, param=param, hint=hint)
