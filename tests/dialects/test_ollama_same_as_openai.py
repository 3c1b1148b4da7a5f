"""A chat in Ollama's words is the same chat: to the engine, and back to the client."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.dialects import ollama
from modelyard.dialects.base import Asked

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(16)).decode()
WORDS = st.text(max_size=12)
NAMES = st.from_regex(r"[a-z]{1,6}", fullmatch=True)
ARGUMENTS = st.dictionaries(NAMES, st.integers(-9, 9) | WORDS | st.booleans(), max_size=3)


@dataclass
class Turn:
    """One turn of a conversation, in nobody's dialect."""

    role: str
    text: str
    images: list[str] = field(default_factory=list)
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Calls of tools; each is answered right after, in its order."""

    def as_ollama(self) -> list[dict[str, Any]]:
        message: dict[str, Any] = {"role": self.role, "content": self.text}
        if self.images:
            message["images"] = self.images
        if self.calls:
            message["tool_calls"] = [
                {"function": {"name": name, "arguments": given}} for name, given in self.calls
            ]
        results = [
            {"role": "tool", "tool_name": name, "content": f"of {name}"} for name, _ in self.calls
        ]
        return [message, *results]

    def as_openai(self, calls_before: int) -> list[dict[str, Any]]:
        message: dict[str, Any] = {"role": self.role, "content": self.text}
        if self.images:
            url = f"data:image/png;base64,{PNG}"
            pictures = [{"type": "image_url", "image_url": {"url": url}} for _ in self.images]
            words = [{"type": "text", "text": self.text}] if self.text else []
            message["content"] = [*pictures, *words]
        ids = [f"call_{calls_before + place + 1}" for place in range(len(self.calls))]
        if self.calls:
            message["tool_calls"] = [
                {"id": known, "type": "function", "function": {"name": name, "arguments": given}}
                for known, (name, given) in zip(ids, self.calls, strict=True)
            ]
        results = [
            {"role": "tool", "tool_call_id": known, "name": name, "content": f"of {name}"}
            for known, (name, _) in zip(ids, self.calls, strict=True)
        ]
        return [message, *results]


USERS = st.builds(Turn, st.just("user"), WORDS, st.lists(st.just(PNG), max_size=2))
ASSISTANTS = st.builds(
    Turn,
    st.just("assistant"),
    WORDS,
    calls=st.lists(st.tuples(NAMES, ARGUMENTS), max_size=3, unique_by=lambda call: call[0]),
)
SYSTEMS = st.builds(Turn, st.just("system"), WORDS)
CONVERSATIONS = st.lists(SYSTEMS | USERS | ASSISTANTS, min_size=1, max_size=6)

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
SETTINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"options": {"temperature": 0.5, "top_p": 0.9}}, {"temperature": 0.5, "top_p": 0.9}),
    ({"options": {"num_predict": 9, "stop": ["x"]}}, {"max_tokens": 9, "stop": ["x"]}),
    (
        {"format": SCHEMA},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": SCHEMA},
            }
        },
    ),
    ({"format": "json"}, {"response_format": {"type": "json_object"}}),
    ({"think": False}, {"chat_template_kwargs": {"enable_thinking": False}}),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]},) * 2,
    ({"seed_of_tomorrow": 1}, {"seed_of_tomorrow": 1}),
]


def as_engines_read(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same messages with the arguments of calls as objects, whoever wrote their JSON."""
    for message in messages:
        for call in message.get("tool_calls", ()):
            given_arguments = call["function"]["arguments"]
            if isinstance(given_arguments, str):
                call["function"]["arguments"] = json.loads(given_arguments)
    return messages


@given(CONVERSATIONS, st.sampled_from(SETTINGS), st.booleans())
@settings(max_examples=60, deadline=None)
def test_it_reaches_the_engine_as_the_same_request(
    conversation: list[Turn], setting: tuple[dict[str, Any], dict[str, Any]], stream: bool
) -> None:
    written, expected = setting
    messages = [message for turn in conversation for message in turn.as_ollama()]
    asked = ollama.chat(
        json.dumps({"model": "m", "messages": messages, "stream": stream, **written}).encode()
    )

    same: list[dict[str, Any]] = []
    calls = 0
    for turn in conversation:
        same += turn.as_openai(calls)
        calls += len(turn.calls)
    assert isinstance(asked, Asked)
    got = json.loads(asked.body)
    assert as_engines_read(got.pop("messages")) == same
    assert got == {"model": "m", "stream": stream, **expected}


def events(
    texts: list[str], thoughts: list[str], calls: list[tuple[str, dict[str, Any]]], reason: str
) -> bytes:
    """An engine's stream; arguments of calls come in two parts."""
    deltas: list[dict[str, Any]] = [{"reasoning_content": text} for text in thoughts]
    deltas += [{"content": text} for text in texts]
    for index, (name, given_arguments) in enumerate(calls):
        written = json.dumps(given_arguments)
        middle = len(written) // 2
        first = {"name": name, "arguments": written[:middle]}
        deltas.append({"tool_calls": [{"index": index, "id": f"c{index}", "function": first}]})
        second = {"arguments": written[middle:]}
        deltas.append({"tool_calls": [{"index": index, "function": second}]})
    chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": each}]} for each in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    usage = {"prompt_tokens": 11, "completion_tokens": 7}
    chunks.append({"choices": [], "usage": usage})
    whole = b"".join(b"data: " + json.dumps(chunk).encode() + b"\r\n\r\n" for chunk in chunks)
    return whole + b"data: [DONE]\r\n\r\n"


@given(
    st.lists(WORDS, max_size=4),
    st.lists(WORDS, max_size=2),
    st.lists(st.tuples(NAMES, ARGUMENTS), max_size=3),
    st.sampled_from(["stop", "length", "tool_calls"]),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_it_comes_back_with_the_same_words_calls_and_counts(
    texts: list[str],
    thoughts: list[str],
    calls: list[tuple[str, dict[str, Any]]],
    reason: str,
    data: st.DataObject,
) -> None:
    stream = events(texts, thoughts, calls, reason)
    asked = ollama.chat(b'{"model": "m", "messages": [{"role": "user", "content": "x"}]}')
    assert isinstance(asked, Asked)
    said = b""
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        said += asked.reply.part(stream[:size])
        stream = stream[size:]
    said += asked.reply.end()

    parts = [json.loads(line) for line in said.split(b"\n")[:-1]]
    messages = [part["message"] for part in parts]
    made = [call["function"] for message in messages for call in message.get("tool_calls", ())]
    assert "".join(message["content"] for message in messages) == "".join(texts)
    assert "".join(message.get("thinking", "") for message in messages) == "".join(thoughts)
    assert [(call["name"], call["arguments"]) for call in made] == calls
    assert [part["done"] for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1]["done_reason"] == ("length" if reason == "length" else "stop")
    assert (parts[-1]["prompt_eval_count"], parts[-1]["eval_count"]) == (11, 7)
