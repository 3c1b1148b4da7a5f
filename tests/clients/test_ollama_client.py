"""The official Ollama client against real models, and an engine that calls tools."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
import pytest_asyncio

from modelyard.config import Config, Devices
from modelyard.core.specs import Limits, ModelSpec, Task
from modelyard.testing.server import DEMO_MODELS, Running, fake_model, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

CALLING = ModelSpec(
    "caller",
    "command",
    frozenset({Task.CHAT}),
    command=(sys.executable, str(Path(__file__).with_name("calling_engine.py")), "{port}"),
    estimate_mib=10,
    limits=Limits(stop_grace_s=2.0),
)
EXACT = {"temperature": 0.0}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """One server for all these tests: none depends on what runs."""
    models = (CALLING, fake_model("cut", "--cut-after", "3"))
    budget = Devices(budget_mib={"cpu": 1000})
    config = Config(models=models, models_dirs=(DEMO_MODELS,), devices=budget)
    async with running(config, tmp_path_factory.mktemp("state"), ollama_port=0) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(server: Running) -> AsyncIterator[ollama.AsyncClient]:
    async with ollama.AsyncClient(f"127.0.0.1:{server.yard.facts.ollama_port}") as client:
        yield client


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


async def test_a_model_is_shown_with_what_it_can_do(client: ollama.AsyncClient) -> None:
    chat = await client.show("yard-chat:latest")
    embed = await client.show("yard-embed")

    assert chat.capabilities == ["completion"]
    assert chat.template is not None
    assert "message" in chat.template
    assert chat.modelinfo is not None
    assert chat.modelinfo["qwen3.block_count"] == 4
    assert embed.capabilities == ["embedding"]


@pytest.mark.shows(route="/api/chat", engine="llamacpp", dialect="ollama")
async def test_a_streamed_chat_says_the_same_as_a_whole_one(client: ollama.AsyncClient) -> None:
    asked = {"model": "yard-chat", "messages": user("What is Modelyard?"), "options": EXACT}
    whole = await client.chat(**asked)  # type: ignore[call-overload]
    parts = [part async for part in await client.chat(**asked, stream=True)]  # type: ignore[call-overload]

    text = "".join(part.message.content or "" for part in parts)
    assert "endpoint" in text
    assert whole.message.content == text
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert len(parts) > 4
    last = parts[-1]
    assert last.done_reason == whole.done_reason == "stop"
    assert last.eval_count == whole.eval_count
    assert last.eval_count > 5
    assert last.prompt_eval_count > 5
    assert last.eval_duration > 0


async def test_options_are_obeyed(client: ollama.AsyncClient) -> None:
    answer = await client.generate(
        "yard-chat", "What is Modelyard?", options={**EXACT, "num_predict": 3, "num_ctx": 64}
    )

    assert (answer.done_reason, answer.eval_count) == ("length", 3)


@pytest.mark.shows(route="/api/generate", engine="llamacpp", dialect="ollama")
async def test_a_prompt_is_answered_and_a_raw_one_continued(client: ollama.AsyncClient) -> None:
    answer = await client.generate("yard-chat", "What is 2 + 3?", options=EXACT)
    raw = await client.generate(
        "yard-chat", "Modelyard is", raw=True, options={**EXACT, "num_predict": 24}
    )
    streamed = await client.generate("yard-chat", "What is 2 + 3?", stream=True, options=EXACT)

    assert answer.response == "2 + 3 = 5."
    assert "model" in (raw.response or "")
    assert "".join([part.response or "" async for part in streamed]) == "2 + 3 = 5."


async def test_an_answer_keeps_to_a_schema(client: ollama.AsyncClient) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}, "sure": {"type": "boolean"}},
        "required": ["colour", "sure"],
    }
    answer = await client.chat("yard-chat", user("Hello"), format=schema, options=EXACT)

    said = json.loads(answer.message.content or "")
    assert said["colour"] in ("red", "blue")
    assert isinstance(said["sure"], bool)


async def test_log_probabilities_are_told(client: ollama.AsyncClient) -> None:
    answer = await client.chat(
        "yard-chat", user("Hello"), logprobs=True, top_logprobs=2, options={"num_predict": 2}
    )

    assert answer.logprobs is not None
    assert len(answer.logprobs) == 2
    assert all(token.logprob <= 0 for token in answer.logprobs)
    assert answer.logprobs[0].top_logprobs is not None
    assert len(answer.logprobs[0].top_logprobs) == 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.shows(route="/api/chat", engine="command", dialect="ollama")
async def test_a_tool_is_called_and_its_result_understood(
    client: ollama.AsyncClient, server: Running, stream: bool
) -> None:
    def weather(city: str) -> str:
        """The weather of a city.

        Args:
            city: its name
        """
        return f"warm in {city}"

    messages = user("How is the weather in Rome?")
    first = await ask(client, messages, tools=[weather], stream=stream)
    (call,) = first.tool_calls or ()
    result = weather(**call.function.arguments)
    messages += [first.model_dump(), {"role": "tool", "tool_name": "weather", "content": result}]
    second = await ask(client, messages, tools=[weather], stream=stream)

    assert (call.function.name, call.function.arguments) == ("weather", {"city": "Rome"})
    assert (second.content or "").strip() == "It said: warm in Rome"


async def ask(
    client: ollama.AsyncClient, messages: list[Any], *, tools: list[Any], stream: bool
) -> ollama.Message:
    """The answer's message, put together from its parts if it is streamed."""
    if not stream:
        return (await client.chat("caller", messages, tools=tools)).message
    parts = [
        part.message
        async for part in await client.chat("caller", messages, tools=tools, stream=True)
    ]
    text = "".join(part.content or "" for part in parts)
    calls = [call for part in parts for call in part.tool_calls or ()]
    return ollama.Message(role="assistant", content=text, tool_calls=calls or None)


