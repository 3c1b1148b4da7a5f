"""OpenAI's chat answers and our errors as Anthropic's Messages API gives them.

Laws of this file:
- A stream is blocks in a row: one is closed before the next begins. A call's block begins when its
  name is known; parts of a call that come when a later block has begun are an error of the engine.
- `input_tokens` are those that did not come from a cache, and numbers come when the engine tells
  them: with most engines that is at the end, in `message_delta`, where clients look again.
- Thinking has an empty signature: nobody here signs, and nobody here asks for one back.
- A stream that ends without a reason or `[DONE]` ends with an error, not with `message_stop`.

Sources: https://platform.claude.com/docs/en/build-with-claude/streaming, /api/errors
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, Literal

import msgspec

from modelyard.dialects.base import MAX_EVENT_BYTES, Problem, UnreadableAnswer
from modelyard.dialects.chat import (
    Answer,
    Choice,
    Delta,
    EngineError,
    ToolCall,
    Usage,
    read_answer,
    reasoning_of,
)
from modelyard.dialects.sse import DONE, EventReader, event

_STOP: Final[Mapping[str, str]] = {
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
"""By `finish_reason`; every other one is `end_turn`."""

_TYPES: Final[Mapping[int, str]] = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""Types of errors by status; else the request is wrong below 500, and the API from there on."""

_PASSING: Final = frozenset({"queue_full", "model_stopped", "shutting_down", "overloaded_error"})

_encode = msgspec.json.encode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

Kind = Literal["text", "thinking", "tool_use"]


def error(problem: Problem) -> bytes:
    """The body of an error answer, and the data of an error event."""
    usual = "invalid_request_error" if problem.status < 500 else "api_error"
    kind = "overloaded_error" if is_passing(problem) else _TYPES.get(problem.status, usual)
    body: dict[str, Any] = {"type": "error", "error": {"type": kind, "message": problem.message}}
    body["request_id"] = problem.request_id or None
    return _encode(body)


def error_event(problem: Problem) -> bytes:
    """An error within a stream."""
    return event(error(problem), "error")


def is_passing(problem: Problem) -> bool:
    """Whether an error says: not now."""
    return problem.code in _PASSING


