"""A chat's answer as Responses gives it: whole and streamed, in the shapes of OpenAI's types."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import openai.types.responses as wire
import pytest
from pydantic import TypeAdapter

from modelyard.dialects import responses
from modelyard.dialects.base import Problem, Reply, UnreadableAnswer

EVENT: TypeAdapter[Any] = TypeAdapter(wire.ResponseStreamEvent)
USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 5},
    "completion_tokens_details": {"reasoning_tokens": 2},
}
TOOLS = [
    {"type": "custom", "name": "apply_patch"},
    {"type": "function", "name": "look", "parameters": {}, "strict": False},
    {
        "type": "namespace",
        "name": "mcp__docs",
        "description": "Docs.",
        "tools": [{"type": "function", "name": "find", "parameters": {}}],
    },
]


def reply(**fields: Any) -> Reply:
    request = {"model": "m", "input": "Hello", **fields}
    return responses.translate(json.dumps(request).encode()).reply


def chunk(reason: str | None = None, **delta: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "created": 1700000000,
        "model": "m-4bit",
        "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
    }


def call(index: int, **parts: Any) -> dict[str, Any]:
    known = {"id": parts["id"]} if "id" in parts else {}
    function = {name: parts[name] for name in ("name", "arguments") if name in parts}
    return {"tool_calls": [{"index": index, **known, "function": function}]}


LAST = {"id": "chatcmpl-1", "choices": [], "usage": USAGE}


def stream(*chunks: dict[str, Any]) -> bytes:
    return b"".join(b"data: %b\n\n" % json.dumps(each).encode() for each in chunks)


def events(told: bytes) -> list[dict[str, Any]]:
    """The events of a stream, each checked against the type that clients have of it."""
    found = []
    for block in told.decode().split("\n\n")[:-1]:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        EVENT.validate_python(event)
        found.append(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def told(*chunks: dict[str, Any], done: bool = True, **fields: Any) -> list[dict[str, Any]]:
    """What a client is told of a stream of the engine."""
    asked = reply(stream=True, **fields)
    said = asked.part(stream(*chunks) + (b"data: [DONE]\n\n" if done else b""))
    return events(said + asked.end())


def names(told_events: Sequence[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in told_events]


def test_words_are_told_piece_by_piece_and_once_more_whole() -> None:
    found = told(
        chunk(role="assistant", content=""),
        chunk(content="Hel"),
        chunk(content="lo."),
        chunk("stop"),
        LAST,
    )

    assert names(found) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event["delta"] for event in found[4:6]] == ["Hel", "lo."]
    assert found[6]["text"] == "Hello."
    final = found[-1]["response"]
    assert final["output"] == [found[8]["item"]]
    assert final["output"][0]["content"][0]["text"] == "Hello."
    assert (final["id"], final["created_at"], final["model"]) == ("resp_1", 1700000000, "m-4bit")
    assert final["usage"] == {
        "input_tokens": 11,
        "input_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 0},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 18,
    }


def test_a_whole_answer_has_every_key_that_clients_require() -> None:
    answer = {
        "id": "chatcmpl-1",
        "created": 3,
        "model": "m",
        "choices": [
            {
                "message": {
                    "content": "Hello.",
                    "reasoning": "Hm.",
                    "tool_calls": [
                        {"id": "a", "function": {"name": "look", "arguments": "{}"}},
                        {"id": "b", "function": {"name": "mcp__docs__find", "arguments": "{}"}},
                    ],
                },
                "finish_reason": "tool_calls",
            }
        ],
        "usage": USAGE,
    }
    asked = reply(
        tools=TOOLS, instructions="Be brief.", metadata={"a": "b"}, temperature=0, store=True
    )

    response = json.loads(asked.whole(json.dumps(answer).encode()))

    wire.Response.model_validate(response, strict=True)
    assert [item["type"] for item in response["output"]] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]
    assert response["output"][0]["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert response["output"][3]["name"] == "find"
    assert response["output"][3]["namespace"] == "mcp__docs"
    assert response["store"] is False
    assert response["tools"] == TOOLS
    assert (response["instructions"], response["metadata"]) == ("Be brief.", {"a": "b"})


def test_reasoning_comes_before_words_and_is_wrapped_if_asked_for() -> None:
    chunks = (chunk(reasoning_content="Hm"), chunk(content="Hi"), chunk("stop"))
    plain = told(*chunks)
    wrapped = told(*chunks, include=["reasoning.encrypted_content"])

    assert names(plain)[2:9] == [
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
    ]
    thought, spoken = plain[-1]["response"]["output"]
    assert (thought["type"], spoken["type"]) == ("reasoning", "message")
    assert "encrypted_content" not in thought
    kept = wrapped[-1]["response"]["output"][0]
    again = responses.translate(json.dumps({"model": "m", "input": [kept]}).encode())
    assert json.loads(again.body)["messages"][0]["reasoning_content"] == "Hm"


def test_calls_whose_parts_are_interleaved_stay_apart() -> None:
    found = told(
        chunk(**call(0, id="a", name="look")),
        chunk(**call(1, id="b", name="mcp__docs__find", arguments='{"q"')),
        chunk(**call(0, arguments="{")),
        chunk(**call(1, arguments=":1}")),
        chunk(**call(0, arguments="}")),
        chunk("tool_calls"),
        tools=TOOLS,
    )

    first, second = found[-1]["response"]["output"]
    assert (first["call_id"], first["name"], first["arguments"]) == ("a", "look", "{}")
    assert (second["call_id"], second["arguments"]) == ("b", '{"q":1}')
    assert (second["namespace"], second["name"]) == ("mcp__docs", "find")
    deltas = [event for event in found if event["type"].endswith("arguments.delta")]
    assert [(event["output_index"], event["delta"]) for event in deltas] == [
        (1, '{"q"'),
        (0, "{"),
        (1, ":1}"),
        (0, "}"),
    ]
    assert names(found)[-1] == "completed"


def test_a_call_of_a_custom_tool_is_told_in_its_own_words() -> None:
    patch = '*** Begin Patch\n+ "a"\n*** End Patch'
    arguments = json.dumps({"input": patch})
    found = told(
        chunk(**call(0, id="a", name="apply_patch", arguments=arguments[:9])),
        chunk(**call(0, arguments=arguments[9:])),
        chunk("tool_calls"),
        tools=TOOLS,
    )

    assert names(found)[2:-1] == [
        "output_item.added",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.done",
        "output_item.done",
    ]
    (item,) = found[-1]["response"]["output"]
    assert (item["type"], item["call_id"], item["input"]) == ("custom_tool_call", "a", patch)


@pytest.mark.parametrize(
    ("arguments", "given"), [('{"query":"x"}', {"query": "x"}), ("", {}), ("no json", "no json")]
)
def test_a_search_for_tools_is_told_as_one(arguments: str, given: Any) -> None:
    search = {"type": "tool_search", "execution": "client", "parameters": {}}
    parts = call(0, id="a", name="tool_search", arguments=arguments)
    found = told(chunk(**parts), chunk("tool_calls"), tools=[search])

    assert names(found)[2:-1] == ["output_item.added", "output_item.done"]
    (item,) = found[-1]["response"]["output"]
    assert (item["type"], item["execution"], item["call_id"], item["arguments"]) == (
        "tool_search_call",
        "client",
        "a",
        given,
    )


@pytest.mark.parametrize("arguments", ["no json", '{"other": 1}', '{"input": 3}', ""])
def test_a_custom_call_in_the_wrong_form_is_passed_on_as_it_is(arguments: str) -> None:
    parts = call(0, id="a", name="apply_patch", arguments=arguments)
    found = told(chunk(**parts), chunk("tool_calls"), tools=TOOLS)

    assert found[-1]["response"]["output"][0]["input"] == arguments


def test_a_call_gets_an_id_if_the_engine_gives_none_and_may_be_named_late() -> None:
    found = told(
        chunk(**call(0, arguments="{")),
        chunk(**call(0, name="look", arguments="}")),
        chunk(**call(1)),
        chunk("tool_calls"),
        tools=TOOLS,
    )

    late, nameless = found[-1]["response"]["output"]
    assert (late["name"], late["arguments"]) == ("look", "{}")
    assert late["call_id"] != nameless["call_id"]
    assert nameless["name"] == ""


@pytest.mark.parametrize(
    ("reason", "status", "why"),
    [
        ("stop", "completed", None),
        ("tool_calls", "completed", None),
        ("length", "incomplete", "max_output_tokens"),
        ("content_filter", "incomplete", "content_filter"),
    ],
)
def test_the_reason_for_the_end_decides_the_status(
    reason: str, status: str, why: str | None
) -> None:
    found = told(chunk(content="Hi"), chunk(reason), LAST)

    final = found[-1]["response"]
    assert (names(found)[-1], final["status"]) == (status, status)
    assert (final["incomplete_details"] or {"reason": None})["reason"] == why
    assert final["output"][0]["status"] == status


def test_a_refusal_is_a_part_of_its_own() -> None:
    found = told(chunk(refusal="No."), chunk("stop"))

    assert "refusal.delta" in names(found)
    part = {"type": "refusal", "refusal": "No."}
    assert found[-1]["response"]["output"][0]["content"] == [part]


def test_likelihoods_of_tokens_are_told_with_their_words() -> None:
    said = chunk(content="é")
    token = {"token": "é", "logprob": -0.5, "top_logprobs": [{"token": "e", "logprob": -1.0}]}
    said["choices"][0]["logprobs"] = {"content": [token]}
    found = told(said, chunk("stop"), top_logprobs=1)

    likelihood = {
        "token": "é",
        "logprob": -0.5,
        "bytes": [195, 169],
        "top_logprobs": [{"token": "e", "logprob": -1.0, "bytes": [101]}],
    }
    assert found[4]["logprobs"] == [likelihood]
    assert found[-1]["response"]["output"][0]["content"][0]["logprobs"] == [likelihood]


def test_a_stream_without_reason_or_end_has_failed() -> None:
    found = told(chunk(content="Hi"), done=False)

    assert names(found)[-2:] == ["failed", "error"]
    assert found[-2]["response"]["error"]["code"] == "server_error"
    assert "ended before its answer did" in found[-1]["message"]


def test_a_stream_that_only_lacks_its_last_line_is_complete() -> None:
    assert names(told(chunk(content="Hi"), chunk("stop"), done=False))[-1] == "completed"


def test_an_empty_stream_is_an_empty_answer() -> None:
    found = told()

    assert names(found) == ["created", "in_progress", "completed"]
    assert found[-1]["response"]["output"] == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("it broke", "server_error"),
        ({"message": "slow down", "code": 429}, "rate_limit_exceeded"),
        ({"message": "", "code": 400}, "invalid_prompt"),
    ],
)
def test_an_error_within_the_engines_stream_ends_it(error: Any, code: str) -> None:
    found = told(chunk(content="Hi"), {"error": error}, chunk(content="never"))

    assert names(found)[-2:] == ["failed", "error"]
    assert found[-2]["response"]["error"]["code"] == code
    assert found[-1]["error"]["message"] == found[-1]["message"] != ""


def test_a_context_that_is_full_is_called_as_codex_knows_it() -> None:
    asked = reply(stream=True)
    said = asked.failed(Problem(400, "too long", "context_length_exceeded"))

    # Not among the codes of OpenAI's types, and yet what Codex looks for.
    assert b'"error":{"code":"context_length_exceeded","message":"too long"}' in said


def test_an_error_of_ours_ends_a_stream_that_has_not_begun() -> None:
    asked = reply(stream=True)
    problem = Problem(503, "model 'm' is full", "queue_full")
    found = events(asked.failed(problem))

    assert names(found) == ["created", "in_progress", "failed", "error"]
    assert (found[-1]["code"], found[-1]["message"]) == ("queue_full", "model 'm' is full")
    assert asked.part(stream(chunk(content="x"))) + asked.end() + asked.failed(problem) == b""


@pytest.mark.parametrize("answer", [b"", b"{}", b'{"choices": []}', b"<html>", b'{"error": "x"}'])
def test_an_answer_that_is_no_chat_is_unreadable(answer: bytes) -> None:
    with pytest.raises(UnreadableAnswer):
        reply().whole(answer)


def test_an_answer_without_end_is_not_kept() -> None:
    asked = reply(stream=True)
    endless = stream(chunk(content="x" * 1_000_000))
    for _ in range(16):
        asked.part(endless)

    with pytest.raises(UnreadableAnswer, match="longer than"):
        asked.part(endless)


def test_an_id_is_made_of_what_is_safe() -> None:
    odd = chunk(content="Hi") | {"id": 'a"b\n<c>' + "d" * 90}
    found = told(odd, chunk("stop"))

    assert found[0]["response"]["id"] == "resp_abc" + "d" * 61
