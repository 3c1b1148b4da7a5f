"""What an engine is asked when a client speaks Responses, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.core.errors import InvalidRequest
from modelyard.dialects import responses
from modelyard.dialects.base import UnreadableAnswer
from modelyard.dialects.responses_input import unwrapped, wrapped
from modelyard.dialects.responses_tools import DROPPED, NOT_HERE

API_KEYS = """
    input type role content text tools name parameters namespace tool_choice reasoning effort
    call_id arguments output format schema mode include metadata top_logprobs execution image_url
    encrypted_content instructions description definition n store x"""
API_VALUES = """
    message user assistant developer input_text output_text refusal input_image input_file reasoning
    function_call function_call_output custom_tool_call tool_search_call tool_search_output client
    additional_tools function custom namespace tool_search web_search allowed_tools json_schema"""
KEYS = st.sampled_from(API_KEYS.split())
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}


def asked(**fields: Any) -> dict[str, Any]:
    """What the engine gets for a request with these fields."""
    request = {"model": "m", "input": "Hello", **fields}
    wanted: dict[str, Any] = json.loads(responses.translate(json.dumps(request).encode()).body)
    return wanted


def messages(*items: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    """The messages that these items of the input become."""
    found: list[dict[str, Any]] = asked(input=items, **fields)["messages"]
    return found


def refusal(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        asked(**fields)
    return caught.value


def said(role: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": list(parts)}


def text(words: str, kind: str = "input_text") -> dict[str, Any]:
    return {"type": kind, "text": words}


def test_a_text_is_a_message_of_the_user_after_the_instructions() -> None:
    assert asked(instructions="Be brief.") == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello"},
        ],
    }


def test_all_that_developers_say_is_one_system_message_at_the_beginning() -> None:
    found = messages(
        said("developer", text("Sandboxed."), text("No network.")),
        {"role": "user", "content": "Hi"},
        {"role": "system", "content": "Now in French."},
        instructions="Be brief.",
    )

    assert found == [
        {"role": "system", "content": "Be brief.\n\nSandboxed.\nNo network.\n\nNow in French."},
        {"role": "user", "content": "Hi"},
    ]


def test_what_one_answer_said_comes_back_as_one_message() -> None:
    found = messages(
        said("user", text("Weather in Ulm and Rome?")),
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [text("Two calls.", "reasoning_text")],
        },
        said("assistant", text("I look.", "output_text")),
        {"type": "function_call", "call_id": "a", "name": "weather", "arguments": '{"at":"Ulm"}'},
        {"type": "function_call", "call_id": "b", "name": "weather", "arguments": '{"at":"Rome"}'},
        {"type": "function_call_output", "call_id": "a", "output": "rain"},
        {"type": "function_call_output", "call_id": "b", "output": [text("sun")]},
        said("assistant", text("Rain and sun.", "output_text")),
        said("assistant", text("Take an umbrella.", "output_text")),
    )

    def call(known: str, arguments: str) -> dict[str, Any]:
        function = {"name": "weather", "arguments": arguments}
        return {"id": known, "type": "function", "function": function}

    assert found == [
        {"role": "user", "content": "Weather in Ulm and Rome?"},
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "Two calls.",
            "tool_calls": [call("a", '{"at":"Ulm"}'), call("b", '{"at":"Rome"}')],
        },
        {"role": "tool", "tool_call_id": "a", "content": "rain"},
        {"role": "tool", "tool_call_id": "b", "content": "sun"},
        {"role": "assistant", "content": "Rain and sun."},
        {"role": "assistant", "content": "Take an umbrella."},
    ]


def test_reasoning_that_this_server_wrapped_is_given_back_and_foreign_reasoning_is_not() -> None:
    own = {"type": "reasoning", "summary": [], "encrypted_content": wrapped("Hmm, 你好.")}
    foreign = {
        "type": "reasoning",
        "summary": [text("It thought.", "summary_text")],
        "encrypted_content": "gAAAA…",
    }

    found = messages(own, said("assistant", text("Hi.")), foreign, said("assistant", text("Yo.")))

    assert found == [
        {"role": "assistant", "content": "Hi.", "reasoning_content": "Hmm, 你好."},
        {"role": "assistant", "content": "Yo."},
    ]
    assert unwrapped("modelyard1.???") is None


def test_images_files_and_sounds_become_parts_of_a_chat() -> None:
    found = messages(
        said(
            "user",
            text("Look:"),
            {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "low"},
            {"type": "input_file", "file_data": "data:text/plain;base64,AA", "filename": "a.txt"},
            {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
        )
    )

    assert found[0]["content"] == [
        {"type": "text", "text": "Look:"},
        {
            "type": "image_url",
            "image_url": {"url": "data:image/png;base64,AA", "detail": "low"},
        },
        {"type": "file", "file": {"file_data": "data:text/plain;base64,AA", "filename": "a.txt"}},
        {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
    ]


def test_a_result_with_an_image_keeps_it() -> None:
    image = {"type": "input_image", "image_url": "data:image/png;base64,AA"}
    found = messages(
        {"type": "function_call", "call_id": "a", "name": "view_image", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": [image]},
    )

    url = {"url": "data:image/png;base64,AA"}
    assert found[1]["content"] == [{"type": "image_url", "image_url": url}]


@pytest.mark.parametrize(
    ("field", "wanted"),
    [
        ({"max_output_tokens": 9}, {"max_tokens": 9}),
        ({"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5, "top_p": 0.9}),
        ({"reasoning": {"effort": "high", "summary": "auto"}}, {"reasoning_effort": "high"}),
        ({"top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
        ({"include": ["message.output_text.logprobs"]}, {"logprobs": True, "top_logprobs": 0}),
        ({"text": {"verbosity": "low"}}, {"verbosity": "low"}),
        ({"text": {"format": {"type": "text"}}}, {}),
        (
            {"text": {"format": {"type": "json_object"}}},
            {"response_format": {"type": "json_object"}},
        ),
        (
            {
                "text": {
                    "format": {"type": "json_schema", "name": "a", "schema": {}, "strict": True}
                }
            },
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {}, "strict": True},
                }
            },
        ),
        ({"stream": True, "stream_options": {"include_obfuscation": False}}, {"stream": True}),
        ({"seed": 1, "chat_template_kwargs": {"a": 1}, "stop": ["x"]},) * 2,
        ({"temperature": None, "tools": None, "previous_response_id": None}, {}),
        ({"store": True, "truncation": "auto", "user": "u", "service_tier": "flex"}, {}),
        ({"background": False, "tool_choice": "auto", "tools": []}, {}),
    ],
)
def test_parameters_keep_their_meaning(field: dict[str, Any], wanted: dict[str, Any]) -> None:
    words = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}

    assert asked(**field) == words | wanted


def test_functions_are_offered_as_they_are() -> None:
    wanted = asked(tools=[WEATHER], parallel_tool_calls=False, tool_choice="required")

    function = {"name": "weather", "parameters": {"type": "object"}, "strict": True}
    assert wanted["tools"] == [{"type": "function", "function": function}]
    assert (wanted["tool_choice"], wanted["parallel_tool_calls"]) == ("required", False)


def test_a_custom_tool_is_offered_as_a_function_of_one_text_and_so_is_its_call() -> None:
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"}
    custom = {"type": "custom", "name": "apply_patch", "description": "Edits.", "format": grammar}
    call = {"type": "custom_tool_call", "call_id": "a", "name": "apply_patch", "input": 'a "b"\n'}
    output = {"type": "custom_tool_call_output", "call_id": "a", "output": "Done."}

    wanted = asked(tools=[custom], input=[call, output])

    function = wanted["tools"][0]["function"]
    assert function["description"].startswith("Edits.")
    assert "lark grammar:\nstart: /.+/" in function["description"]
    assert function["parameters"]["required"] == ["input"]
    called, answered = wanted["messages"]
    assert json.loads(called["tool_calls"][0]["function"]["arguments"]) == {"input": 'a "b"\n'}
    assert answered == {"role": "tool", "tool_call_id": "a", "content": "Done."}


def test_the_tools_of_a_namespace_carry_its_name_and_so_do_their_calls() -> None:
    tools = [{"type": "namespace", "name": "mcp__docs", "tools": [WEATHER]}, WEATHER]
    call = {
        "type": "function_call",
        "call_id": "a",
        "namespace": "mcp__docs",
        "name": "weather",
        "arguments": "{}",
    }

    wanted = asked(tools=tools, input=[call])

    names = [tool["function"]["name"] for tool in wanted["tools"]]
    assert names == ["mcp__docs__weather", "weather"]
    called = wanted["messages"][0]["tool_calls"][0]["function"]["name"]
    assert called == "mcp__docs__weather"


@pytest.mark.parametrize("kind", sorted(DROPPED))
def test_a_tool_that_a_model_can_do_without_is_not_offered(kind: str) -> None:
    assert "tools" not in asked(tools=[{"type": kind}], tool_choice="auto")


@pytest.mark.parametrize("kind", sorted(NOT_HERE))
def test_a_tool_that_runs_elsewhere_is_refused_by_name(kind: str) -> None:
    error = refusal(tools=[WEATHER, {"type": kind}])

    assert error.param == "tools[1]"
    assert repr(kind) in str(error)


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ("none", "none"),
        (
            {"type": "function", "name": "weather"},
            {"type": "function", "function": {"name": "weather"}},
        ),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "weather"}],
            },
            "required",
        ),
    ],
)
def test_a_choice_of_tools_is_kept(choice: Any, wanted: Any) -> None:
    other = {"type": "function", "name": "other"}
    found = asked(tools=[WEATHER, other], tool_choice=choice)

    assert found["tool_choice"] == wanted
    allowed = isinstance(choice, dict) and choice["type"] == "allowed_tools"
    assert len(found["tools"]) == (1 if allowed else 2)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "no responses are stored"),
        ({"conversation": "conv_1"}, "conversation", "no conversations are kept"),
        ({"prompt": {"id": "p"}}, "prompt", "no prompts are stored"),
        ({"background": True}, "background", "not kept"),
        ({"messages": []}, "messages", "say `input` here"),
        ({"max_tokens": 3}, "max_tokens", "say `max_output_tokens` here"),
        ({"n": 2}, "n", "one answer"),
        ({"input": None}, "input", "no input"),
        ({"input": []}, "input", "no input"),
        ({"input": 3}, "input", "Expected `array`"),
        ({"input": ["x"]}, "input", "Expected `object`"),
        ({"input": [{"role": "ghost", "content": ""}]}, "input[0].role", "'ghost'"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "send the item itself"),
        ({"input": [{"type": "compaction"}]}, "input[0]", "'compaction'"),
        ({"input": [{"type": "function_call"}]}, "input[0]", "call_id"),
        ({"input": [said("user", {"type": "x"})]}, "input[0].content[0]", "'x'"),
        (
            {"input": [said("user", {"type": "input_image", "file_id": "f"})]},
            "input[0].content[0]",
            "`image_url`",
        ),
        (
            {"input": [said("user", {"type": "input_file", "file_url": "http://x"})]},
            "input[0].content[0]",
            "`file_data`",
        ),
        (
            {"input": [said("developer", {"type": "input_image", "image_url": "x"})]},
            "input[0].content[0]",
            "input_image",
        ),
        ({"tools": {}}, "tools", "Expected `array`"),
        ({"tools": [{"type": "function"}]}, "tools[0]", "name"),
        ({"tools": [{"type": "banana"}]}, "tools[0]", "no kind of tool"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1]", "two tools"),
        ({"input": [{"type": "additional_tools"}]}, "input[0].tools", "Expected `array`"),
        (
            {"input": [{"type": "additional_tools", "tools": [{"type": "mcp"}]}]},
            "input[0].tools[0]",
            "'mcp'",
        ),
        ({"tool_choice": "maybe"}, "tool_choice", "'maybe'"),
        ({"tool_choice": "required"}, "tool_choice", "none is offered"),
        (
            {"tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}},
            "tool_choice",
            "'web_search'",
        ),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "no"}},
            "tool_choice",
            "'no'",
        ),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format", "`schema`"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format", "'grammar'"),
        ({"max_output_tokens": "many"}, None, "max_output_tokens"),
        ({"metadata": {"a": 1}}, None, "metadata"),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_place(
    fields: dict[str, Any], param: str | None, words: str
) -> None:
    error = refusal(**fields)

    assert error.param == param
    assert words in str(error)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'{"input": "\\ud800"}'])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="the request body is not"):
        responses.translate(body)


SEARCH = {
    "type": "tool_search",
    "execution": "client",
    "description": "Finds tools.",
    "parameters": {"type": "object", "properties": {"query": {"type": "string"}}},
}


def test_tools_that_a_client_has_found_are_offered_from_then_on() -> None:
    found = {"type": "namespace", "name": "mcp__docs", "tools": [WEATHER]}
    wanted = asked(
        tools=[SEARCH],
        input=[
            {"type": "additional_tools", "role": "developer", "tools": [found]},
            {"role": "user", "content": "Weather?"},
            {"type": "tool_search_call", "call_id": "a", "arguments": {"query": "weather"}},
            {"type": "tool_search_output", "call_id": "a", "tools": [found, {**WEATHER}]},
        ],
    )

    names = [tool["function"]["name"] for tool in wanted["tools"]]
    assert names == ["tool_search", "mcp__docs__weather", "weather"]
    _, call, result = wanted["messages"]
    function = {"name": "tool_search", "arguments": '{"query":"weather"}'}
    assert call["tool_calls"] == [{"id": "a", "type": "function", "function": function}]
    assert [each["name"] for each in json.loads(result["content"])] == [
        "mcp__docs__weather",
        "weather",
    ]


def test_a_search_for_tools_that_a_server_would_do_is_refused() -> None:
    assert "'tool_search' is not here" in str(refusal(tools=[{"type": "tool_search"}]))


def test_what_a_tool_gave_in_several_texts_is_one() -> None:
    call = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "a", "output": [text("one"), text("two")]}

    assert messages(call, output)[1]["content"] == "one\ntwo"


def test_the_length_of_an_input_is_counted_by_the_engine_that_would_read_it() -> None:
    request = {"model": "m", "input": "Hello", "tools": [WEATHER], "stream": True}
    asked_for = responses.count(json.dumps(request).encode())

    wanted = json.loads(asked_for.body)
    assert (wanted["max_tokens"], wanted["stream"]) == (1, False)
    assert wanted["tools"][0]["function"]["name"] == "weather"
    assert json.loads(asked_for.reply.whole(b'{"input_tokens": 12}')) == {
        "object": "response.input_tokens",
        "input_tokens": 12,
    }
    with pytest.raises(UnreadableAnswer, match="how many tokens"):
        asked_for.reply.whole(b'{"choices": [{}]}')


@pytest.mark.parametrize("depth", [300, 900, 1100, 50_000])
@pytest.mark.parametrize("place", [b'"x":%b', b'"input":%b', b'"tools":[{"parameters":%b}]'])
def test_a_body_that_is_nested_deeply_is_passed_on_or_refused(depth: int, place: bytes) -> None:
    nested = place % (b"[" * depth + b"]" * depth)
    body = b'{"model": "m", "input": "Hi", %b}' % nested
    try:
        wanted = responses.translate(body).body
    except InvalidRequest:
        return
    assert b"[" * depth in wanted


VALUES = st.sampled_from(API_VALUES.split()) | st.text(max_size=5)
JSON = st.recursive(
    VALUES | st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
TYPED = st.builds(lambda item, kind: {**item, "type": kind}, st.dictionaries(KEYS, JSON), VALUES)


@given(
    st.dictionaries(KEYS, JSON, max_size=4),
    st.lists(TYPED, max_size=3),
    st.lists(TYPED, max_size=2),
)
@settings(max_examples=50, deadline=None)
def test_whatever_is_asked_is_translated_or_refused(
    fields: dict[str, Any], items: list[dict[str, Any]], tools: list[dict[str, Any]]
) -> None:
    request = {"model": "m", "input": items or "Hi", "tools": tools, **fields}
    try:
        body = responses.translate(json.dumps(request).encode()).body
    except InvalidRequest:
        return
    assert json.loads(body)["messages"]