class Reply:
    """The reply to one Messages request. A `dialects.base.Reply`."""

    def __init__(self, model: str, stops: Collection[str] = (), prefill: str = "") -> None:
        """`model` is the name that the client used, `stops` its stop sequences, and `prefill` what
        the assistant had already said.
        """
        self._model = model
        self._stops = stops
        self._prefill = prefill
        self._id = ""
        self._events = EventReader()
        self._usage = Usage()
        self._has_begun = False
        self._is_over = False
        self._blocks = 0
        """How many blocks have begun."""
        self._open: Kind | None = None
        self._calls = _Calls()
        self._finish: str | None = None
        self._stopped_by: str | None = None

    def whole(self, answer: bytes) -> bytes:
        read = read_answer(answer)
        choice = _first(read)
        if choice is None or read.error is not None:
            raise UnreadableAnswer("it is no chat completion: it has no choices")
        self._note(read)
        self._note_end(choice)
        said = choice.message
        text = said.content or said.refusal or ""
        # llama.cpp repeats what it went on with, in whole answers alone.
        text = text.removeprefix(self._prefill)
        thought = reasoning_of(said)
        blocks: list[dict[str, Any]] = []
        if thought:
            blocks.append({"type": "thinking", "thinking": thought, "signature": ""})
        if text:
            blocks.append({"type": "text", "text": text})
        blocks += [self._used(call, at) for at, call in enumerate(said.tool_calls or ())]
        self._calls.begun = len(said.tool_calls or ())
        return _encode({**self._frame(blocks), **self._ending(), "usage": self._counted()})

    def part(self, data: bytes) -> bytes:
        return b"".join(self._on(each) for each in self._events.feed(data))

    def end(self) -> bytes:
        if self._is_over:
            return b""
        if self._finish is None:
            return self.failed(Problem(502, "the engine's stream ended before its answer did"))
        return self._last()

    def failed(self, problem: Problem) -> bytes:
        if self._is_over:
            return b""
        self._is_over = True
        return error_event(problem)

    # ------------------------------------------------------------------------------------ streaming

    def _on(self, data: bytes) -> bytes:
        if self._is_over:
            return b""
        if data == DONE:
            return self._last()
        read = read_answer(data)
        if read.error is not None:
            said = read.error.message if isinstance(read.error, EngineError) else read.error
            return self.failed(Problem(502, said or "the engine's stream broke off"))
        self._note(read)
        out = self._begin()
        choice = _first(read)
        if choice is not None:
            out += self._say(choice.delta)
            self._note_end(choice)
        return out

    def _begin(self) -> bytes:
        if self._has_begun:
            return b""
        self._has_begun = True
        # Clients want numbers here; engines that count as they go have them, others have not yet.
        nothing = {"stop_reason": None, "stop_sequence": None}
        message = {**self._frame([]), **nothing, "usage": self._counted()}
        return _event("message_start", message=message)

    def _say(self, delta: Delta) -> bytes:
        out = b""
        thought = reasoning_of(delta)
        if thought:
            out += self._into("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            out += self._delta({"type": "thinking_delta", "thinking": thought})
        text = delta.content or delta.refusal
        if text:
            out += self._into("text", {"type": "text", "text": ""})
            out += self._delta({"type": "text_delta", "text": text})
        for call in delta.tool_calls or ():
            out += self._call(call)
        return out

    def _call(self, part: ToolCall) -> bytes:
        """The next part of a call of a tool."""
        out = b""
        if self._calls.is_another(part):
            out = self._close()
            self._calls.next(part)
        elif self._open not in (None, "tool_use") and self._calls.has_begun:
            raise UnreadableAnswer("parts of one tool call stand on both sides of something else")
        ready = self._calls.add(part)
        if ready is None:
            return out
        if self._open != "tool_use":
            out += self._into("tool_use", self._calls.block())
        return out + (
            self._delta({"type": "input_json_delta", "partial_json": ready}) if ready else b""
        )

    def _into(self, kind: Kind, block: Mapping[str, Any]) -> bytes:
        """Go on in a block of this kind: a new one if another is open."""
        if self._open == kind:
            return b""
        out = self._close()
        self._open = kind
        self._blocks += 1
        return out + _event("content_block_start", index=self._blocks - 1, content_block=block)

    def _delta(self, delta: Mapping[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._blocks - 1, delta=delta)

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return _event("content_block_stop", index=self._blocks - 1)

    def _last(self) -> bytes:
        if self._calls.is_unnamed:
            return self.failed(Problem(502, "a tool call of the engine's has no name"))
        out = self._begin() + self._close()
        self._is_over = True
        out += _event("message_delta", delta=self._ending(), usage=self._counted())
        return out + _event("message_stop")

    # -------------------------------------------------------------------------------- what is known

    def _note(self, read: Answer) -> None:
        self._id = self._id or read.id
        if read.usage is not None:
            self._usage = read.usage

    def _note_end(self, choice: Choice) -> None:
        self._finish = choice.finish_reason or self._finish
        if isinstance(choice.stop_reason, str):
            self._stopped_by = choice.stop_reason

    def _frame(self, blocks: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"msg_{self._id.removeprefix('chatcmpl-')}",
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": blocks,
        }

    def _ending(self) -> dict[str, Any]:
        reason = _STOP.get(self._finish or "", "end_turn")
        if reason == "end_turn" and self._calls.begun:  # some engines say `stop` after a call
            return {"stop_reason": "tool_use", "stop_sequence": None}
        if reason == "end_turn" and self._stopped_by in self._stops:
            return {"stop_reason": "stop_sequence", "stop_sequence": self._stopped_by}
        return {"stop_reason": reason, "stop_sequence": None}

    def _counted(self) -> dict[str, Any]:
        usage = self._usage
        counts: dict[str, Any] = {
            "input_tokens": max(0, (usage.prompt_tokens or 0) - usage.cached),
            "output_tokens": usage.completion_tokens or 0,
            "cache_read_input_tokens": usage.cached,
            "cache_creation_input_tokens": 0,  # nobody here takes more for what it keeps
        }
        details = usage.completion_tokens_details
        if details is not None and details.reasoning_tokens is not None:
            counts["output_tokens_details"] = {"thinking_tokens": details.reasoning_tokens}
        return counts

    def _used(self, call: ToolCall, at: int) -> dict[str, Any]:
        """A whole call as a block."""
        text = (call.function.arguments or "").strip() or "{}"
        arguments: object = msgspec.Raw(text.encode())
        try:
            _decode_object(text)
        except msgspec.DecodeError:
            if self._finish != "length":
                raise UnreadableAnswer(
                    f"the arguments of its call of {call.function.name!r} are no JSON object"
                ) from None
            arguments = {}  # cut off; what is left of them is no object
        return {**_block(call.id, at, call.function.name or ""), "input": arguments}


class _Calls:
    """The calls of tools in a stream, of which the last one is being told."""

    def __init__(self) -> None:
        self.begun = 0
        """How many there were."""
        self._index = -1
        self._id: str | None = None
        self._name: str | None = None
        self._waiting = ""
        """Arguments that came before the name."""
        self.has_begun = False
        """Whether the last one's block has begun."""

    def is_another(self, part: ToolCall) -> bool:
        """Whether a part belongs to a call of which nothing was heard yet."""
        if not self.begun or part.index != self._index:
            return True
        # Some engines give every call the index 0, and each call whole.
        return bool(self._id and part.id and part.function.name and part.id != self._id)

    @property
    def is_unnamed(self) -> bool:
        return self.begun > 0 and not self.has_begun

    def next(self, part: ToolCall) -> None:
        if self.is_unnamed or part.index < self._index:
            raise UnreadableAnswer("parts of its tool calls are mixed up")
        self.begun += 1
        self._index, self._id, self._name, self._waiting = part.index, None, None, ""
        self.has_begun = False

    def add(self, part: ToolCall) -> str | None:
        """The arguments that can be told by now; None while the name is not known."""
        self._id = self._id or part.id
        self._name = self._name or part.function.name
        self._waiting += part.function.arguments or ""
        if len(self._waiting) > MAX_EVENT_BYTES:
            raise UnreadableAnswer("a tool call of it has no name")
        if not self._name:
            return None
        ready, self._waiting, self.has_begun = self._waiting, "", True
        return ready

    def block(self) -> dict[str, Any]:
        return {**_block(self._id, self.begun - 1, self._name or ""), "input": {}}


def _block(call_id: str | None, at: int, name: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": call_id or f"toolu_{at}", "name": name}


def _first(read: Answer) -> Choice | None:
    return next((choice for choice in read.choices if choice.index == 0), None)


def _event(kind: str, **fields: Any) -> bytes:
    return event(_encode({"type": kind, **fields}), kind)
