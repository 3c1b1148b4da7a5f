"""Clients speak one dialect, whatever the program behind the model speaks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.engines.test_presets import configured

from modelyard.testing.server import running

Ask = Callable[..., Any]
RANKING = {"model": "m", "query": "sky", "documents": ["red", "green", "blue"], "top_n": 2}


@pytest.fixture
async def ask(tmp_path: Path) -> AsyncIterator[Ask]:
    """`answer = await ask("tei", "/v1/rerank", {...}, source="w")`: of a model `m`, alias `n`."""
    stack = AsyncExitStack()

    async def begin(
        preset: str, path: str, body: dict[str, Any] | None, **keys: Any
    ) -> httpx.Response:
        form = {name: keys.pop(name) for name in ("data", "files") if name in keys}
        config = configured(tmp_path, preset, aliases=["n"], **keys)
        server = await stack.enter_async_context(running(config, tmp_path / "state"))
        http = httpx.AsyncClient(base_url=server.url, timeout=60)
        return await (await stack.enter_async_context(http)).post(path, json=body, **form)

    async with stack:
        yield begin


@pytest.mark.parametrize("preset", ["sglang", "tei"])
@pytest.mark.shows(route="/v1/rerank", engine="preset", dialect="rerank")
async def test_a_bare_list_reaches_clients_as_a_ranking(ask: Ask, preset: str) -> None:
    answer = await ask(preset, "/v1/rerank", RANKING, source="w", tasks=["rerank"])

    assert answer.status_code == 200
    assert int(answer.headers["content-length"]) == len(answer.content)
    best = [(each["index"], each["relevance_score"]) for each in answer.json()["results"]]
    assert best == [(2, 0.9), (1, 0.5)]


@pytest.mark.parametrize(
    ("preset", "keys"),
    [
        ("lmdeploy", {"source": "w"}),
        ("mlx", {"source": "w"}),
        ("ollama", {"options": {"model": "llama3.2"}}),
    ],
)
@pytest.mark.parametrize("name", ["m", "n"])
@pytest.mark.shows(route="/v1/chat/completions", engine="preset", dialect="openai")
async def test_an_alias_reaches_a_program_that_knows_one_name(
    ask: Ask, preset: str, keys: dict[str, Any], name: str
) -> None:
    asked = {"model": name, "messages": [{"role": "user", "content": "hi"}]}

    answer = await ask(preset, "/v1/chat/completions", asked, **keys)

    assert answer.status_code == 200


async def test_an_error_of_such_a_program_keeps_its_status_and_words(ask: Ask) -> None:
    answer = await ask("tei", "/rerank", {"model": "m", "query": "x"}, source="w", tasks=["rerank"])

    assert answer.status_code >= 400
    assert answer.json()["error"]["message"]


@pytest.mark.shows(route="/v1/audio/transcriptions", engine="preset", dialect="openai")
async def test_a_recording_reaches_whisper_as_the_client_sent_it(ask: Ask) -> None:
    sent = {"data": {"model": "m"}, "files": {"file": ("a.wav", b"RIFF....WAVE", "audio/wav")}}

    answer = await ask("whisper.cpp", "/v1/audio/transcriptions", None, source="w", **sent)

    assert (answer.status_code, answer.json()) == (200, {"text": "hello"})


@pytest.mark.shows(route="/v1/audio/speech", engine="preset", dialect="openai")
async def test_speech_comes_back_as_sound(ask: Ask) -> None:
    asked = {"model": "n", "input": "hello", "voice": "af_sky"}

    answer = await ask("kokoro", "/v1/audio/speech", asked, source=".")

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "audio/wav"
    assert answer.content == b"RIFF....WAVE"


@pytest.mark.shows(route="/v1/images/generations", engine="preset", dialect="openai")
async def test_an_image_carries_its_moment_as_a_number(ask: Ask) -> None:
    asked = {"model": "m", "prompt": "a cat"}

    answer = await ask("stable-diffusion.cpp", "/v1/images/generations", asked, source="w")

    assert answer.status_code == 200
    assert answer.json()["created"] == 1767323045  # 2026-01-02 03:04:05 UTC


@pytest.mark.parametrize("preset", ["whisper.cpp", "kokoro", "stable-diffusion.cpp"])
async def test_such_a_program_is_not_asked_to_chat(ask: Ask, preset: str) -> None:
    asked = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}

    answer = await ask(preset, "/v1/chat/completions", asked, source=".")

    assert answer.status_code == 400
    assert "chat" in answer.json()["error"]["message"]
