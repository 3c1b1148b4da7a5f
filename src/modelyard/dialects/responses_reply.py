"""Chat answers as Responses gives them: one object, or a stream of events.

Laws of this file:
- A response names what it was asked with, every key that clients require among it. What nobody
  knows is null; counts of tokens that an engine does not tell are 0 where clients want a number.
- Ids and times are the engine's: no clock and no chance here. An engine without ids gets one made
  from the request.
- A stream ends with exactly one of response.completed, response.incomplete and response.failed.
  One that ends without a reason or `[DONE]` has failed. A failure is told once more as an `error`
  event: OpenAI's clients raise on that, and Codex reads the former.
- Events are numbered from 0 without a gap.

Sources: https://platform.openai.com/docs/api-reference/responses/object and -streaming;
openai/codex, codex-rs/codex-api/src/sse/responses.rs, what Codex reads of a stream; openai-python,
_streaming.py, when it raises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from modelyard.dialects.base import Problem, UnreadableAnswer
from modelyard.dialects.chat import (
    Answer,
    Choice,
    Delta,
    EngineError,
    Usage,
    read_answer,
    reasoning_of,
)
from modelyard.dialects.openai import error_type
from modelyard.dialects.responses_output import Event, Output, numbered
from modelyard.dialects.responses_tools import Toolbox
from modelyard.dialects.sse import DONE, EventReader, event

_ENGINE_PREFIXES: Final = ("chatcmpl-", "chatcmpl_", "cmpl-", "gen-")
_MAX_ID: Final = 64

_INCOMPLETE: Final[Mapping[str, str]] = {
    "length": "max_output_tokens",
    "content_filter": "content_filter",
}
"""Why an answer is incomplete, by the reason that a chat gives for its end."""

_BROKEN_OFF: Final = Problem(502, "the engine's stream ended before its answer did", "engine_died")


class ResponsesReply:
    """The reply to one request."""

    def __init__(
        self,
        asked: Mapping[str, Any],
        model: str,
        tools: Toolbox,
        *,
        fallback_id: str,
        wraps_reasoning: bool,
    ) -> None:
        """`asked` is what a response repeats of its request."""
        self._asked = asked
        self._model = model
        self._tools = tools
        self._wraps = wraps_reasoning
        self._id = fallback_id
        self._created: float = 0
        self._reader = EventReader()
        self._output: Output | None = None
        """None until the first word of the engine."""
        self._usage: Usage | None = None
        self._reason: str | None = None
        self._number = 0
        self._is_over = False

    def whole(self, answer: bytes) -> bytes:
        read = read_answer(answer)
        if read.error is not None or not read.choices:
            raise UnreadableAnswer("it is no chat completion: it has no choices")
        output = self._begin(read)
        choice = read.choices[0]
        self._note(read, choice)
        message = choice.message
        output.add(
            Delta(
                content=message.content,
                refusal=message.refusal,
                reasoning_content=reasoning_of(message),
                tool_calls=numbered(message.tool_calls),
            ),
            choice.logprobs,
        )
        output.finish(self._status())
        return msgspec.json.encode(self._response(self._status(), output.items))

    def part(self, data: bytes) -> bytes:
        return b"".join(self._heard(said) for said in self._reader.feed(data))

    def waiting(self, wall: float) -> bytes:
        """The answer is still waited for. A `dialects.base.WaitingReply`: Codex counts events, and
        no comments."""
        begun, output = self._opened(Answer(created=int(wall)))
        if begun:
            return begun
        response = self._response("in_progress", output.said())
        return self._told([("response.in_progress", {"response": response})])

    def end(self) -> bytes:
        if self._is_over:
            return b""
        return self._close() if self._reason is not None else self.failed(_BROKEN_OFF)

    def failed(self, problem: Problem) -> bytes:
        if self._is_over:
            return b""
        begun, output = self._opened(Answer())
        self._is_over = True
        detail = {"code": _error_code(problem), "message": problem.message}
        response = self._response("failed", output.said()) | {"error": detail}
        said = {"code": problem.code, "message": problem.message, "param": problem.param}
        # The same once more in an object: openai-python raises on that alone.
        error = said | {"error": said | {"type": error_type(problem.status)}}
        return begun + self._told([("response.failed", {"response": response}), ("error", error)])

    # ------------------------------------------------------------------------------------ streams

    def _heard(self, said: bytes) -> bytes:
        if self._is_over:
            return b""
        if said == DONE:
            return self._close()
        read = read_answer(said)
        if read.error is not None:
            return self.failed(_problem(read.error))
        begun, output = self._opened(read)
        choice = next((choice for choice in read.choices if choice.index == 0), Choice())
        self._note(read, choice)
        return begun + self._told(output.add(choice.delta, choice.logprobs))

    def _opened(self, read: Answer) -> tuple[bytes, Output]:
        """The first two events, once, and what they open."""
        if self._output is not None:
            return b"", self._output
        output = self._begin(read)
        response = self._response("in_progress", [])
        first = ("response.created", "response.in_progress")
        return self._told([(name, {"response": response}) for name in first]), output

    def _close(self) -> bytes:
        begun, output = self._opened(Answer())
        self._is_over = True
        status = self._status()
        events = output.finish(status)
        response = self._response(status, output.items)
        return begun + self._told([*events, (f"response.{status}", {"response": response})])

    def _told(self, events: Sequence[Event]) -> bytes:
        told = []
        for name, fields in events:
            data = {"type": name, **fields, "sequence_number": self._number}
            self._number += 1
            told.append(event(msgspec.json.encode(data), name))
        return b"".join(told)

    # ------------------------------------------------------------------------------------- object

    def _begin(self, read: Answer) -> Output:
        self._id = _clean(read.id) or self._id
        self._created = read.created
        self._model = read.model or self._model
        self._output = Output(self._id, self._tools, wraps_reasoning=self._wraps)
        return self._output

    def _note(self, read: Answer, choice: Choice) -> None:
        self._usage = read.usage or self._usage
        self._reason = choice.finish_reason or self._reason

    def _status(self) -> str:
        return "incomplete" if self._reason in _INCOMPLETE else "completed"

    def _response(self, status: str, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        why = _INCOMPLETE.get(self._reason or "") if status == "incomplete" else None
        return {
            "id": f"resp_{self._id}",
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": None if why is None else {"reason": why},
            "model": self._model,
            "output": items,
            "usage": None if self._usage is None else usage_of(self._usage),
            **self._asked,
        }


def usage_of(usage: Usage) -> dict[str, Any]:
    """Tokens as Responses counts them. What an engine does not tell is 0: clients want numbers."""
    given, said = usage.prompt_tokens or 0, usage.completion_tokens or 0
    details = usage.completion_tokens_details
    return {
        "input_tokens": given,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": said,
        "output_tokens_details": {
            "reasoning_tokens": (details.reasoning_tokens or 0) if details else 0
        },
        "total_tokens": given + said,
    }


def _clean(engine_id: str) -> str:
    """An engine's id without its kind, of characters that are safe in ids."""
    for prefix in _ENGINE_PREFIXES:
        engine_id = engine_id.removeprefix(prefix)
    safe = (each for each in engine_id if each.isascii() and (each.isalnum() or each in "-_"))
    return "".join(safe)[:_MAX_ID]


def _problem(error: EngineError | str) -> Problem:
    """What an engine says within its stream."""
    if isinstance(error, str):
        return Problem(502, error or "the engine failed")
    code = error.code if isinstance(error.code, str) else None
    status = error.code if isinstance(error.code, int) and 400 <= error.code < 600 else 502
    return Problem(status, error.message or "the engine failed", code)


def _error_code(problem: Problem) -> str:
    """A word of those that OpenAI lists for the error of a response."""
    if problem.status == 429:
        return "rate_limit_exceeded"
    if problem.code == "context_length_exceeded":
        return problem.code  # Codex makes its history shorter
    return "server_error" if problem.status >= 500 else "invalid_prompt"
