"""Loading, letting go and listing through the official Ollama client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import httpx
import ollama
import pytest
from tests.conftest import Serve

from modelyard.testing.server import DEMO_MODELS, Running, fake_model

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
async def server(serve: Serve) -> AsyncIterator[Running]:
    async with serve(dirs=(DEMO_MODELS,)) as server:
        yield server


@pytest.fixture
async def client(server: Running) -> AsyncIterator[ollama.AsyncClient]:
    async with ollama.AsyncClient(server.url) as client:
        yield client


async def test_the_models_are_listed_without_starting_any(
    client: ollama.AsyncClient, server: Running
) -> None:
    listed = {model.model: model for model in (await client.list()).models}

    chat = listed["yard-chat"]
    assert chat.details is not None
    assert (chat.details.family, chat.details.quantization_level) == ("qwen3", "Q8_0")
    assert chat.size is not None
    assert chat.size > 1_000_000
    assert (await client.ps()).models == []
    assert server.yard.loop.runs == {}


async def test_a_model_is_loaded_and_let_go_by_asking_nothing(
    client: ollama.AsyncClient, server: Running
) -> None:
    loaded = await client.generate("yard-chat")
    (running,) = (await client.ps()).models
    gone = await client.generate("yard-chat", keep_alive=0)

    assert (loaded.done, loaded.done_reason, loaded.response) == (True, "load", "")
    assert (running.model, running.context_length) == ("yard-chat", 512)
    assert (running.size or 0) > 0
    assert gone.done_reason == "unload"
    await until_stopped(client)
    assert server.yard.loop.loads == 1


async def test_a_model_may_go_right_after_its_answer(client: ollama.AsyncClient) -> None:
    answer = await client.chat("yard-chat", [{"role": "user", "content": "Hello"}], keep_alive=0)

    assert answer.message.content
    await until_stopped(client)


async def test_a_model_stays_as_long_as_its_client_wants(client: ollama.AsyncClient) -> None:
    await client.generate("yard-chat", "Hello", keep_alive="5m")
    (five,) = (await client.ps()).models
    await client.generate("yard-chat", "Hello", keep_alive=-1)
    (endless,) = (await client.ps()).models
    await client.generate("yard-chat", "Hello", keep_alive=0)
    await until_stopped(client)

    assert five.expires_at is not None
    assert endless.expires_at is not None
    now = datetime.now(five.expires_at.tzinfo)
    assert timedelta(minutes=3) < five.expires_at - now < timedelta(minutes=6)
    assert endless.expires_at - now > timedelta(days=365)


async def until_stopped(client: ollama.AsyncClient) -> None:
    async with asyncio.timeout(60):
        while (await client.ps()).models:
            await asyncio.sleep(0.02)


async def test_a_client_is_kept_company_while_its_model_loads(serve: Serve) -> None:
    slow = fake_model("slow", "--load", "2s")
    request = {"model": "slow", "prompt": "hi"}
    async with (
        serve(slow, heartbeat_after_s=0.1, heartbeat_every_s=0.1) as server,
        ollama.AsyncClient(server.url) as client,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
    ):
        waiting = asyncio.create_task(http.post("/api/generate", json=request))
        stream = await client.generate("slow", "hi", stream=True)
        text = "".join([part.response or "" async for part in stream])
        raw = (await waiting).text

    assert text.startswith("slow: echo of hi")
    assert len(raw) - len(raw.lstrip(" ")) >= 2
