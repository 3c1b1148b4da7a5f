"""The items of one Responses answer while they come into being, and what a stream says of them.

Laws of this file:
- An item is announced, grows, and is done, in events of its own; items end in the order in which
  they began. A whole answer is made by the same steps, without its events.
- Words, refusals and reasoning are items of their own, one part each. Calls stay open until the
  answer ends, because engines may interleave the parts of several.
- What is kept of an answer is bounded by MAX_EVENT_BYTES: what is done is said once more, whole.

Source: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from modelyard.dialects.base import MAX_EVENT_BYTES, UnreadableAnswer
from modelyard.dialects.chat import Delta, Logprobs, TokenLogprob, ToolCall, reasoning_of
from modelyard.dialects.responses_input import wrapped
from modelyard.dialects.responses_tools import Called, Toolbox, custom_input_of

Event = tuple[str, dict[str, Any]]
"""The name of an event and its fields."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """How one kind of words is told."""

    item: str
    prefix: str
    part: str
    field: str
    event: str


_TEXT: Final = _Kind("message", "msg", "output_text", "text", "response.output_text")
_REFUSAL: Final = _Kind("message", "msg", "refusal", "refusal", "response.refusal")
_REASONING: Final = _Kind("reasoning", "rs", "reasoning_text", "text", "response.reasoning_text")


@dataclass(slots=True)
class _Words:
    """A message, a refusal or reasoning that grows."""

    kind: _Kind
    index: int
    id: str
    pieces: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass(slots=True)
class _Call:
    """A call of a tool that grows."""

    index: int
    id: str
    call_id: str = ""
    function: str = ""
    pieces: list[str] = field(default_factory=list)
    is_announced: bool = False

    @property
    def arguments(self) -> str:
        return "".join(self.pieces)


class Output:
    """What one answer says. `add` parts of it, then `finish`."""

    def __init__(self, suffix: str, tools: Toolbox, *, wraps_reasoning: bool) -> None:
        """`suffix` makes ids of items; `wraps_reasoning` adds `encrypted_content` to reasoning."""
        self.items: list[dict[str, Any]] = []
        """As they were told of last."""
        self._suffix = suffix
        self._tools = tools
        self._wraps = wraps_reasoning
        self._words: _Words | None = None
        self._calls: dict[int, _Call] = {}
        self._held = 0

    def add(self, part: Delta, logprobs: Logprobs | None = None) -> list[Event]:
        """The next part of the answer. Raises UnreadableAnswer if it grows without bound."""
        events: list[Event] = []
        if reasoning := reasoning_of(part):
            events += self._say(_REASONING, reasoning, None)
        if part.content:
            events += self._say(_TEXT, part.content, logprobs)
        if part.refusal:
            events += self._say(_REFUSAL, part.refusal, None)
        for call in part.tool_calls or ():
            events += self._call(call)
        return events

    def finish(self, status: str) -> list[Event]:
        """The answer is over; `status` is what its unfinished items become."""
        events = self._close_words(status)
        for call in self._calls.values():
            events += self._close_call(call, status)
        self._calls = {}
        return events

    def said(self) -> list[dict[str, Any]]:
        """The items of an answer that broke off: those that are done, as clients know them."""
        return [item for item in self.items if item.get("status") == "completed"]

    # ------------------------------------------------------------------------------------- words

    def _say(self, kind: _Kind, text: str, logprobs: Logprobs | None) -> list[Event]:
        self._hold(text)
        events: list[Event] = []
        words = self._words
        if words is None or words.kind is not kind:
            events += self._close_words("completed")
            words = self._words = _Words(kind, len(self.items), self._id(kind.prefix))
            events += self._announce(self._item(words, "in_progress", is_empty=True))
            events.append(("response.content_part.added", _at(words) | {"part": _part(words)}))
        words.pieces.append(text)
        said = _at(words) | {"delta": text}
        if kind is _TEXT:
            known = _logprobs(logprobs)
            words.logprobs += known
            said["logprobs"] = known
        events.append((f"{kind.event}.delta", said))
        return events

    def _close_words(self, status: str) -> list[Event]:
        words, self._words = self._words, None
        if words is None:
            return []
        kind, at = words.kind, _at(words)
        said: dict[str, Any] = at | {kind.field: words.text}
        if kind is _TEXT:
            said["logprobs"] = words.logprobs
        return [
            (f"{kind.event}.done", said),
            ("response.content_part.done", at | {"part": _part(words)}),
            *self._done(words.index, self._item(words, status)),
        ]

    def _item(self, words: _Words, status: str, *, is_empty: bool = False) -> dict[str, Any]:
        item = {"id": words.id, "type": words.kind.item, "status": status}
        content = [] if is_empty else [_part(words)]
        if words.kind is not _REASONING:
            return item | {"role": "assistant", "content": content}
        reasoning: dict[str, Any] = item | {"summary": [], "content": content}
        if self._wraps and not is_empty:
            reasoning["encrypted_content"] = wrapped(words.text)
        return reasoning

    # ------------------------------------------------------------------------------------- calls

    def _call(self, part: ToolCall) -> list[Event]:
        call = self._calls.get(part.index)
        events: list[Event] = []
        if call is None:
            events += self._close_words("completed")
            call = _Call(len(self.items), self._id("fc"))
            self._calls[part.index] = call
            self.items.append({})  # its place; what stands there follows with its name
        call.call_id = call.call_id or part.id or ""
        call.function = call.function or part.function.name or ""
        arguments = part.function.arguments or ""
        self._hold(arguments)
        if arguments:
            call.pieces.append(arguments)
        if not call.is_announced:
            if call.function:
                events += self._announce_call(call)
        elif arguments and self._tools.called(call.function).kind == "function":
            events.append((_ARGUMENTS + ".delta", _at(call) | {"delta": arguments}))
        return events

    def _announce_call(self, call: _Call) -> list[Event]:
        call.is_announced = True
        # An engine that gives no id gets one: clients send it back with the result.
        call.call_id = call.call_id or f"call_{self._suffix}_{call.index}"
        tool = self._tools.called(call.function)
        item = _call_item(call, tool, "", "in_progress")
        self.items[call.index] = item
        events: list[Event] = [_added(call.index, item)]
        if call.pieces and tool.kind == "function":
            events.append((_ARGUMENTS + ".delta", _at(call) | {"delta": call.arguments}))
        return events

    def _close_call(self, call: _Call, status: str) -> list[Event]:
        events = [] if call.is_announced else self._announce_call(call)
        tool = self._tools.called(call.function)
        given = call.arguments
        if tool.kind == "custom":
            given = custom_input_of(call.arguments)
            # Said at once: what stands in a string of JSON is not known before it is whole.
            events.append((_INPUT + ".delta", _at(call) | {"delta": given}))
            events.append((_INPUT + ".done", _at(call) | {"input": given}))
        elif tool.kind == "function":
            said = _at(call) | {"name": tool.name, "arguments": given}
            events.append((_ARGUMENTS + ".done", said))
        return events + self._done(call.index, _call_item(call, tool, given, status))

    # ------------------------------------------------------------------------------------- items

    def _announce(self, item: dict[str, Any]) -> list[Event]:
        self.items.append(item)
        return [_added(len(self.items) - 1, item)]

    def _done(self, index: int, item: dict[str, Any]) -> list[Event]:
        self.items[index] = item
        return [("response.output_item.done", {"output_index": index, "item": item})]

    def _id(self, prefix: str) -> str:
        return f"{prefix}_{self._suffix}_{len(self.items)}"

    def _hold(self, text: str) -> None:
        self._held += len(text)
        if self._held > MAX_EVENT_BYTES:
            raise UnreadableAnswer(f"it is longer than {MAX_EVENT_BYTES} characters")


_ARGUMENTS: Final = "response.function_call_arguments"
_INPUT: Final = "response.custom_tool_call_input"


def _added(index: int, item: dict[str, Any]) -> Event:
    return "response.output_item.added", {"output_index": index, "item": item}


def _at(place: _Words | _Call) -> dict[str, Any]:
    """Where something is said."""
    at: dict[str, Any] = {"item_id": place.id, "output_index": place.index}
    if isinstance(place, _Words):
        at["content_index"] = 0
    return at


def _part(words: _Words) -> dict[str, Any]:
    part: dict[str, Any] = {"type": words.kind.part, words.kind.field: words.text}
    if words.kind is _TEXT:
        part |= {"annotations": [], "logprobs": list(words.logprobs)}
    return part


def _call_item(call: _Call, tool: Called, given: str, status: str) -> dict[str, Any]:
    item: dict[str, Any] = {"id": call.id, "status": status, "call_id": call.call_id}
    if tool.kind == "tool_search":
        return item | {"type": "tool_search_call", "execution": "client", "arguments": _read(given)}
    kind, said = _CALLS[tool.kind]
    item |= {"type": kind, "name": tool.name, said: given}
    return item if tool.namespace is None else item | {"namespace": tool.namespace}


_CALLS: Final = {
    "function": ("function_call", "arguments"),
    "custom": ("custom_tool_call", "input"),
}


def _read(arguments: str) -> Any:
    """Arguments as a value; as they are where the model wrote no JSON."""
    try:
        return msgspec.json.decode(arguments or "{}")
    except msgspec.DecodeError:
        return arguments


def _logprobs(known: Logprobs | None) -> list[dict[str, Any]]:
    if known is None:
        return []
    return [
        _logprob(token) | {"top_logprobs": [_logprob(other) for other in token.top_logprobs or ()]}
        for token in known.content or ()
    ]


def _logprob(token: TokenLogprob) -> dict[str, Any]:
    text = token.token
    return {"token": text, "logprob": token.logprob, "bytes": list(text.encode())}


def numbered(calls: Sequence[ToolCall] | None) -> list[ToolCall] | None:
    """The calls of a whole answer, which have no index, by their order."""
    if calls is None:
        return None
    return [ToolCall(index, call.id, call.function) for index, call in enumerate(calls)]
