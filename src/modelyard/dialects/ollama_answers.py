"""OpenAI's answers as Ollama gives them: one JSON object, or one a line.

Laws of this file:
- Every line names the model as the client did. The last one has `done` and what was counted;
  numbers that the engine does not tell are 0, because Ollama's clients want integers there.
- A call of a tool is said once, whole, with its arguments as an object.
- `created_at` is the engine's `created`: no clock is read here.
- A stream that ends without a reason or `[DONE]` ends with an error, not with `done`.

Sources: api/types.go of Ollama (ChatResponse, GenerateResponse, EmbedResponse, Metrics) and
docs/api.md; llama.cpp's server README for `timings`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final, Literal

import msgspec

from modelyard.dialects.base import MAX_EVENT_BYTES, Problem, UnreadableAnswer
from modelyard.dialects.chat import (
    Answer,
    Choice,
    Timings,
    TokenLogprob,
    ToolCall,
    Usage,
    read_answer,
    reasoning_of,
)
from modelyard.dialects.sse import DONE, EventReader

LINES: Final = b"application/x-ndjson"
_NS_PER_MS: Final = 1_000_000
_MOST_MS: Final = 1e12
"""Thirty years: no duration is longer, and clients read 64 bits."""
_encode = msgspec.json.encode

Place = Literal["message", "response"]
"""Where the words stand: chat has a message, generate a text."""


def error_body(message: str) -> bytes:
    """An error, as a whole answer or a line."""
    return _encode({"error": message})


def moment(seconds: float) -> str:
    """A moment in RFC 3339, from seconds since the epoch; the epoch where they are no moment."""
    try:
        at = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError, ValueError):
        at = datetime.fromtimestamp(0, UTC)
    return at.isoformat().replace("+00:00", "Z")


def loaded(
    model: str, empty: Mapping[str, Any], done_reason: str | None
) -> Callable[[float], bytes]:
    """The answer to a request that asked nothing, made when the moment of it is known."""

    def answer(at: float) -> bytes:
        if done_reason is None:
            return _encode({"model": model, **empty})
        done = {"done": True, "done_reason": done_reason}
        return _encode({"model": model, "created_at": moment(at), **empty, **done})

    return answer


class TextReply:
    """The reply to chat and generate."""

    def __init__(self, model: str, place: Place) -> None:
        self._model = model
        self._place = place
        self._events = EventReader()
        self._created: str | None = None
        self._calls: dict[int, _Call] = {}
        self._held = 0
        self._reason: str | None = None
        self._usage = Usage()
        self._timings = Timings()
        self._is_over = False

    def whole(self, answer: bytes) -> bytes:
        read = read_answer(answer)
        if read.error is not None or not read.choices:
            raise UnreadableAnswer("it is no completion: it has no choices")
        self._note(read)
        said = _first(read) or Choice()
        message = said.message
        for index, call in enumerate(message.tool_calls or ()):  # whole ones have no index
            self._add(call, index)
        words = message.content or message.refusal or said.text or ""
        return _encode(
            self._frame(words, reasoning_of(message), self._finished_calls(), said) | self._ending()
        )

    def part(self, data: bytes) -> bytes:
        return b"".join(self._line(event) for event in self._events.feed(data))

    def end(self) -> bytes:
        if self._is_over:
            return b""
        if self._reason is None:
            return self._last({"error": "the engine's stream ended before its answer did"})
        return self._done()

    def failed(self, problem: Problem) -> bytes:
        return self._last({"error": problem.message})

    def _line(self, event: bytes) -> bytes:
        if self._is_over:
            return b""
        if event == DONE:
            self._reason = self._reason or "stop"
            return self._done()
        read = read_answer(event)
        if read.error is not None:
            said = read.error if isinstance(read.error, str) else read.error.message
            return self._last({"error": said or "the engine broke off"})
        self._note(read)
        said_now = _first(read)
        if said_now is None:
            return b""
        delta = said_now.delta
        for call in delta.tool_calls or ():
            self._add(call, call.index)
        words = delta.content or delta.refusal or said_now.text or ""
        thought = reasoning_of(delta)
        calls = self._finished_calls() if said_now.finish_reason else []
        if not (words or thought or calls):
            return b""
        return _encode(self._frame(words, thought, calls, said_now) | {"done": False}) + b"\n"

    def _done(self) -> bytes:
        # Calls are held until the engine names its reason; one that never does has made them too.
        return self._last(self._frame("", None, self._finished_calls(), Choice()) | self._ending())

    def _last(self, line: Mapping[str, Any]) -> bytes:
        self._is_over = True
        return _encode(line) + b"\n"

    def _note(self, read: Answer) -> None:
        if self._created is None:
            self._created = moment(read.created)
        self._usage = read.usage or self._usage
        self._timings = read.timings or self._timings
        said = _first(read)
        if said is not None and said.finish_reason:
            # Ollama has no words for calls of tools and filters: the model stopped by itself.
            self._reason = "length" if said.finish_reason == "length" else "stop"

    def _frame(
        self, words: str, thought: str | None, calls: list[dict[str, Any]], said: Choice
    ) -> dict[str, Any]:
        line: dict[str, Any] = {"model": self._model, "created_at": self._created or moment(0)}
        thinking = {"thinking": thought} if thought else {}
        if self._place == "message":
            tool_calls = {"tool_calls": calls} if calls else {}
            line["message"] = {"role": "assistant", "content": words, **thinking, **tool_calls}
        else:
            line |= {"response": words, **thinking}
        if said.logprobs is not None and said.logprobs.content:
            line["logprobs"] = [_likelihood(token) for token in said.logprobs.content]
        return line

    def _ending(self) -> dict[str, Any]:
        read_ns = _nanoseconds(self._timings.prompt_ms)
        said_ns = _nanoseconds(self._timings.predicted_ms)
        return {
            "done": True,
            "done_reason": self._reason or "stop",
            "total_duration": read_ns + said_ns,
            "load_duration": 0,
            "prompt_eval_count": self._usage.prompt_tokens or 0,
            "prompt_eval_duration": read_ns,
            "eval_count": self._usage.completion_tokens or 0,
            "eval_duration": said_ns,
        }

    def _add(self, part: ToolCall, index: int) -> None:
        call = self._calls.setdefault(index, _Call())
        call.id = call.id or part.id
        call.name = call.name or part.function.name or ""
        call.arguments.append(part.function.arguments or "")
        self._held += len(part.function.arguments or "")
        if self._held > MAX_EVENT_BYTES:
            raise UnreadableAnswer(f"a call of a tool is larger than {MAX_EVENT_BYTES} bytes")

    def _finished_calls(self) -> list[dict[str, Any]]:
        calls, self._calls = self._calls, {}
        return [calls[index].shown(place) for place, index in enumerate(sorted(calls))]


class _Call:
    """One call of a tool, as far as it is known."""

    def __init__(self) -> None:
        self.id: str | None = None
        self.name = ""
        self.arguments: list[str] = []

    def shown(self, place: int) -> dict[str, Any]:
        try:
            arguments = msgspec.json.decode("".join(self.arguments) or "{}", type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError):
            raise UnreadableAnswer(
                f"the arguments of the call of {self.name!r} are no JSON object"
            ) from None
        function = {"index": place, "name": self.name, "arguments": arguments}
        return {**({"id": self.id} if self.id else {}), "function": function}


class Vectors(Enum):
    """Which vectors an answer has: a list of them, or only the first."""

    ALL = "embeddings"
    FIRST = "embedding"


class _Vector(msgspec.Struct, frozen=True):
    embedding: msgspec.Raw
    index: int = 0


class _Embedded(msgspec.Struct, frozen=True):
    data: list[_Vector]
    usage: Usage | None = None


_read_vectors = msgspec.json.Decoder(_Embedded).decode


def vectors_of(answer: bytes, model: str, shown: Vectors) -> bytes:
    """The vectors of an engine's answer. Raises UnreadableAnswer."""
    try:
        read = _read_vectors(answer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnreadableAnswer(f"it has no embeddings: {error}") from None
    vectors = [each.embedding for each in sorted(read.data, key=lambda each: each.index)]
    if not vectors:
        raise UnreadableAnswer("it has no embeddings")
    if shown is Vectors.FIRST:
        return _encode({"embedding": vectors[0]})
    counted = read.usage.prompt_tokens if read.usage else None
    return _encode(
        {
            "model": model,
            "embeddings": vectors,
            "total_duration": 0,
            "load_duration": 0,
            "prompt_eval_count": counted or 0,
        }
    )


def _nanoseconds(milliseconds: float) -> int:
    return round(min(max(milliseconds, 0.0), _MOST_MS) * _NS_PER_MS)


def _likelihood(token: TokenLogprob) -> dict[str, Any]:
    shown: dict[str, Any] = {"token": token.token, "logprob": token.logprob}
    if token.top_logprobs is not None:
        shown["top_logprobs"] = [_likelihood(other) for other in token.top_logprobs]
    return shown


def _first(read: Answer) -> Choice | None:
    """The first answer: Ollama has no others."""
    return next((choice for choice in read.choices if choice.index == 0), None)
