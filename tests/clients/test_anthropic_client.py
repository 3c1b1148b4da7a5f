"""The official Anthropic client, against a real model and an engine with every skill.

The real llama.cpp says sentences that were learned; the skilled engine calls tools, thinks and
keeps to schemas, which tiny models cannot do.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from anthropic.types import MessageParam, ToolParam
from tests.conftest import Serve
from tests.http.keyed import key, serve_keyed, text_of

from modelyard.config import Config
from modelyard.core.specs import Limits, ModelSpec, Profile, RemoteModel, RemoteUpstream, Task
from modelyard.testing.server import DEMO_MODELS, Running, fake_model, running

pytestmark = pytest.mark.usefixtures("nothing_left")

WEATHER: ToolParam = {
    "name": "weather",
    "description": "The weather at a place.",
    "input_schema": {"type": "object", "properties": {"place": {"type": "string"}}},
}
NEWS: ToolParam = {"name": "news", "input_schema": {"type": "object", "properties": {}}}


@pytest.fixture
async def server(serve: Serve) -> AsyncIterator[Running]:
    skilled = fake_model("claude-skilled", "--skilled")
    cut = fake_model("cut", "--cut-after", "3")
    async with serve(skilled, cut, dirs=(DEMO_MODELS,)) as server:
        yield server


@pytest.fixture
async def client(server: Running) -> AsyncIterator[anthropic.AsyncAnthropic]:
    options = {"base_url": server.url, "api_key": "any", "max_retries": 0, "timeout": 60}
    async with anthropic.AsyncAnthropic(**options) as client:  # type: ignore[arg-type]
        yield client


def user(text: str) -> list[MessageParam]:
    return [{"role": "user", "content": text}]


def asked(text: str, **more: Any) -> dict[str, Any]:
    """A request of a fixed answer; the client has no word of its own for the temperature."""
    fixed = {"extra_body": {"temperature": 0}, "max_tokens": 60}
    return {"model": "yard-chat", **fixed, "messages": user(text), **more}


def words(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def read(usage: anthropic.types.Usage) -> int:
    """The tokens of a prompt, those from a cache included: the second time they are."""
    return usage.input_tokens + (usage.cache_read_input_tokens or 0)


@pytest.mark.shows(route="/v1/messages", engine="llamacpp", dialect="anthropic")
async def test_a_real_model_answers_whole_and_streamed_in_the_same_words(
    client: anthropic.AsyncAnthropic,
) -> None:
    whole = await client.messages.create(**asked("What is Modelyard?"))
    parts = []
    async with client.messages.stream(**asked("What is Modelyard?")) as stream:
        async for part in stream.text_stream:
            parts.append(part)
        streamed = await stream.get_final_message()

    assert "endpoint" in words(whole)
    assert len(parts) > 3
    assert words(streamed) == "".join(parts) == words(whole)
    assert (whole.model, whole.stop_reason) == ("yard-chat", "end_turn")
    assert streamed.stop_reason == "end_turn"
    assert read(streamed.usage) == read(whole.usage) > 5
    assert streamed.usage.output_tokens == whole.usage.output_tokens > 5
    assert whole._request_id


async def test_the_synchronous_client_works_as_well(server: Running) -> None:
    def ask() -> str:
        with anthropic.Anthropic(base_url=server.url, auth_token="any") as client:
            return words(client.messages.create(**asked("What is 2 + 3?")))

    assert await asyncio.to_thread(ask) == "2 + 3 = 5."


async def test_the_limit_and_a_stop_sequence_end_an_answer(
    client: anthropic.AsyncAnthropic,
) -> None:
    short = await client.messages.create(**asked("What is Modelyard?", max_tokens=3))
    stopped = await client.messages.create(**asked("What is 2 + 3?", stop_sequences=["="]))

    assert (short.stop_reason, short.usage.output_tokens) == ("max_tokens", 3)
    assert words(stopped).strip() == "2 + 3"


async def test_a_begun_answer_is_gone_on_with_and_not_repeated(
    client: anthropic.AsyncAnthropic,
) -> None:
    begun: list[MessageParam] = [*user("What is 2 + 3?"), {"role": "assistant", "content": "2 + 3"}]
    whole = await client.messages.create(**asked("", messages=begun))
    async with client.messages.stream(**asked("", messages=begun)) as stream:
        streamed = await stream.get_final_text()

    assert words(whole) == streamed == " = 5."


@pytest.mark.shows(route="/v1/messages/count_tokens", engine="llamacpp", dialect="anthropic")
async def test_tokens_are_counted_as_the_model_reads_them(
    client: anthropic.AsyncAnthropic, server: Running
) -> None:
    question = user("What is Modelyard?")
    real = await client.messages.count_tokens(model="yard-chat", messages=question)
    longer = await client.messages.count_tokens(
        model="yard-chat", system="You are a pirate.", messages=question
    )
    other = await client.messages.count_tokens(model="claude-skilled", messages=question)

    answer = await client.messages.create(**asked("What is Modelyard?"))
    assert real.input_tokens == read(answer.usage)
    assert longer.input_tokens > real.input_tokens
    assert other.input_tokens == 3


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.shows(route="/v1/messages", engine="command", dialect="anthropic")
async def test_a_tool_is_called_told_its_result_and_spoken_of(
    client: anthropic.AsyncAnthropic, streamed: bool
) -> None:
    messages = user("Tell the weather and the news.")
    request: dict[str, Any] = {
        "model": "claude-skilled",
        "max_tokens": 99,
        "tools": [WEATHER, NEWS],
    }
    if streamed:
        async with client.messages.stream(**request, messages=messages) as stream:
            first = await stream.get_final_message()
    else:
        first = await client.messages.create(**request, messages=messages)

    calls = [block for block in first.content if block.type == "tool_use"]
    assert [(call.name, call.input) for call in calls] == [
        ("weather", {"place": "the place"}),
        ("news", {}),
    ]
    assert first.stop_reason == "tool_use"
    results: Any = [
        {"type": "tool_result", "tool_use_id": call.id, "content": f"sunny {call.name}"}
        for call in calls
    ]
    messages += [
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": results},
    ]
    second = await client.messages.create(**request, messages=messages)
    assert "sunny news" in words(second)
    assert second.stop_reason == "end_turn"


async def test_a_demanded_tool_is_called_and_a_forbidden_one_is_not(
    client: anthropic.AsyncAnthropic,
) -> None:
    request: dict[str, Any] = {"model": "claude-skilled", "max_tokens": 9, "tools": [WEATHER, NEWS]}
    demanded = await client.messages.create(
        **request, messages=user("hi"), tool_choice={"type": "tool", "name": "news"}
    )
    one = await client.messages.create(
        **request,
        messages=user("weather and news"),
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
    )
    none = await client.messages.create(
        **request, messages=user("weather"), tool_choice={"type": "none"}
    )

    assert [block.type for block in demanded.content] == ["tool_use"]
    assert [block.type for block in one.content] == ["tool_use"]
    assert words(none) == "claude-skilled: weather"


async def test_thinking_comes_before_the_answer_and_goes_back_to_the_model(
    client: anthropic.AsyncAnthropic,
) -> None:
    request: dict[str, Any] = {
        "model": "claude-skilled",
        "max_tokens": 2000,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    thoughts = []
    async with client.messages.stream(**request, messages=user("hi")) as stream:
        async for event in stream:
            if event.type == "thinking":
                thoughts.append(event.thinking)
        first = await stream.get_final_message()

    assert "".join(thoughts) == "I think first."
    assert [block.type for block in first.content] == ["thinking", "text"]
    again: Any = [*user("hi"), {"role": "assistant", "content": first.content}, *user("why?")]
    second = await client.messages.create(**request, messages=again)
    assert words(second) == "claude-skilled: why?"


async def test_an_answer_keeps_to_its_schema(client: anthropic.AsyncAnthropic) -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"title": {"type": "string"}}}
    answer = await client.messages.create(
        model="claude-skilled",
        max_tokens=99,
        messages=user("a recipe"),
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )

    assert json.loads(words(answer)) == {"title": "the title"}


async def test_models_are_listed_in_anthropics_shape_without_starting_any(
    client: anthropic.AsyncAnthropic, server: Running
) -> None:
    listed = [model async for model in client.models.list(limit=2)]
    one = await client.models.retrieve("claude-skilled")

    assert {"claude-skilled", "yard-chat", "yard-embed"} <= {model.id for model in listed}
    assert (one.id, one.type, one.display_name) == ("claude-skilled", "model", "claude-skilled")
    assert server.yard.loop.runs == {}


async def test_errors_arrive_as_the_clients_own_exceptions(
    client: anthropic.AsyncAnthropic,
) -> None:
    with pytest.raises(anthropic.NotFoundError, match="yard-chat") as unknown:
        await client.messages.create(**asked("hi", model="yard-chatt"))
    with pytest.raises(anthropic.BadRequestError, match="yard-embed") as wrong:
        await client.messages.create(**asked("hi", model="yard-embed"))
    tool = {"type": "web_search_20250305", "name": "web_search"}
    with pytest.raises(anthropic.BadRequestError, match="web_search_20250305"):
        await client.messages.create(**asked("hi", tools=[tool]))

    with pytest.raises(anthropic.NotFoundError, match="near-claude") as unlisted:
        await client.models.retrieve("near-claude")

    listing: Any = unlisted.value.body
    assert listing["error"]["type"] == "not_found_error"
    body: Any = unknown.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "not_found_error")
    assert unknown.value.request_id == body["request_id"]
    assert unknown.value.request_id
    assert wrong.value.response.headers["request-id"] == wrong.value.request_id


async def test_an_engine_that_dies_in_the_middle_raises_in_the_stream(
    client: anthropic.AsyncAnthropic,
) -> None:
    stream = await client.messages.create(
        model="cut", max_tokens=20, messages=user("a b c d e f g"), stream=True
    )
    parts = []

    async def read_all() -> None:
        async for event in stream:
            parts.append(event.type)

    with pytest.raises(anthropic.APIStatusError, match="ended before the answer did"):
        await read_all()
    assert "content_block_delta" in parts
    assert "message_stop" not in parts


@pytest.mark.shows(route="/v1/messages", engine="remote", dialect="anthropic")
@pytest.mark.shows(route="/v1/chat/completions", engine="remote", dialect="openai")
async def test_clients_of_either_kind_are_served_by_a_remote_that_speaks_anthropics(
    server: Running, tmp_path: Path
) -> None:
    upstream = RemoteUpstream(
        server.url, "any", model="claude-skilled", key_header="x-api-key", dialect="anthropic"
    )
    far = ModelSpec(
        "far",
        "remote",
        frozenset({Task.CHAT}),
        profiles=(Profile("remote", ()),),
        remote=RemoteModel((upstream,)),
    )
    said = []
    async with running(Config(models=(far,)), tmp_path / "near") as near:
        async with openai.AsyncOpenAI(base_url=f"{near.url}/v1", api_key="any") as client:
            tool: Any = {"type": "function", "function": {"name": "weather"}}
            chunks = await client.chat.completions.create(
                model="far",
                messages=[{"role": "user", "content": "the weather"}],
                tools=[tool],
                stream=True,
            )
            async for chunk in chunks:
                said += [call for choice in chunk.choices for call in choice.delta.tool_calls or ()]
        async with anthropic.AsyncAnthropic(base_url=near.url, api_key="any") as client:
            answer = await client.messages.create(model="far", max_tokens=9, messages=user("hi"))
            counted = await client.messages.count_tokens(model="far", messages=user("a b c"))

    assert said[0].function is not None
    assert said[0].function.name == "weather"
    assert words(answer) == "claude-skilled: hi"
    assert counted.input_tokens == 3


async def test_a_stream_that_waits_for_its_model_is_kept_alive_by_pings(serve: Serve) -> None:
    slow = fake_model("slow", "--load", "1s")
    failing = fake_model("failing", "--load", "1s", "--crash-while-loading")
    body = {"max_tokens": 9, "messages": user("hi"), "stream": True}
    async with (
        serve(slow, failing, heartbeat_after_s=0.1, heartbeat_every_s=0.1) as server,
        anthropic.AsyncAnthropic(base_url=server.url, api_key="any", max_retries=0) as client,
        client.messages.with_streaming_response.create(model="slow", **body) as raw,  # type: ignore[call-overload]
    ):
        lines = [line async for line in raw.iter_lines()]
        with pytest.raises(anthropic.APIStatusError, match="did not start"):
            async with client.messages.stream(
                model="failing", max_tokens=9, messages=user("hi")
            ) as stream:
                await stream.get_final_message()
        async with client.messages.stream(
            model="slow", max_tokens=9, messages=user("hi")
        ) as stream:
            assert (await stream.get_final_text()).startswith("slow: echo of hi")

    assert lines[:3] == ["event: ping", 'data: {"type":"ping"}', ""]
    assert lines[-3:-1] == ["event: message_stop", 'data: {"type":"message_stop"}']


async def test_a_key_counts_by_either_header_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    async with serve_keyed(tmp_path, fake_model("m"), keys=(key("ann"),)) as server:
        ann = text_of("ann")
        for clients in (
            anthropic.AsyncAnthropic(base_url=server.url, api_key=ann),
            anthropic.AsyncAnthropic(base_url=server.url, auth_token=ann),
        ):
            async with clients as client:
                listed = await client.models.list()
                answer = await client.messages.create(model="m", max_tokens=4, messages=user("hi"))
            assert [model.id for model in listed.data] == ["m"]
            assert words(answer) == "m: echo of hi"
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key="wrong") as client:
            with pytest.raises(anthropic.AuthenticationError) as refused:
                await client.messages.create(model="m", max_tokens=4, messages=user("hi"))

    body: Any = refused.value.body
    assert body["error"]["type"] == "authentication_error"


async def test_a_full_queue_is_overload_and_tried_again(serve: Serve) -> None:
    full = fake_model("full", "--load", "5s", limits=Limits(max_queue=0))
    async with (
        serve(full) as server,
        anthropic.AsyncAnthropic(base_url=server.url, api_key="any", max_retries=0) as client,
    ):
        with pytest.raises(anthropic.InternalServerError) as refused:
            await client.messages.create(model="full", max_tokens=4, messages=user("hi"))

    assert refused.value.status_code == 529
    assert refused.value.type == "overloaded_error"
    assert refused.value.response.headers["x-should-retry"] == "true"
