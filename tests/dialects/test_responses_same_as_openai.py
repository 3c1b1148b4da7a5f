"""A chat in the words of Responses is the same chat: to the engine, and back to the client."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.dialects import responses

URL = "data:image/png;base64,AA"
WORDS = st.text(min_size=1, max_size=12)
NAMES = st.from_regex(r"[a-z]{1,6}", fullmatch=True)
ARGUMENTS = st.dictionaries(NAMES, st.integers(-9, 9) | WORDS | st.booleans(), max_size=3)
CALLS = st.lists(st.tuples(NAMES, ARGUMENTS.map(json.dumps)), max_size=3)


@dataclass
class Turn:
    """One turn of a conversation, in nobody's dialect."""

    role: str
    text: str
    has_image: bool = False
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    """Calls of tools; each is answered right after, in its order."""

    def as_responses(self, first_call: int) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        if self.reasoning:
            content = [{"type": "reasoning_text", "text": self.reasoning}]
            items.append({"type": "reasoning", "id": "rs", "summary": [], "content": content})
        kind = "output_text" if self.role == "assistant" else "input_text"
        parts: list[dict[str, Any]] = [{"type": kind, "text": self.text}]
        if self.has_image:
            parts.append({"type": "input_image", "image_url": URL})
        items.append({"type": "message", "role": self.role, "content": parts})
        for place, (name, arguments) in enumerate(self.calls, first_call):
            known = {"call_id": f"c{place}", "name": name, "arguments": arguments}
            items.append({"type": "function_call", **known})
        for place, (name, _) in enumerate(self.calls, first_call):
            output = {"call_id": f"c{place}", "output": f"of {name}"}
            items.append({"type": "function_call_output", **output})
        return items

    def as_openai(self, first_call: int) -> list[dict[str, Any]]:
        message: dict[str, Any] = {"role": self.role, "content": self.text}
        if self.has_image:
            image = {"type": "image_url", "image_url": {"url": URL}}
            message["content"] = [{"type": "text", "text": self.text}, image]
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        results = []
        for place, (name, arguments) in enumerate(self.calls, first_call):
            function = {"name": name, "arguments": arguments}
            call = {"id": f"c{place}", "type": "function", "function": function}
            message.setdefault("tool_calls", []).append(call)
            result = {"role": "tool", "tool_call_id": f"c{place}", "content": f"of {name}"}
            results.append(result)
        return [message, *results]


USERS = st.builds(Turn, st.just("user"), WORDS, st.booleans())
ASSISTANTS = st.builds(
    Turn, st.just("assistant"), WORDS, reasoning=st.just("") | WORDS, calls=CALLS
)
CONVERSATIONS = st.lists(USERS | ASSISTANTS, min_size=1, max_size=6)

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
FUNCTION = {"name": "f", "description": "It works.", "parameters": SCHEMA}
FORM = {"name": "a", "schema": SCHEMA, "strict": True}
SETTINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"temperature": 0.5, "top_p": 0.9},) * 2,
    ({"max_output_tokens": 9, "stop": ["x"]}, {"max_tokens": 9, "stop": ["x"]}),
    (
        {"text": {"format": {"type": "json_schema", **FORM}}},
        {"response_format": {"type": "json_schema", "json_schema": FORM}},
    ),
    ({"reasoning": {"effort": "low"}}, {"reasoning_effort": "low"}),
    (
        {
            "tools": [{"type": "function", **FUNCTION}],
            "tool_choice": {"type": "function", "name": "f"},
            "parallel_tool_calls": False,
        },
        {
            "tools": [{"type": "function", "function": FUNCTION}],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "parallel_tool_calls": False,
        },
    ),
    ({"seed_of_tomorrow": 1},) * 2,
]


