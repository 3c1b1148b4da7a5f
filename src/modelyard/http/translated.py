"""An answer in another dialect than OpenAI's, on its way to somebody who expects OpenAI's.

Laws of this file:
- Whoever listens sees an answer in OpenAI's shape from its head on; a whole answer is kept until it
  is whole, a stream goes on part by part.
- What is not in the shape that the upstream's dialect promises is an engine's bad answer.
"""

from __future__ import annotations

from typing import Final, Protocol

from modelyard.core.errors import BadEngineAnswer, ModelyardError
from modelyard.dialects.base import Reply, UnreadableAnswer
from modelyard.runtime.framing import AnswerHead

EVENT_STREAM: Final = b"text/event-stream"
MAX_WHOLE: Final = 32 * 1024 * 1024
"""Bytes of an answer that is translated as a whole."""


class Hearer(Protocol):
    """Who expects OpenAI's shapes: what `http.attempt` tells of an answer."""

    def engine_answers(self, head: AnswerHead, length: int | None) -> None: ...

    def answer_continues(self, body: bytes, complete: bool) -> None: ...

    def answer_fails(self, error: ModelyardError) -> None: ...


class Ending(Hearer, Protocol):
    """A hearer whose exchange can be ended."""

    def fail(self, error: ModelyardError) -> None: ...


class Translated:
    """Stands between a connection and its hearer."""

    def __init__(self, hearer: Ending, reply: Reply, model: str) -> None:
        self._hearer = hearer
        self._reply = reply
        self._model = model
        self._kept: list[bytes] | None = None
        """The parts of an answer that is no stream."""
        self._size = 0
        self._head = AnswerHead(0, [])

    def engine_answers(self, head: AnswerHead, length: int | None) -> None:  # noqa: ARG002
        """The head has come. The length is that of another text than the hearer gets."""
        headers = head.headers
        kinds = [value for name, value in headers if name == b"content-type"]
        others = [each for each in headers if each[0] not in (b"content-type", b"content-length")]
        if any(EVENT_STREAM in kind for kind in kinds):
            shown = [*others, *((b"content-type", kind) for kind in kinds)]
            self._hearer.engine_answers(AnswerHead(head.status, shown), None)
        else:
            self._kept = []
            self._head = AnswerHead(head.status, [*others, (b"content-type", b"application/json")])

    def answer_continues(self, body: bytes, complete: bool) -> None:
        try:
            if self._kept is not None:
                self._keep(body, complete)
                return
            said = self._reply.part(body) + (self._reply.end() if complete else b"")
        except UnreadableAnswer as error:
            self._hearer.fail(BadEngineAnswer(self._model, str(error)))
            return
        if said or complete:
            self._hearer.answer_continues(said, complete)

    def answer_fails(self, error: ModelyardError) -> None:
        self._hearer.answer_fails(error)

    def _keep(self, body: bytes, complete: bool) -> None:
        assert self._kept is not None, "kept from its beginning"
        self._kept.append(body)
        self._size += len(body)
        if self._size > MAX_WHOLE:
            raise UnreadableAnswer(f"it exceeds {MAX_WHOLE} bytes")
        if complete:
            whole = self._reply.whole(b"".join(self._kept))
            self._hearer.engine_answers(self._head, len(whole))
            self._hearer.answer_continues(whole, True)
