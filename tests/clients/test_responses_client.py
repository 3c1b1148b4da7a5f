"""The official OpenAI client, its Responses, against a real model and an engine with every skill.

The real llama.cpp says sentences that were learned; the skilled engine calls tools, thinks and
keeps to schemas, which tiny models cannot do.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai.types.responses import FunctionToolParam, Response
from pydantic import BaseModel

from modelyard.config import Config
from modelyard.testing.server import DEMO_MODELS, Running, fake_model, running

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one server for all

WEATHER: FunctionToolParam = {
    "type": "function",
    "name": "weather",
    "description": "The weather at a place.",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    "strict": False,
}


class Step(BaseModel):
    """What a structured answer is read into."""

    title: str
    minutes: int


class Recipe(BaseModel):
    name: str
    steps: list[Step]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    models = fake_model("skilled", "--skilled"), fake_model("cut", "--cut-after", "3")
    config = Config(models=models, models_dirs=(DEMO_MODELS,))
    async with running(config, tmp_path_factory.mktemp("state")) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(server: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    options = {"base_url": f"{server.url}/v1", "api_key": "any", "max_retries": 0, "timeout": 60}
    async with openai.AsyncOpenAI(**options) as client:  # type: ignore[arg-type]  # as documented
        yield client


@pytest.mark.shows(route="/v1/responses", engine="llamacpp", dialect="responses")
async def test_a_real_model_answers_whole_and_streamed_in_the_same_words(
    client: openai.AsyncOpenAI,
) -> None:
    asked: dict[str, Any] = {
        "model": "yard-chat",
        "input": "What is Modelyard?",
        "temperature": 0,
        "store": False,
    }
    whole = await client.responses.create(**asked)
    async with client.responses.stream(**asked) as stream:
        kinds = [event.type async for event in stream]
        streamed = await stream.get_final_response()

    assert "Modelyard" in whole.output_text
    assert "endpoint" in whole.output_text
    assert streamed.output_text == whole.output_text
    assert (whole.status, whole.model, whole.store) == ("completed", "yard-chat", False)
    assert whole.usage is not None
    assert streamed.usage is not None
    assert (streamed.usage.input_tokens, streamed.usage.output_tokens) == (
        whole.usage.input_tokens,
        whole.usage.output_tokens,
    )
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds.count("response.output_text.delta") > 3
    assert kinds[-1] == "response.completed"


async def test_instructions_and_a_history_reach_the_model(client: openai.AsyncOpenAI) -> None:
    first = await client.responses.create(
        model="yard-chat", input="Hello", temperature=0, max_output_tokens=30
    )
    answer = await client.responses.create(
        model="yard-chat",
        instructions="You are a helpful assistant.",
        input=[
            {"role": "user", "content": "Hello"},
            *first.output,  # type: ignore[list-item]  # as the documentation shows
            {"role": "user", "content": [{"type": "input_text", "text": "What is 2 + 3?"}]},
        ],
        temperature=0,
    )

    assert "5" in answer.output_text


async def test_a_token_limit_makes_an_answer_incomplete(client: openai.AsyncOpenAI) -> None:
    answer = await client.responses.create(
        model="yard-chat", input="What is Modelyard?", max_output_tokens=3
    )

    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage is not None
    assert answer.usage.output_tokens == 3


@pytest.mark.shows(route="/v1/responses/input_tokens", engine="llamacpp", dialect="responses")
async def test_the_length_of_an_input_is_what_the_engine_then_reads(
    client: openai.AsyncOpenAI,
) -> None:
    counted = await client.responses.input_tokens.count(model="yard-chat", input="Hello there")
    answer = await client.responses.create(model="yard-chat", input="Hello there")

    assert answer.usage is not None
    assert counted.input_tokens == answer.usage.input_tokens > 2


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.shows(route="/v1/responses", engine="command", dialect="responses")
async def test_a_loop_of_tools_runs_to_its_end(
    client: openai.AsyncOpenAI, *, streamed: bool
) -> None:
    async def ask(items: list[Any]) -> Response:
        asked: dict[str, Any] = {"model": "skilled", "input": items, "tools": [WEATHER]}
        if not streamed:
            answer: Response = await client.responses.create(**asked)
            return answer
        async with client.responses.stream(**asked) as stream:
            return await stream.get_final_response()

    items: list[Any] = [{"role": "user", "content": "Use weather for Ulm."}]
    first = await ask(items)
    (call,) = first.output
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments)) == ("weather", {"place": "the place"})
    items += [
        call.model_dump(exclude_none=True),
        {"type": "function_call_output", "call_id": call.call_id, "output": "rain today"},
    ]

    second = await ask(items)

    assert second.output_text == "skilled: rain today"


async def test_tools_of_a_kind_and_several_at_once_keep_their_names(
    client: openai.AsyncOpenAI,
) -> None:
    answer = await client.responses.create(
        model="skilled",
        input="Use mcp__docs__find and apply_patch and weather.",
        tools=[
            {"type": "custom", "name": "apply_patch", "description": "Edits files."},
            WEATHER,
            {"type": "web_search"},
            {
                "type": "namespace",
                "name": "mcp__docs",
                "description": "Documents.",
                "tools": [{"type": "function", "name": "find", "parameters": {"type": "object"}}],
            },
        ],
    )

    patch, weather, find = answer.output
    assert (patch.type, patch.name, patch.input) == ("custom_tool_call", "apply_patch", "the input")  # type: ignore[union-attr]
    assert (weather.type, weather.name) == ("function_call", "weather")  # type: ignore[union-attr]
    assert (find.name, find.namespace) == ("find", "mcp__docs")  # type: ignore[union-attr]
    assert [tool.type for tool in answer.tools] == ["custom", "function", "namespace"]


async def test_a_structured_answer_is_parsed(client: openai.AsyncOpenAI) -> None:
    answer = await client.responses.parse(model="skilled", input="Cook rice.", text_format=Recipe)
    async with client.responses.stream(
        model="skilled", input="Cook rice.", text_format=Recipe
    ) as stream:
        streamed = await stream.get_final_response()

    expected = Recipe(name="the name", steps=[Step(title="the title", minutes=7)])
    assert answer.output_parsed == expected
    assert streamed.output_parsed == expected


async def test_a_real_model_keeps_to_a_schema(client: openai.AsyncOpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"mood": {"type": "string", "enum": ["good", "bad"]}},
        "required": ["mood"],
        "additionalProperties": False,
    }
    answer = await client.responses.create(
        model="yard-chat",
        input="Hello",
        text={"format": {"type": "json_schema", "name": "mood", "schema": schema}},
        max_output_tokens=200,
    )

    assert json.loads(answer.output_text)["mood"] in ("good", "bad")


async def test_reasoning_is_an_item_and_can_be_sent_back(client: openai.AsyncOpenAI) -> None:
    answer = await client.responses.create(
        model="skilled",
        input="Hi",
        reasoning={"effort": "high"},
        include=["reasoning.encrypted_content"],
    )
    thought, words = answer.output
    assert thought.type == "reasoning"
    assert thought.content is not None
    assert thought.content[0].text == "I think first."
    assert thought.encrypted_content
    assert answer.output_text == "skilled: Hi"

    again = await client.responses.create(
        model="skilled",
        input=[
            {"role": "user", "content": "Hi"},
            thought.model_dump(exclude={"content"}),  # type: ignore[list-item]
            words.model_dump(exclude_none=True),  # type: ignore[list-item]
            {"role": "user", "content": "Bye"},
        ],
    )
    assert again.output_text == "skilled: Bye"


async def test_errors_arrive_as_the_clients_own_exceptions(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no model named") as unknown:
        await client.responses.create(model="nobody", input="hi")
    with pytest.raises(openai.BadRequestError, match="no responses are stored") as stored:
        await client.responses.create(model="skilled", input="hi", previous_response_id="resp_1")
    with pytest.raises(openai.BadRequestError, match="'code_interpreter'") as hosted:
        await client.responses.create(
            model="skilled",
            input="hi",
            tools=[{"type": "code_interpreter", "container": {"type": "auto"}}],
        )
    with pytest.raises(openai.BadRequestError, match="asks for chat"):
        await client.responses.create(model="yard-embed", input="hi")

    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    assert stored.value.param == "previous_response_id"
    assert hosted.value.param == "tools[0]"
    assert hosted.value.request_id


async def test_what_would_be_stored_is_said_not_to_be(client: openai.AsyncOpenAI) -> None:
    answer = await client.responses.create(model="skilled", input="hi", store=True)
    with pytest.raises(openai.NotFoundError, match="keeps no responses"):
        await client.responses.retrieve(answer.id)
    with pytest.raises(openai.NotFoundError, match="keeps no responses"):
        await client.responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError, match="keeps no responses"):
        await client.responses.cancel(answer.id)
    with pytest.raises(openai.NotFoundError, match="keeps no responses"):
        await client.responses.input_items.list(answer.id)
    with pytest.raises(openai.BadRequestError, match="not compacted"):
        await client.responses.compact(model="skilled", input="hi")


async def test_an_engine_that_breaks_off_fails_the_stream(client: openai.AsyncOpenAI) -> None:
    stream = await client.responses.create(model="cut", input="one two three four", stream=True)
    seen: list[Any] = []

    async def read() -> None:
        async for event in stream:
            seen.append(event)  # the exception must not take them away

    with pytest.raises(openai.APIError, match="ended before the answer did"):
        await read()

    assert seen[-1].type == "response.failed"
    assert seen[-1].response.error is not None
    assert seen[-1].response.error.code == "server_error"


async def test_a_stream_closed_by_its_client_frees_the_lease(
    client: openai.AsyncOpenAI, server: Running
) -> None:
    stream = await client.responses.create(model="yard-chat", input="What is 2?", stream=True)
    async for event in stream:
        if event.type == "response.output_text.delta":
            break
    await stream.close()

    slot = server.yard.loop.scheduler.models["yard-chat"]
    async with asyncio.timeout(60):
        while slot.in_flight:
            await asyncio.sleep(0.01)
