"""What a remote of Anthropic's is asked and what comes back, beyond what is the same anyway."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelyard.core.errors import InvalidRequest
from modelyard.dialects import to_anthropic
from modelyard.dialects.base import Problem, UnreadableAnswer


def asked(**fields: Any) -> dict[str, Any]:
    request = {"model": "m", "messages": [{"role": "user", "content": "hi"}]} | fields
    return dict(json.loads(to_anthropic.request(json.dumps(request).encode())))


def sent(*events: dict[str, Any]) -> bytes:
    shown = [f"event: {each['type']}\ndata: {json.dumps(each)}\n\n" for each in events]
    return "".join(shown).encode()


def test_a_request_without_a_limit_gets_one() -> None:
    assert asked()["max_tokens"] == to_anthropic.DEFAULT_MAX_TOKENS
    assert asked(max_completion_tokens=7)["max_tokens"] == 7


def test_system_and_developer_messages_go_first_and_results_form_one_turn() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [_call("a"), _call("b")]},
        {"role": "tool", "tool_call_id": "a", "content": "1"},
        {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "2"}]},
        {"role": "developer", "content": "Be kind."},
    ]

    shown = asked(messages=messages)

    assert shown["system"] == "Be brief.\nBe kind."
    assert [turn["role"] for turn in shown["messages"]] == ["user", "assistant", "user"]
    assert [block["content"] for block in shown["messages"][2]["content"]] == ["1", "2"]


def _call(of: str) -> dict[str, Any]:
    return {"id": of, "type": "function", "function": {"name": "now", "arguments": ""}}


def test_hints_stay_behind_and_unknown_fields_go_on() -> None:
    shown = asked(store=False, seed=1, n=1, logprobs=None, user="u", top_k=3, stop="END")

    assert shown.keys() == {
        *("model", "messages", "max_tokens", "top_k", "metadata", "stop_sequences")
    }
    assert asked(thinking={"type": "enabled", "budget_tokens": 1024}, reasoning_effort="low") == (
        asked()
        | {
            "thinking": {"type": "enabled", "budget_tokens": 1024},
            "output_config": {"effort": "low"},
        }
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0]"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"chat_template_kwargs": {"tone": "dry"}}, "chat_template_kwargs"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "x"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "assistant", "tool_calls": [5]}]}, "messages[0]"),
        ({"messages": 5}, None),
    ],
)
def test_what_has_no_equal_is_refused_by_name(fields: dict[str, Any], param: str | None) -> None:
    with pytest.raises(InvalidRequest) as raised:
        asked(**fields)
    assert raised.value.param == param


def test_cached_tokens_are_among_those_of_the_prompt() -> None:
    usage = {
        "input_tokens": 5,
        "cache_read_input_tokens": 20,
        "cache_creation_input_tokens": 3,
        "output_tokens": 2,
    }
    message = {"id": "msg_1", "content": [], "stop_reason": "end_turn", "usage": usage}
    shown = json.loads(to_anthropic.Reply("m").whole(json.dumps(message).encode()))

    assert shown["usage"]["prompt_tokens"] == 28
    assert shown["usage"]["prompt_tokens_details"] == {"cached_tokens": 20}
    assert shown["choices"][0]["message"]["content"] is None


def test_a_stream_with_searches_and_signatures_is_its_text() -> None:
    block = {"type": "content_block_start", "index": 0}
    delta = {"type": "content_block_delta", "index": 0}
    stream = sent(
        {"type": "message_start", "message": {"id": "msg_1", "usage": {"input_tokens": 3}}},
        {"type": "ping"},
        {**block, "content_block": {"type": "server_tool_use", "id": "s", "name": "web_search"}},
        {**delta, "delta": {"type": "input_json_delta", "partial_json": '{"q":1}'}},
        {**block, "content_block": {"type": "web_search_tool_result", "content": [{"url": "x"}]}},
        {**delta, "delta": {"type": "signature_delta", "signature": "s"}},
        {**delta, "delta": {"type": "text_delta", "text": "Yes."}},
        {"type": "message_delta", "delta": {"stop_reason": "pause_turn"}, "usage": {}},
        {"type": "message_stop"},
    )
    reply = to_anthropic.reply_to(b'{"model":"m","stream_options":{"include_usage":false}}', 5)
    shown = (reply.part(stream) + reply.end()).decode().split("\n\n")

    chunks = [json.loads(each[6:]) for each in shown[:-2]]
    assert [each["choices"][0]["delta"] for each in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "Yes."},
        {},
    ]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert {each["created"] for each in chunks} == {5}


def test_errors_in_a_stream_arrive_as_openais() -> None:
    begun = sent({"type": "message_start", "message": {"id": "msg_1"}})
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    broken, cut, failed = (to_anthropic.Reply("m") for _ in range(3))

    said = broken.part(begun + sent(error, {"type": "message_stop"})) + broken.end()
    assert b'"message":"Overloaded","type":"server_error"' in said
    assert b"[DONE]" not in said
    assert b"ended before its answer did" in cut.part(begun) + cut.end()
    assert b'"error"' in failed.failed(Problem(502, "gone"))
    assert failed.end() == b""


@pytest.mark.parametrize("answer", [b"", b"{}", b'{"type":"error","error":{}}', b'{"content":5}'])
def test_what_is_no_message_is_not_turned_into_an_answer(answer: bytes) -> None:
    with pytest.raises(UnreadableAnswer):
        to_anthropic.Reply("m").whole(answer)
