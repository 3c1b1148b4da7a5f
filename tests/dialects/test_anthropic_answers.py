"""What a client that speaks Anthropic's Messages API is told."""

from __future__ import annotations

import json
from typing import Any

import anthropic.types
import pytest

from modelyard.core.errors import InvalidRequest
from modelyard.dialects.anthropic import ANTHROPIC, Listed, model, models
from modelyard.dialects.anthropic_reply import Reply
from modelyard.dialects.base import Problem, UnreadableAnswer

USAGE = {
    "prompt_tokens": 14,
    "completion_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 4},
}


def whole(message: dict[str, Any], finish: str = "stop", **more: Any) -> dict[str, Any]:
    """The answer to a whole chat completion."""
    stops = more.pop("stops", ())
    choice = {"index": 0, "message": message, "finish_reason": finish, **more}
    answer = {"id": "chatcmpl-7", "choices": [choice], "usage": USAGE}
    shown = json.loads(Reply("m", stops).whole(json.dumps(answer).encode()))
    anthropic.types.Message.model_validate(shown)
    return dict(shown)


def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "chatcmpl-7", "choices": [choice]}


def sent(*chunks: dict[str, Any]) -> bytes:
    return b"".join(b"data: %b\n\n" % json.dumps(each).encode() for each in chunks)


def events(stream: bytes) -> list[dict[str, Any]]:
    """The events of a stream; each is named by its type."""
    shown = []
    for block in stream.decode().split("\n\n")[:-1]:
        name, data = block.split("\n")
        shown.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {shown[-1]['type']}"
    return shown


def told(*chunks: dict[str, Any]) -> list[dict[str, Any]]:
    reply = Reply("m")
    return events(reply.part(sent(*chunks) + b"data: [DONE]\n\n") + reply.end())


def call(index: int, **said: Any) -> dict[str, Any]:
    function = {key: said.pop(key) for key in ("name", "arguments") if key in said}
    return {"index": index, "function": function, **said}


def test_a_whole_answer_is_blocks_in_the_order_of_thinking() -> None:
    function = {"name": "weather", "arguments": '{"city":"Ulm"}'}
    shown = whole(
        {
            "content": "Let me look.",
            "reasoning_content": "Hm.",
            "tool_calls": [{"id": "t1", "type": "function", "function": function}],
        },
        "tool_calls",
    )

    assert shown["content"] == [
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "text", "text": "Let me look."},
        {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Ulm"}},
    ]
    assert (shown["id"], shown["model"], shown["stop_reason"]) == ("msg_7", "m", "tool_use")


def test_cached_tokens_are_counted_apart() -> None:
    usage = whole({"content": "hi"})["usage"]

    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (10, 4)
    assert usage["output_tokens"] == 5


@pytest.mark.parametrize(
    ("finish", "expected"),
    [
        ("stop", "end_turn"),
        ("length", "max_tokens"),
        ("content_filter", "refusal"),
        ("abort", "end_turn"),
    ],
)
def test_reasons_to_stop_have_an_equal(finish: str, expected: str) -> None:
    assert whole({"content": "hi"}, finish)["stop_reason"] == expected


def test_the_stop_sequence_is_named_if_the_engine_names_it() -> None:
    named = whole({"content": "hi"}, stop_reason="END", stops=["END"])
    unnamed = whole({"content": "hi"}, stop_reason=151645, stops=["END"])

    assert (named["stop_reason"], named["stop_sequence"]) == ("stop_sequence", "END")
    assert (unnamed["stop_reason"], unnamed["stop_sequence"]) == ("end_turn", None)


def test_a_call_after_which_the_engine_says_stop_is_still_a_call() -> None:
    shown = whole({"tool_calls": [{"function": {"name": "now"}}]}, "stop")

    assert shown["stop_reason"] == "tool_use"
    assert shown["content"][0] == {"type": "tool_use", "id": "toolu_0", "name": "now", "input": {}}


def test_arguments_that_are_no_object_are_the_engines_fault_unless_they_are_cut_off() -> None:
    broken = {"tool_calls": [{"function": {"name": "now", "arguments": '{"a":'}}]}

    with pytest.raises(UnreadableAnswer, match="'now' are no JSON object"):
        whole(broken, "tool_calls")
    assert whole(broken, "length")["content"][0]["input"] == {}


def test_a_beginning_that_the_engine_repeats_is_not_said_again() -> None:
    answer = json.dumps({"choices": [{"message": {"content": "2+3=5"}, "finish_reason": "stop"}]})

    assert b'"text":"5"' in Reply("m", (), "2+3=").whole(answer.encode())


@pytest.mark.parametrize(
    "answer", [b"", b"{}", b'{"choices":[]}', b'{"error":"no","choices":[{}]}']
)
def test_what_is_no_answer_is_not_turned_into_one(answer: bytes) -> None:
    with pytest.raises(UnreadableAnswer):
        Reply("m").whole(answer)


