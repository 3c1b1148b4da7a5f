"""What engines are asked when a client speaks Anthropic's Messages API."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelyard.core.errors import InvalidRequest
from modelyard.dialects.anthropic import count_tokens, translate
from modelyard.dialects.base import Asked, UnreadableAnswer


def asked(**fields: Any) -> dict[str, Any]:
    """The chat request that a Messages request becomes."""
    request = {"model": "m", "max_tokens": 9, "messages": [user("hi")]} | fields
    translated = translate(json.dumps(request).encode())
    assert isinstance(translated, Asked)
    return dict(json.loads(translated.body))


def refusal(**fields: Any) -> str:
    with pytest.raises(InvalidRequest) as raised:
        asked(**fields)
    return str(raised.value)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def result(of: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": of, "content": content, **more}


CALL = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Ulm"}}
PIXEL = {"type": "base64", "media_type": "image/png", "data": "iVBO"}
SHOWN_PIXEL = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBO"}}


def test_a_plain_request_keeps_its_numbers_as_they_were_written() -> None:
    sampling = b'"temperature":0.70,"top_k":5,"top_p":1.0,"stream":true'
    said = b'{"model":"m",%b,"messages":[{"role":"user","content":"hi"}]}' % sampling
    shown = translate(said).body

    assert sampling in shown
    assert json.loads(shown)["messages"] == [user("hi")]


def test_the_system_prompt_leads_whether_it_is_text_or_blocks() -> None:
    expected = [{"role": "system", "content": "Be brief.\nBe kind."}, user("hi")]

    assert asked(system="Be brief.\nBe kind.")["messages"] == expected
    assert asked(system=[text("Be brief."), text("Be kind.")])["messages"] == expected


def test_the_words_by_which_claude_code_accounts_for_itself_are_left_out() -> None:
    account = text("x-anthropic-billing-header: cc_version=2.1; cch=12345;")

    assert asked(system=[account, text("Be brief.")])["messages"][0]["content"] == "Be brief."
    for joint in ("\n", "", " "):
        joined = f"{account['text']}{joint}Be brief."
        assert asked(system=joined)["messages"][0]["content"] == "Be brief."
    assert asked(system=account["text"])["messages"] == [user("hi")]


def test_a_system_message_between_the_turns_joins_the_users_words() -> None:
    note = {"role": "system", "content": "The file changed."}

    after_words = asked(messages=[user("hi"), note, assistant("yes"), user("go on")])["messages"]
    before_words = asked(messages=[user("hi"), assistant("yes"), note, user("go on")])["messages"]
    leading = asked(system="Be brief.", messages=[note, user("hi")])["messages"]

    assert after_words[0] == user("hi\nThe file changed.")
    assert before_words[2] == user("The file changed.\ngo on")
    assert leading[0]["content"] == "Be brief.\nThe file changed."


def test_a_system_message_after_results_makes_no_turn_of_its_own() -> None:
    turns = [user("hi"), assistant([CALL]), user([result("t1", "sunny")])]
    note = {"role": "system", "content": "Three files changed."}

    shown = asked(messages=[*turns, note])["messages"]

    assert [message["role"] for message in shown] == ["user", "assistant", "tool"]
    assert shown[2]["content"] == "sunny\nThree files changed."


def test_neighbouring_turns_of_one_role_become_one() -> None:
    turns = [user("a"), user([text("b"), text("c")]), assistant("d"), assistant([CALL]), user("e")]

    shown = asked(messages=turns)["messages"]

    assert [message["role"] for message in shown] == ["user", "assistant", "user"]
    assert shown[0]["content"] == "a\nb\nc"
    assert (shown[1]["content"], len(shown[1]["tool_calls"])) == ("d", 1)


def test_results_stand_straight_after_their_calls_and_words_after_them() -> None:
    turns = [
        user("hi"),
        assistant([text("Let me look."), CALL, {**CALL, "id": "t2"}]),
        user([text("now?"), result("t1", "sunny"), result("t2", [text("2"), text("winds")])]),
    ]

    shown = asked(messages=turns)["messages"]

    call = {"name": "weather", "arguments": '{"city":"Ulm"}'}
    assert shown[1] == {
        "role": "assistant",
        "content": "Let me look.",
        "tool_calls": [
            {"id": "t1", "type": "function", "function": call},
            {"id": "t2", "type": "function", "function": call},
        ],
    }
    assert shown[2:] == [
        {"role": "tool", "tool_call_id": "t1", "content": "sunny"},
        {"role": "tool", "tool_call_id": "t2", "content": "2\nwinds"},
        user("now?"),
    ]


def test_a_failed_tool_is_told_in_words_and_its_image_follows() -> None:
    failed = result("t1", [text("no such page"), {"type": "image", "source": PIXEL}], is_error=True)

    shown = asked(messages=[user("hi"), assistant([CALL]), user([failed])])["messages"]

    assert shown[2]["content"] == "Error: no such page"
    assert shown[3] == user([SHOWN_PIXEL])


def test_images_come_as_base64_or_by_their_url() -> None:
    linked = {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}
    shown = asked(messages=[user([{"type": "image", "source": PIXEL}, linked, text("what?")])])

    url = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    assert shown["messages"] == [user([SHOWN_PIXEL, url, text("what?")])]


def test_earlier_thinking_goes_on_as_reasoning() -> None:
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "s"}
    sealed = {"type": "redacted_thinking", "data": "secret"}

    shown = asked(messages=[user("hi"), assistant([thought, sealed, text("Yes.")]), user("why?")])

    assert shown["messages"][1] == assistant("Yes.") | {"reasoning_content": "Hm."}
    assert "secret" not in json.dumps(shown)


def test_a_documents_text_is_taken_and_its_pages_are_not() -> None:
    plain = {"type": "document", "title": "Plan", "source": {"type": "text", "data": "Step one."}}
    pages = {"type": "document", "source": {**PIXEL, "media_type": "application/pdf"}}

    assert asked(messages=[user([plain, text("?")])])["messages"] == [user("Plan\nStep one.\n?")]
    assert "application/pdf" in refusal(messages=[user([pages])])


def test_tools_become_functions_and_keep_what_nobody_here_knows() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    tool = {
        "name": "weather",
        "description": "Tells it.",
        "input_schema": schema,
        "strict": True,
        "cache_control": {"type": "ephemeral"},
        "input_examples": [{"city": "Ulm"}],
    }

    (shown,) = asked(tools=[tool])["tools"]

    assert shown["function"] == {
        "name": "weather",
        "description": "Tells it.",
        "parameters": schema,
        "strict": True,
        "input_examples": [{"city": "Ulm"}],
    }


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        (
            {"type": "any", "disable_parallel_tool_use": True},
            {"tool_choice": "required", "parallel_tool_calls": False},
        ),
        (
            {"type": "tool", "name": "weather"},
            {"tool_choice": {"type": "function", "function": {"name": "weather"}}},
        ),
    ],
)
def test_a_choice_of_tools_has_an_equal(choice: dict[str, Any], expected: dict[str, Any]) -> None:
    shown = asked(tool_choice=choice)

    assert {name: shown.get(name) for name in expected} == expected


def test_thinking_is_switched_where_a_template_can() -> None:
    on = asked(thinking={"type": "enabled", "budget_tokens": 2000})

    assert on["chat_template_kwargs"] == {"enable_thinking": True}
    assert on["thinking_budget_tokens"] == 2000
    off = asked(thinking={"type": "disabled"}, chat_template_kwargs={"tone": "dry"})
    assert off["chat_template_kwargs"] == {"enable_thinking": False, "tone": "dry"}
    assert "chat_template_kwargs" not in asked(thinking={"type": "adaptive"})
    assert asked(output_config={"effort": "high"})["reasoning_effort"] == "high"


def test_an_answer_by_a_schema_is_asked_by_it() -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}

    for fields in ({"output_config": {"format": form}}, {"output_format": form}):
        shown = asked(**fields)["response_format"]
        assert shown["type"] == "json_schema"
        assert shown["json_schema"]["schema"] == {"type": "object"}


def test_an_answer_that_the_client_began_is_gone_on_with() -> None:
    shown = asked(messages=[user("2+3?"), assistant("2+3=")])

    assert shown["continue_final_message"] is True
    assert shown["add_generation_prompt"] is False
    assert "continue_final_message" not in asked()


def test_hints_are_left_out_and_unknown_fields_go_on() -> None:
    shown = asked(
        metadata={"user_id": "u"}, service_tier="auto", min_p=0.1, seed=None, stop_sequences=["a"]
    )

    assert shown.keys() == {"model", "max_tokens", "messages", "min_p", "seed", "stop"}
    assert asked(mcp_servers=[], container=None).keys() == {"model", "max_tokens", "messages"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mcp_servers": [{"url": "https://x"}]}, "mcp_servers cannot be honoured"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
        ({"tool_choice": {"type": "some"}}, "'some' is not one of auto, any, tool"),
        ({"thinking": {"type": "loud"}}, "'loud' is not one of enabled"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role: 'tool'"),
        ({"messages": [user([{"type": "video"}])]}, "messages.0: a block of type 'video'"),
        ({"messages": [user([{"type": "text", "text": 5}])]}, "$.messages[0].content[0].text"),
        (
            {"messages": [user([{"type": "image", "source": {"type": "file"}}])]},
            "no store of files",
        ),
        ({"messages": 5}, "$.messages"),
        ({"system": [{"type": "image", "source": PIXEL}]}, "system: a block of type 'image'"),
        ({"output_config": {"format": {"type": "xml"}}}, "'xml' is not a json_schema"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], said: str) -> None:
    assert said in refusal(**fields)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'{"model":"m"}', b"[" * 100_000])
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        translate(body)
    with pytest.raises(InvalidRequest):
        translate(b'{"messages":[{"role":"user","content":' + body)


def test_tokens_are_counted_of_the_same_chat_that_would_be_asked() -> None:
    request = {"model": "m", "system": "Be brief.", "messages": [user("hi")]}
    counting = count_tokens(json.dumps(request).encode())

    assert json.loads(counting.body) == asked(**request) | {"max_tokens": 1, "stream": False}
    assert json.loads(counting.reply.whole(b'{"input_tokens":14}')) == {"input_tokens": 14}
    assert json.loads(counting.reply.whole(b'{"count":7,"tokens":[1]}')) == {"input_tokens": 7}
    assert json.loads(counting.reply.whole(b'{"usage":{"prompt_tokens":3}}')) == {"input_tokens": 3}
    with pytest.raises(UnreadableAnswer):
        counting.reply.whole(b'{"tokens":[1]}')
