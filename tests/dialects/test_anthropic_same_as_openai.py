"""A chat is the same chat, whether it is asked in Anthropic's shape or in OpenAI's."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.dialects import to_anthropic
from modelyard.dialects.anthropic import translate
from modelyard.dialects.anthropic_reply import Reply
from modelyard.dialects.base import Reply as AnyReply

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
NAMES = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
OBJECTS = st.dictionaries(NAMES, st.one_of(WORDS, st.integers(-9, 9), st.booleans()), max_size=3)
PIXEL = "data:image/png;base64,iVBO"


@dataclass(frozen=True)
class Call:
    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Turn:
    """One exchange: what the user says, and what the model says, calls and is told."""

    words: str
    has_image: bool
    thought: str | None
    answer: str
    calls: tuple[tuple[Call, str], ...]


CALLS = st.lists(
    st.tuples(st.builds(Call, NAMES, NAMES, OBJECTS), WORDS),
    max_size=3,
    unique_by=lambda made: made[0].id,
).map(tuple)
TURNS = st.lists(
    st.builds(Turn, WORDS, st.booleans(), st.none() | WORDS, WORDS, CALLS), min_size=1, max_size=3
)
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
OPTIONS = st.fixed_dictionaries(
    {"model": NAMES, "max_tokens": st.integers(1, 99)},
    optional={
        "temperature": st.sampled_from([0, 0.5, 1]),
        "top_p": st.sampled_from([0.1, 1.0]),
        "stream": st.booleans(),
    },
)
SAID_APART: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"stop": ["END", "\n"]}, {"stop_sequences": ["END", "\n"]}),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True},
            }
        },
        {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
    ),
    ({"reasoning_effort": "high"}, {"output_config": {"effort": "high"}}),
    ({"chat_template_kwargs": {"enable_thinking": False}}, {"thinking": {"type": "disabled"}}),
    (
        {
            "tools": [
                {
                    "type": "function",
                    "function": {"name": "weather", "description": "d", "parameters": SCHEMA},
                }
            ],
            "tool_choice": {"type": "function", "function": {"name": "weather"}},
            "parallel_tool_calls": False,
        },
        {
            "tools": [{"name": "weather", "description": "d", "input_schema": SCHEMA}],
            "tool_choice": {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
        },
    ),
]


def as_openai(system: str | None, turns: list[Turn]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if system:
        messages.append({"role": "system", "content": system})
    for turn in turns:
        image = {"type": "image_url", "image_url": {"url": PIXEL}}
        parts = [image, {"type": "text", "text": turn.words}]
        messages.append({"role": "user", "content": parts if turn.has_image else turn.words})
        said: dict[str, Any] = {"role": "assistant", "content": turn.answer}
        if turn.thought:
            said["reasoning_content"] = turn.thought
        if turn.calls:
            said["tool_calls"] = [
                {"id": call.id, "type": "function", "function": _function(call)}
                for call, _ in turn.calls
            ]
        messages.append(said)
        messages += [
            {"role": "tool", "tool_call_id": call.id, "content": result}
            for call, result in turn.calls
        ]
    return [*messages, {"role": "user", "content": "and now?"}]


def _function(call: Call) -> dict[str, str]:
    arguments = json.dumps(call.arguments, ensure_ascii=False, separators=(",", ":"))
    return {"name": call.name, "arguments": arguments}


def as_anthropic(turns: list[Turn]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for turn in turns:
        source = {"type": "base64", "media_type": "image/png", "data": "iVBO"}
        parts = [{"type": "image", "source": source}] if turn.has_image else []
        said = {"type": "text", "text": turn.words}
        messages.append({"role": "user", "content": [*results, *parts, said]})
        thought = {"type": "thinking", "thinking": turn.thought, "signature": ""}
        calls = [
            {"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments}
            for call, _ in turn.calls
        ]
        answer = {"type": "text", "text": turn.answer}
        blocks = [*([thought] if turn.thought else []), answer, *calls]
        messages.append({"role": "assistant", "content": blocks})
        results = [
            {"type": "tool_result", "tool_use_id": call.id, "content": result}
            for call, result in turn.calls
        ]
    last = {"type": "text", "text": "and now?"}
    messages.append({"role": "user", "content": [*results, last] if results else "and now?"})
    return messages


@given(st.none() | WORDS, TURNS, OPTIONS, st.sampled_from(SAID_APART))
@settings(max_examples=40)
def test_a_chat_reaches_the_engine_as_the_same_request(
    system: str | None,
    turns: list[Turn],
    options: dict[str, Any],
    apart: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    openai = {**options, "messages": as_openai(system, turns), **apart[0]}
    asked = {**options, "messages": as_anthropic(turns), **apart[1]}
    if system:
        asked["system"] = system

    assert json.loads(translate(json.dumps(asked).encode()).body) == openai


@given(st.none() | WORDS, TURNS, OPTIONS, st.sampled_from(SAID_APART))
@settings(max_examples=40)
def test_a_chat_for_a_remote_of_anthropics_asks_the_same(
    system: str | None,
    turns: list[Turn],
    options: dict[str, Any],
    apart: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    openai = {**options, "messages": as_openai(system, turns), **apart[0]}
    there = to_anthropic.request(json.dumps(openai).encode())

    for message in openai["messages"]:
        message.pop("reasoning_content", None)  # it has no signature, so it stays behind
    assert json.loads(translate(there).body) == openai


@st.composite
def answers(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A chat completion, and the chunks of a stream that says the same."""
    thought, text = draw(st.lists(WORDS, max_size=3)), draw(st.lists(WORDS, max_size=3))
    calls = [
        {"id": call.id, "type": "function", "function": _function(call)} for call, _ in draw(CALLS)
    ]
    finish = "tool_calls" if calls else draw(st.sampled_from(["stop", "length"]))
    cached = draw(st.integers(0, 5))
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 4,
        "total_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    message: dict[str, Any] = {"role": "assistant", "content": "".join(text) or None}
    if thought:
        message["reasoning_content"] = "".join(thought)
    if calls:
        message["tool_calls"] = calls
    choice = {"index": 0, "message": message, "finish_reason": finish}
    whole = {"id": "7", "object": "chat.completion", "choices": [choice], "usage": usage}
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"reasoning_content": part} for part in thought]
    deltas += [{"content": part} for part in text]
    for index, call in enumerate(calls):
        function = call["function"]
        assert isinstance(function, dict)
        cut = draw(st.integers(0, len(function["arguments"])))
        begun = {"name": function["name"], "arguments": function["arguments"][:cut]}
        rest = {"arguments": function["arguments"][cut:]}
        deltas.append({"tool_calls": [{**call, "index": index, "function": begun}]})
        deltas.append({"tool_calls": [{"index": index, "function": rest}]})
    chunks = [{"id": "7", "choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks.append({"id": "7", "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    return whole, [*chunks, {"id": "7", "choices": [], "usage": usage}]


def streamed(chunks: list[dict[str, Any]]) -> bytes:
    sent = b"".join(b"data: %b\n\n" % json.dumps(each).encode() for each in chunks)
    return sent + b"data: [DONE]\n\n"


def in_parts(reply: AnyReply, stream: bytes, cuts: list[int]) -> bytes:
    places = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    parts = [stream[a:b] for a, b in itertools.pairwise(places)]
    return b"".join(reply.part(part) for part in parts) + reply.end()


CUTS = st.lists(st.integers(0, 10_000), max_size=6)


@given(answers(), CUTS, st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_a_stream_cut_anywhere_gives_the_same_bytes(
    said: tuple[dict[str, Any], list[dict[str, Any]]], cuts: list[int], line_end: bytes
) -> None:
    stream = streamed(said[1])
    there = in_parts(Reply("m"), stream, [])
    back = in_parts(to_anthropic.Reply("m"), there, [])

    assert in_parts(Reply("m"), stream.replace(b"\n", line_end), cuts) == there
    assert in_parts(to_anthropic.Reply("m"), there, cuts) == back


@given(answers())
def test_a_whole_answer_says_the_same_there_and_back(
    said: tuple[dict[str, Any], list[dict[str, Any]]],
) -> None:
    there = Reply("m").whole(json.dumps(said[0]).encode())
    back = json.loads(to_anthropic.Reply("m").whole(there))

    assert back == {**said[0], "id": "msg_7", "created": 0, "model": "m"}


@given(answers(), CUTS)
def test_a_stream_says_the_same_as_the_whole_answer_there_and_back(
    said: tuple[dict[str, Any], list[dict[str, Any]]], cuts: list[int]
) -> None:
    there = in_parts(Reply("m"), streamed(said[1]), cuts)
    back = in_parts(to_anthropic.Reply("m", wants_usage=True), there, cuts)

    chunks = [json.loads(line[6:]) for line in back.decode().split("\n\n")[:-2]]
    assert back.endswith(b"data: [DONE]\n\n")
    assert _collected(chunks) == said[0]["choices"][0] | {"usage": said[0]["usage"]}


def _collected(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """The whole answer that a stream of chunks amounts to."""
    message: dict[str, Any] = {"role": "assistant", "content": None}
    finish = None
    calls: list[dict[str, Any]] = []
    for chunk in chunks[:-1]:
        (choice,) = chunk["choices"]
        finish = choice["finish_reason"] or finish
        for name, part in choice["delta"].items():
            if name == "tool_calls":
                _add_call(calls, part[0])
            elif name != "role" and part:
                message[name] = (message.get(name) or "") + part
    if calls:
        message["tool_calls"] = calls
    return {"index": 0, "message": message, "finish_reason": finish, "usage": chunks[-1]["usage"]}


def _add_call(calls: list[dict[str, Any]], part: dict[str, Any]) -> None:
    index = part.pop("index")
    if index == len(calls):
        calls.append(part)
    else:
        calls[index]["function"]["arguments"] += part["function"]["arguments"]
