"""The official OpenAI client against real models on the real llama.cpp.

What is asserted can only come from models that work: sentences that were learned, similarities that
make sense, the relevant document first.
"""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import AsyncIterator

import httpx
import openai
import pytest
from tests.conftest import Serve

from modelyard.testing.server import DEMO_MODELS, Running

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
async def server(serve: Serve) -> AsyncIterator[Running]:
    async with serve(dirs=(DEMO_MODELS,)) as server:
        yield server


@pytest.fixture
async def client(server: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    options = {"base_url": f"{server.url}/v1", "api_key": "any", "max_retries": 0, "timeout": 60}
    async with openai.AsyncOpenAI(**options) as client:  # type: ignore[arg-type]  # as documented
        yield client


def user(text: str) -> list[openai.types.chat.ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


async def test_the_models_are_listed_without_starting_any(
    client: openai.AsyncOpenAI, server: Running
) -> None:
    listed = [model.id async for model in client.models.list()]
    one = await client.models.retrieve("yard-chat")

    assert {"yard-chat", "yard-embed", "yard-rerank"} <= set(listed)
    assert (one.id, one.object) == ("yard-chat", "model")
    assert server.yard.loop.runs == {}


@pytest.mark.shows(route="/v1/chat/completions", engine="llamacpp", dialect="openai")
async def test_a_chat_answers_in_a_sentence_about_what_was_asked(
    client: openai.AsyncOpenAI,
) -> None:
    answer = await client.chat.completions.create(
        model="yard-chat", messages=user("What is Modelyard?"), temperature=0
    )

    text = answer.choices[0].message.content or ""
    assert "Modelyard" in text
    assert "endpoint" in text
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 5


async def test_a_streamed_chat_says_the_same_as_a_whole_one(client: openai.AsyncOpenAI) -> None:
    request = {"model": "yard-chat", "messages": user("Hello, how are you?"), "temperature": 0}
    whole = await client.chat.completions.create(**request)  # type: ignore[call-overload]
    parts = []
    async for chunk in await client.chat.completions.create(**request, stream=True):  # type: ignore[call-overload]
        parts += [choice.delta.content or "" for choice in chunk.choices]

    assert len(parts) > 3
    assert whole.choices[0].message.content == "".join(parts)


async def test_the_synchronous_client_works_as_well(server: Running) -> None:
    def ask() -> str:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any") as client:
            stream = client.chat.completions.create(
                model="yard-chat", messages=user("What is 2 + 3?"), temperature=0, stream=True
            )
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    assert await asyncio.to_thread(ask) == "2 + 3 = 5."


async def test_a_chinese_question_gets_a_chinese_answer(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="yard-chat", messages=user("你好"), temperature=0
    )

    text = answer.choices[0].message.content or ""
    assert any("\u4e00" <= character <= "\u9fff" for character in text)


async def test_max_tokens_is_obeyed_and_named_as_the_reason(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="yard-chat", messages=user("What is Modelyard?"), temperature=0, max_tokens=3
    )

    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


async def test_a_stream_reports_usage_if_asked(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="yard-chat",
        messages=user("Hello"),
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]

    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens > 0


@pytest.mark.shows(route="/v1/completions", engine="llamacpp", dialect="openai")
async def test_a_completion_continues_the_text(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model="yard-chat", prompt="Modelyard is", temperature=0, max_tokens=24
    )

    assert "model" in answer.choices[0].text


@pytest.mark.shows(route="/v1/embeddings", engine="llamacpp", dialect="openai")
async def test_embeddings_of_like_sentences_are_alike(client: openai.AsyncOpenAI) -> None:
    answer = await client.embeddings.create(
        model="yard-embed",
        input=[
            "A cat sits on the mat.",
            "A kitten is resting on a rug.",
            "The stock market fell today.",
        ],
        encoding_format="float",
    )
    cat, kitten, market = (item.embedding for item in answer.data)

    assert _cosine(cat, kitten) > _cosine(cat, market) + 0.1


async def test_base64_embeddings_are_the_same_numbers(client: openai.AsyncOpenAI) -> None:
    request = {"model": "yard-embed", "input": "hello"}
    floats = await client.embeddings.create(**request, encoding_format="float")  # type: ignore[arg-type]
    raw = await client.embeddings.create(**request, encoding_format="base64")  # type: ignore[arg-type]
    packed = base64.b64decode(str(raw.data[0].embedding))

    assert floats.data[0].embedding == pytest.approx(
        struct.unpack(f"<{len(packed) // 4}f", packed), abs=1e-5
    )


@pytest.mark.shows(route="/v1/rerank", engine="llamacpp", dialect="rerank")
async def test_the_relevant_document_is_ranked_first(server: Running) -> None:
    request = {
        "model": "yard-rerank",
        "query": "How do I cook rice?",
        "documents": [
            "The train to the city leaves at noon.",
            "Rice is cooked in boiling water for fifteen minutes.",
            "Football is played by two teams.",
        ],
    }
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        results = (await http.post("/v1/rerank", json=request)).json()["results"]

    best = max(results, key=lambda result: float(result["relevance_score"]))
    assert best["index"] == 1


async def test_errors_arrive_as_the_clients_own_exceptions(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="yard-chat") as unknown:
        await client.chat.completions.create(model="yard-chatt", messages=user("hi"))
    with pytest.raises(openai.BadRequestError, match="asks for embedding") as wrong:
        await client.embeddings.create(model="yard-chat", input="hi")

    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    assert wrong.value.code == "wrong_task"
    assert wrong.value.request_id


async def test_a_clients_timeout_does_not_undo_the_load(
    client: openai.AsyncOpenAI, server: Running
) -> None:
    with pytest.raises(openai.APITimeoutError):
        await client.chat.completions.create(model="yard-chat", messages=user("hi"), timeout=0.02)
    answer = await client.chat.completions.create(model="yard-chat", messages=user("Hello"))

    assert answer.choices[0].message.content
    assert server.yard.loop.loads == 1


async def test_a_stream_closed_by_its_client_frees_the_lease(
    client: openai.AsyncOpenAI, server: Running
) -> None:
    stream = await client.chat.completions.create(
        model="yard-chat", messages=user("What is Modelyard?"), stream=True
    )
    async for _ in stream:
        break
    await stream.close()

    slot = server.yard.loop.scheduler.models["yard-chat"]
    async with asyncio.timeout(60):
        while slot.in_flight:
            await asyncio.sleep(0.01)


def _cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    norm = (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5
    return float(dot / norm)