def test_a_stream_opens_and_closes_one_block_after_the_other() -> None:
    shown = told(
        chunk({"role": "assistant", "content": None}),
        chunk({"reasoning": "Hm"}),
        chunk({"reasoning": "."}),
        chunk({"content": "Let me look."}),
        chunk({"tool_calls": [call(0, id="t1", name="weather", arguments="")]}),
        chunk({"tool_calls": [call(0, arguments='{"city":')]}),
        chunk({"tool_calls": [call(0, arguments='"Ulm"}')]}),
        chunk({"tool_calls": [call(1, id="t2", name="now", arguments="{}")]}),
        chunk({}, "tool_calls"),
        {"choices": [], "usage": USAGE},
    )

    kinds = [event["type"].removeprefix("content_block_") for event in shown]
    assert kinds == [
        "message_start",
        *("start", "delta", "delta", "stop"),
        *("start", "delta", "stop"),
        *("start", "delta", "delta", "stop"),
        *("start", "delta", "stop"),
        *("message_delta", "message_stop"),
    ]
    assert [each["index"] for each in shown if "index" in each] == [
        *[0] * 4,
        *[1] * 3,
        *[2] * 4,
        *[3] * 3,
    ]
    assert shown[8]["content_block"]["name"] == "weather"
    assert shown[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert shown[-2]["usage"]["input_tokens"] == 10


def test_calls_of_which_each_has_the_index_0_are_told_apart_by_their_ids() -> None:
    shown = told(
        chunk({"tool_calls": [call(0, id="a", name="now", arguments="{}")]}),
        chunk({"tool_calls": [call(0, id="b", name="then", arguments="{}")]}, "stop"),
    )

    begun = [each["content_block"] for each in shown if each["type"] == "content_block_start"]
    assert [(block["id"], block["name"]) for block in begun] == [("a", "now"), ("b", "then")]
    assert shown[-2]["delta"]["stop_reason"] == "tool_use"


def test_a_call_begins_when_its_name_is_known() -> None:
    shown = told(
        chunk({"tool_calls": [call(0, id="a", arguments='{"x"')]}),
        chunk({"tool_calls": [call(0, name="now", arguments=":1}")]}, "tool_calls"),
    )

    assert shown[1]["content_block"]["name"] == "now"
    assert shown[2]["delta"]["partial_json"] == '{"x":1}'


def test_mixed_up_calls_and_nameless_ones_are_the_engines_fault() -> None:
    first, second = call(0, id="a", name="now"), call(1, id="b", name="then")
    reply = Reply("m")

    with pytest.raises(UnreadableAnswer, match="mixed up"):
        reply.part(sent(chunk({"tool_calls": [first, second, call(0, arguments="{}")]})))
    assert told(chunk({"tool_calls": [call(0, id="a")]}, "tool_calls"))[-1]["type"] == "error"


def test_a_stream_without_usage_or_reason_still_ends_as_clients_expect() -> None:
    shown = told(chunk({"content": "hi"}))

    assert shown[-2]["delta"]["stop_reason"] == "end_turn"
    assert shown[-2]["usage"]["output_tokens"] == 0


def test_a_stream_that_breaks_off_ends_with_an_error_and_nothing_else() -> None:
    cut, broken, failed = Reply("m"), Reply("m"), Reply("m")
    begun = sent(chunk({"content": "hi"}))

    assert events(cut.part(begun) + cut.end())[-1]["error"]["type"] == "api_error"
    said = broken.part(begun + sent({"error": {"message": "out of memory"}}) + begun) + broken.end()
    assert events(said)[-1]["error"]["message"] == "out of memory"
    problem = Problem(503, "the server is shutting down", "shutting_down", request_id="r1")
    last = events(failed.part(begun) + failed.failed(problem) + failed.end())[-1]
    assert (last["error"]["type"], last["request_id"]) == ("overloaded_error", "r1")


@pytest.mark.parametrize(
    ("status", "code", "kind", "answered"),
    [
        (400, "invalid_request", "invalid_request_error", 400),
        (401, "invalid_api_key", "authentication_error", 401),
        (403, "forbidden", "permission_error", 403),
        (404, "model_not_found", "not_found_error", 404),
        (413, "request_too_large", "request_too_large", 413),
        (429, "rate_limit_exceeded", "rate_limit_error", 429),
        (503, "queue_full", "overloaded_error", 529),
        (503, "insufficient_memory", "api_error", 503),
        (504, "wait_timeout", "timeout_error", 504),
        (500, None, "api_error", 500),
    ],
)
def test_errors_have_anthropics_words(status: int, code: str, kind: str, answered: int) -> None:
    problem = Problem(status, "no", code, request_id="r1")

    assert json.loads(ANTHROPIC.error(problem)) == {
        "type": "error",
        "error": {"type": kind, "message": "no"},
        "request_id": "r1",
    }
    assert ANTHROPIC.status(problem) == answered


def page(*ids: str, **query: str) -> tuple[list[str], bool]:
    shown = json.loads(models([Listed(each, each) for each in ids], **query))
    assert shown["first_id"] == (shown["data"][0]["id"] if shown["data"] else None)
    return [each["id"] for each in shown["data"]], shown["has_more"]


def test_models_are_listed_page_by_page() -> None:
    many = [f"m{at}" for at in range(25)]

    assert page() == ([], False)
    assert page(*many) == (many[:20], True)
    assert page(*many, after_id="m19") == (many[20:], False)
    assert page(*many, before_id="m5", limit="2") == (["m3", "m4"], True)
    assert page(*many, limit="1000") == (many, False)
    for query in ({"limit": "0"}, {"limit": "x"}, {"limit": "²"}, {"after_id": "gone"}):
        with pytest.raises(InvalidRequest):
            page(*many, **query)


def test_a_listed_model_is_one_that_the_client_knows_to_read() -> None:
    listed = Listed("claude-local", "Local", created=1_700_000_000, max_input_tokens=8192)
    shown = json.loads(model(listed))

    assert anthropic.types.ModelInfo.model_validate(shown).created_at.year == 2023
    assert shown["max_input_tokens"] == 8192
