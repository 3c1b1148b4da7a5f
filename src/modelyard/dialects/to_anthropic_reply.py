"""Answers of Anthropic's Messages API as OpenAI's chat completions, whole and streamed.

Laws of this file:
- Prompt tokens of OpenAI's contain those that came from a cache, Anthropic's do not: they are added
  here, and told apart in `prompt_tokens_details`.
- Blocks of kinds that OpenAI's answers have no place for (searches that Anthropic ran itself,
  citations, signatures) are skipped; the text about them stays.
- A stream that ends before `message_stop` ends with an error, never with `[DONE]`.

Source: https://platform.claude.com/docs/en/build-with-claude/streaming
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from modelyard.dialects import openai
from modelyard.dialects.base import Problem, UnreadableAnswer
from modelyard.dialects.sse import DONE, EventReader, event

_FINISH: Final[Mapping[str, str]] = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
"""By `stop_reason`; every other one is `stop`."""

_STATUS: Final[Mapping[str, int]] = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 503,
}
"""By the type of an error in a stream, where there is no status."""

_encode = msgspec.json.encode


class _Error(msgspec.Struct):
    type: str = ""
    message: str = ""


class _Block(msgspec.Struct):
    """A content block, or the next part of one."""

    type: str = ""
    text: str = ""
    thinking: str = ""
    partial_json: str = ""
    id: str = ""
    name: str = ""
    input: dict[str, Any] = {}
    stop_reason: str | None = None


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class _Message(msgspec.Struct):
    id: str = ""
    content: list[_Block] = []
    stop_reason: str | None = None
    usage: _Usage = msgspec.field(default_factory=_Usage)


class _Event(msgspec.Struct):
    type: str = ""
    message: _Message | None = None
    index: int = 0
    content_block: _Block | None = None
    delta: _Block | None = None
    usage: _Usage | None = None
    error: _Error | None = None


_decode_message = msgspec.json.Decoder(_Message).decode
_decode_event = msgspec.json.Decoder(_Event).decode


class Reply:
    """Turns one answer into what an OpenAI client expects. A `dialects.base.Reply`."""

    def __init__(self, model: str, *, created: int = 0, wants_usage: bool = False) -> None:
        """`model` is the name that the client used, `created` the answer's moment in seconds since
        the epoch, `wants_usage` whether a stream ends with a chunk of usage.
        """
        self._model = model
        self._created = created
        self._wants_usage = wants_usage
        self._id = ""
        self._events = EventReader()
        self._usage = _Usage()
        self._calls: dict[int, int] = {}
        """From the index of a block to that of the call it is."""
        self._is_over = False

    def whole(self, answer: bytes) -> bytes:
        try:
            message = _decode_message(answer)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UnreadableAnswer(f"it is no message of Anthropic's: {error}") from None
        if message.stop_reason is None:
            raise UnreadableAnswer("it is no message of Anthropic's: it has no stop_reason")
        self._id = message.id
        self._note(message.usage)
        texts = [block.text for block in message.content if block.type == "text"]
        said: dict[str, Any] = {"role": "assistant", "content": "".join(texts) if texts else None}
        thoughts = [block.thinking for block in message.content if block.type == "thinking"]
        if any(thoughts):
            said["reasoning_content"] = "".join(thoughts)
        calls = [
            _call(block, _encode(block.input).decode())
            for block in message.content
            if block.type == "tool_use"
        ]
        if calls:
            said["tool_calls"] = calls
        choice = {"index": 0, "message": said, "finish_reason": _finish(message.stop_reason)}
        frame = self._frame("chat.completion")
        return _encode({**frame, "choices": [choice], "usage": self._counted()})

    def part(self, data: bytes) -> bytes:
        return b"".join(self._on(each) for each in self._events.feed(data))

    def end(self) -> bytes:
        if self._is_over:
            return b""
        return self.failed(Problem(502, "the upstream's stream ended before its answer did"))

    def failed(self, problem: Problem) -> bytes:
        if self._is_over:
            return b""
        self._is_over = True
        return openai.error_event(problem)

    def _on(self, data: bytes) -> bytes:
        if self._is_over:
            return b""
        try:
            seen = _decode_event(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UnreadableAnswer(f"an event of it cannot be read: {error}") from None
        match seen.type:
            case "message_start" if seen.message is not None:
                self._id = seen.message.id
                self._note(seen.message.usage)
                return self._chunk({"role": "assistant", "content": ""})
            case "content_block_start" if seen.content_block is not None:
                return self._starts(seen.index, seen.content_block)
            case "content_block_delta" if seen.delta is not None:
                return self._goes_on(seen.index, seen.delta)
            case "message_delta":
                self._note(seen.usage or _Usage())
                reason = seen.delta.stop_reason if seen.delta is not None else None
                return b"" if reason is None else self._chunk({}, _finish(reason))
            case "message_stop":
                return self._last()
            case "error":
                said = seen.error or _Error()
                return self.failed(Problem(_STATUS.get(said.type, 502), said.message, said.type))
        return b""

    def _starts(self, index: int, block: _Block) -> bytes:
        if block.type == "tool_use":
            number = self._calls[index] = len(self._calls)
            return self._chunk({"tool_calls": [{"index": number, **_call(block, "")}]})
        return self._goes_on(index, block)

    def _goes_on(self, index: int, part: _Block) -> bytes:
        if part.text:
            return self._chunk({"content": part.text})
        if part.thinking:
            return self._chunk({"reasoning_content": part.thinking})
        number = self._calls.get(index)
        if part.partial_json and number is not None:
            arguments = {"arguments": part.partial_json}
            return self._chunk({"tool_calls": [{"index": number, "function": arguments}]})
        return b""

    def _last(self) -> bytes:
        self._is_over = True
        usage = b""
        if self._wants_usage:
            frame = self._frame("chat.completion.chunk")
            usage = event(_encode({**frame, "choices": [], "usage": self._counted()}))
        return usage + event(DONE)

    def _chunk(self, delta: Mapping[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return event(_encode({**self._frame("chat.completion.chunk"), "choices": [choice]}))

    def _frame(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _note(self, usage: _Usage) -> None:
        """Later numbers replace earlier ones: those of a stream are totals."""
        for name in _Usage.__struct_fields__:
            value = getattr(usage, name)
            if value is not None:
                setattr(self._usage, name, value)

    def _counted(self) -> dict[str, Any]:
        usage = self._usage
        cached = usage.cache_read_input_tokens or 0
        written = usage.cache_creation_input_tokens or 0
        prompt = (usage.input_tokens or 0) + cached + written
        completion = usage.output_tokens or 0
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


def _call(block: _Block, arguments: str) -> dict[str, Any]:
    function = {"name": block.name, "arguments": arguments}
    return {"id": block.id, "type": "function", "function": function}


def _finish(reason: str) -> str:
    return _FINISH.get(reason, "stop")