@given(CONVERSATIONS, st.just("") | WORDS, st.sampled_from(SETTINGS), st.booleans())
@settings(max_examples=60, deadline=None)
def test_it_reaches_the_engine_as_the_same_request(
    conversation: list[Turn],
    instructions: str,
    setting: tuple[dict[str, Any], dict[str, Any]],
    stream: bool,
) -> None:
    written, expected = setting
    items: list[dict[str, Any]] = []
    same: list[dict[str, Any]] = []
    if instructions:
        same.append({"role": "system", "content": instructions})
    calls = 0
    for turn in conversation:
        items += turn.as_responses(calls)
        same += turn.as_openai(calls)
        calls += len(turn.calls)
    request = {"model": "m", "input": items, "instructions": instructions, "stream": stream}

    asked = responses.translate(json.dumps(request | written).encode())

    got = json.loads(asked.body)
    assert got == {"model": "m", "stream": stream, "messages": same, **expected}


def chunks(
    texts: list[str], thoughts: list[str], calls: list[tuple[str, str]], reason: str
) -> bytes:
    """An engine's stream; arguments of calls come in two parts."""
    deltas: list[dict[str, Any]] = [{"reasoning": text} for text in thoughts]
    deltas += [{"content": text} for text in texts]
    for index, (name, arguments) in enumerate(calls):
        middle = len(arguments) // 2
        first = {"name": name, "arguments": arguments[:middle]}
        deltas.append({"tool_calls": [{"index": index, "id": f"c{index}", "function": first}]})
        second = {"arguments": arguments[middle:]}
        deltas.append({"tool_calls": [{"index": index, "function": second}]})
    said: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": each}]} for each in deltas]
    said.append({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    said.append({"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 7}})
    whole = b"".join(b"data: " + json.dumps(each).encode() + b"\r\n\r\n" for each in said)
    return whole + b"data: [DONE]\r\n\r\n"


def whole(
    texts: list[str], thoughts: list[str], calls: list[tuple[str, str]], reason: str
) -> bytes:
    """The same answer at once."""
    made = [
        {"id": f"c{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for index, (name, arguments) in enumerate(calls)
    ]
    message = {
        "content": "".join(texts) or None,
        "reasoning_content": "".join(thoughts) or None,
        "tool_calls": made or None,
    }
    usage = {"prompt_tokens": 11, "completion_tokens": 7}
    choices = [{"message": message, "finish_reason": reason}]
    return json.dumps({"choices": choices, "usage": usage}).encode()


@given(
    st.lists(WORDS, max_size=4),
    st.lists(WORDS, max_size=2),
    CALLS,
    st.sampled_from(["stop", "length", "tool_calls"]),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_it_comes_back_the_same_however_it_is_cut_and_streamed_or_not(
    texts: list[str],
    thoughts: list[str],
    calls: list[tuple[str, str]],
    reason: str,
    data: st.DataObject,
) -> None:
    stream = chunks(texts, thoughts, calls, reason)
    body = b'{"model": "m", "input": "x", "stream": true}'
    at_once = responses.translate(body).reply
    expected = at_once.part(stream) + at_once.end()
    asked = responses.translate(body).reply
    said = b""
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        said += asked.part(stream[:size])
        stream = stream[size:]
    said += asked.end()

    assert said == expected
    last = json.loads(said.rstrip().rpartition(b"data: ")[2])["response"]
    once = json.loads(responses.translate(body).reply.whole(whole(texts, thoughts, calls, reason)))
    assert last == once
    of_type: dict[str, list[dict[str, Any]]] = {}
    for item in last["output"]:
        of_type.setdefault(item["type"], []).append(item)
    words = [part["text"] for item in of_type.get("message", ()) for part in item["content"]]
    hidden = [part["text"] for item in of_type.get("reasoning", ()) for part in item["content"]]
    made = [(item["name"], item["arguments"]) for item in of_type.get("function_call", ())]
    assert "".join(words) == "".join(texts)
    assert "".join(hidden) == "".join(thoughts)
    assert made == calls
    assert last["status"] == ("incomplete" if reason == "length" else "completed")
    assert (last["usage"]["input_tokens"], last["usage"]["output_tokens"]) == (11, 7)