@pytest.mark.shows(route="/api/embed", engine="llamacpp", dialect="ollama")
@pytest.mark.shows(route="/api/embeddings", engine="llamacpp", dialect="ollama")
async def test_embeddings_of_like_sentences_are_alike(client: ollama.AsyncClient) -> None:
    texts = [
        "A cat sits on the mat.",
        "A kitten is resting on a rug.",
        "The stock market fell today.",
    ]
    answer = await client.embed("yard-embed", texts)
    older = await client.embeddings("yard-embed", texts[0])

    cat, kitten, market = answer.embeddings
    assert _dot(cat, kitten) > _dot(cat, market) + 0.1
    assert list(older.embedding) == pytest.approx(list(cat), abs=1e-3)
    assert (answer.prompt_eval_count or 0) > 10


async def test_errors_arrive_as_the_clients_own_exceptions(client: ollama.AsyncClient) -> None:
    with pytest.raises(ollama.ResponseError, match="yard-chatt") as unknown:
        await client.chat("yard-chatt", user("hi"))
    with pytest.raises(ollama.ResponseError, match="yard-chatt") as streamed:
        async for _ in await client.chat("yard-chatt", user("hi"), stream=True):
            pass
    with pytest.raises(ollama.ResponseError, match="asks for embedding") as wrong:
        await client.embed("yard-chat", "hi")
    with pytest.raises(ollama.ResponseError, match="template") as refused:
        await client.generate("yard-chat", "hi", template="{{ .Prompt }}")

    statuses = [error.value.status_code for error in (unknown, streamed, wrong, refused)]
    assert statuses == [404, 404, 400, 400]


async def test_a_stream_that_breaks_off_is_an_error_and_no_answer(
    client: ollama.AsyncClient,
) -> None:
    parts: list[ollama.ChatResponse] = []

    async def read() -> None:
        async for part in await client.chat("cut", user("hi"), stream=True):
            parts.append(part)

    with pytest.raises(ollama.ResponseError, match="ended before the answer did"):
        await read()
    assert parts
    assert not any(part.done for part in parts)


async def test_a_model_that_is_here_need_not_be_pulled(client: ollama.AsyncClient) -> None:
    lines = [line.status async for line in await client.pull("yard-chat", stream=True)]

    assert lines == ["pulling manifest", "success"]
    with pytest.raises(ollama.ResponseError, match="Ollama's library") as library:
        await client.pull("llama3.2")
    assert library.value.status_code == 400


async def test_what_modelyard_does_not_do_is_said(client: ollama.AsyncClient) -> None:
    await client.generate("yard-chat")

    with pytest.raises(ollama.ResponseError, match="in use"):
        await client.delete("yard-chat")
    with pytest.raises(ollama.ResponseError, match="not supported"):
        await client.copy("yard-chat", "other")
    with pytest.raises(ollama.ResponseError, match="not supported"):
        await client.create("other", from_="yard-chat")


async def test_only_the_second_port_looks_like_ollama(server: Running) -> None:
    looks_like = f"http://127.0.0.1:{server.yard.facts.ollama_port}/"
    async with httpx.AsyncClient(timeout=60) as http:
        there, head = await http.get(looks_like), await http.head(looks_like)
        here = await http.get(server.url)
        listed = await http.get(f"{server.url}/api/tags")
        version = (await http.get(f"{server.url}/api/version")).json()["version"]

    assert (there.status_code, there.text) == (200, "Ollama is running")
    assert (head.status_code, head.text) == (200, "")
    assert "Ollama" not in here.text
    assert listed.status_code == 200
    assert tuple(map(int, version.split("."))) >= (0, 17, 6)


async def test_the_synchronous_client_works_as_well(server: Running) -> None:
    def ask() -> str:
        with ollama.Client(server.url) as client:
            stream = client.chat("yard-chat", user("What is 2 + 3?"), stream=True, options=EXACT)
            return "".join(part.message.content or "" for part in stream)

    assert await asyncio.to_thread(ask) == "2 + 3 = 5."


def _dot(a: Any, b: Any) -> float:
    return float(sum(x * y for x, y in zip(a, b, strict=True)))
