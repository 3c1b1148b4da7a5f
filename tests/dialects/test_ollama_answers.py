"""Engines' answers as Ollama's clients get them."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.dialects import ollama
from modelyard.dialects.base import Asked, Problem, Reply, UnreadableAnswer

FRAME = {"id": "c-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "x"}
USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
AT = "2023-11-14T22:13:20Z"
TIMINGS = {"prompt_n": 5, "prompt_ms": 12.5, "predicted_n": 3, "predicted_ms": 40.0}


def reply(**fields: Any) -> Reply:
    """The reply to a chat, or to a prompt if there is one."""
    request = ollama.generate if "prompt" in fields else ollama.chat
    fields.setdefault("messages", [{"role": "user", "content": "Hello"}])
    asked = request(json.dumps({"model": "m", **fields}).encode())
    assert isinstance(asked, Asked)
    return asked.reply


def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return b"data: " + json.dumps(FRAME | {"choices": [choice]}).encode() + b"\n\n"


def usage_chunk() -> bytes:
    last = FRAME | {"choices": [], "usage": USAGE, "timings": TIMINGS}
    return b"data: " + json.dumps(last).encode() + b"\n\ndata: [DONE]\n\n"


def lines(said: bytes) -> list[dict[str, Any]]:
    assert said.endswith(b"\n")
    return [json.loads(line) for line in said.splitlines()]


def call(index: int, **parts: Any) -> dict[str, Any]:
    """A part of a call of a tool."""
    known = {"id": parts.pop("id")} if "id" in parts else {}
    return {"index": index, **known, "function": parts}


STREAM = b"".join(
    [
        chunk({"role": "assistant", "content": None}),
        chunk({"reasoning_content": "hm"}),
        chunk({"content": "Hé"}),
        chunk({"content": "llo"}),
        chunk({"tool_calls": [call(0, id="a", name="f", arguments='{"x"')]}),
        chunk({"tool_calls": [call(0, arguments=": 1}"), call(1, id="b", name="g")]}),
        chunk({}, "tool_calls"),
        usage_chunk(),
    ]
)


def test_a_streamed_chat_is_a_line_for_each_part_and_one_with_the_counts() -> None:
    answer = reply()
    said = lines(answer.part(STREAM) + answer.end())

    frame = {"model": "m", "created_at": AT}
    calls = [
        {"id": "a", "function": {"index": 0, "name": "f", "arguments": {"x": 1}}},
        {"id": "b", "function": {"index": 1, "name": "g", "arguments": {}}},
    ]
    messages: list[dict[str, Any]] = [
        {"content": "", "thinking": "hm"},
        {"content": "Hé"},
        {"content": "llo"},
        {"content": "", "tool_calls": calls},
    ]
    assert said[:-1] == [
        {**frame, "message": {"role": "assistant", **message}, "done": False}
        for message in messages
    ]
    assert said[-1] == {
        **frame,
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "stop",
        "total_duration": 52_500_000,
        "load_duration": 0,
        "prompt_eval_count": 5,
        "prompt_eval_duration": 12_500_000,
        "eval_count": 3,
        "eval_duration": 40_000_000,
    }


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
@settings(max_examples=60, deadline=None)
def test_a_stream_says_the_same_wherever_it_is_cut(cuts: list[int]) -> None:
    whole, parted = reply(), reply()
    edges = [0, *sorted(cuts), len(STREAM)]
    parts = [STREAM[a:b] for a, b in itertools.pairwise(edges)]

    said = b"".join(parted.part(part) for part in parts) + parted.end()
    assert whole.part(STREAM) + whole.end() == said


def test_a_whole_answer_has_everything_in_one_object() -> None:
    message = {
        "role": "assistant",
        "content": "Hello",
        "reasoning": "hm",
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            {"id": "b", "type": "function", "function": {"name": "g", "arguments": '{"y":2}'}},
        ],
    }
    choice = {"index": 0, "message": message, "finish_reason": "length"}
    said = json.loads(
        reply(stream=False).whole(
            json.dumps(FRAME | {"choices": [choice], "usage": USAGE}).encode()
        )
    )

    assert said["message"] == {
        "role": "assistant",
        "content": "Hello",
        "thinking": "hm",
        "tool_calls": [
            {"id": "a", "function": {"index": 0, "name": "f", "arguments": {}}},
            {"id": "b", "function": {"index": 1, "name": "g", "arguments": {"y": 2}}},
        ],
    }
    assert (said["done"], said["done_reason"]) == (True, "length")
    assert (said["prompt_eval_count"], said["eval_count"]) == (5, 3)
    assert said["total_duration"] == 0


def test_a_prompt_is_answered_with_a_response() -> None:
    answer = reply(prompt="x")
    said = lines(answer.part(chunk({"content": "a"}) + chunk({}, "length") + usage_chunk()))

    assert [line["response"] for line in said] == ["a", ""]
    assert said[-1]["done_reason"] == "length"
    assert "message" not in said[-1]


def test_a_raw_prompt_is_answered_from_a_completion() -> None:
    whole = {**FRAME, "choices": [{"index": 0, "text": " fine", "finish_reason": "stop"}]}
    streamed = b"data: " + json.dumps(whole).encode() + b"\n\ndata: [DONE]\n\n"

    answer = reply(prompt="x", raw=True)
    assert [line["response"] for line in lines(answer.part(streamed))] == [" fine", ""]
    said = json.loads(reply(prompt="x", raw=True).whole(json.dumps(whole).encode()))
    assert said["response"] == " fine"


def test_log_probabilities_come_with_their_tokens() -> None:
    told = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
    choice = {"index": 0, "delta": {"content": "a"}, "logprobs": {"content": [told]}}
    event = b"data: " + json.dumps(FRAME | {"choices": [choice]}).encode() + b"\n\n"

    assert lines(reply().part(event))[0]["logprobs"] == [
        {"token": "a", "logprob": -0.5, "top_logprobs": []}
    ]


def test_an_engine_that_says_done_and_no_reason_has_stopped() -> None:
    answer = reply()
    said = lines(answer.part(chunk({"content": "a"}) + b"data: [DONE]\n\n") + answer.end())

    assert (said[-1]["done"], said[-1]["done_reason"]) == (True, "stop")


def test_a_stream_that_just_ends_ends_with_an_error() -> None:
    answer = reply()
    said = lines(answer.part(chunk({"content": "a"})) + answer.end())

    assert said[-1].keys() == {"error"}
    assert not any(line.get("done") for line in said)


def test_an_error_in_the_middle_is_the_last_line() -> None:
    answer = reply()
    broken = b'data: {"error": {"message": "out of memory"}}\n\n'
    said = lines(answer.part(chunk({"content": "a"}) + broken + usage_chunk()) + answer.end())

    assert said[-1] == {"error": "out of memory"}
    assert len(said) == 2


def test_our_own_errors_have_ollamas_shape() -> None:
    problem = Problem(404, "there is no model named 'x'", "model_not_found")

    assert json.loads(ollama.DIALECT.error(problem)) == {"error": "there is no model named 'x'"}
    assert lines(reply().failed(problem)) == [{"error": "there is no model named 'x'"}]


@pytest.mark.parametrize("nonsense", [b"", b"<html>", b"[]", b'{"choices": 7}', b"{}"])
def test_an_answer_that_is_none_is_said_to_be_none(nonsense: bytes) -> None:
    with pytest.raises(UnreadableAnswer):
        reply(stream=False).whole(nonsense)


def test_arguments_that_are_no_object_are_not_passed_off_as_one() -> None:
    answer = reply()
    with pytest.raises(UnreadableAnswer, match="'f'"):
        answer.part(
            chunk({"tool_calls": [call(0, name="f", arguments="{oops")]}) + chunk({}, "tool_calls")
        )


def test_vectors_come_in_the_order_of_the_texts() -> None:
    answer = {
        "data": [{"index": 1, "embedding": [3.5, 4]}, {"index": 0, "embedding": [1.25, -2]}],
        "usage": {"prompt_tokens": 6},
    }
    all_of_them = ollama.embed(b'{"model": "m", "input": ["a", "b"]}')
    one = ollama.embeddings(b'{"model": "m", "prompt": "a"}')

    assert isinstance(all_of_them, Asked)
    assert isinstance(one, Asked)
    assert json.loads(all_of_them.reply.whole(json.dumps(answer).encode())) == {
        "model": "m",
        "embeddings": [[1.25, -2], [3.5, 4]],
        "total_duration": 0,
        "load_duration": 0,
        "prompt_eval_count": 6,
    }
    assert json.loads(one.reply.whole(json.dumps(answer).encode())) == {"embedding": [1.25, -2]}
    with pytest.raises(UnreadableAnswer):
        one.reply.whole(b'{"data": []}')
