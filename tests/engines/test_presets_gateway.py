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

    async def begin(preset: str, path: str, body: dict[str, Any], **keys: Any) -> httpx.Response:
        config = configured(tmp_path, preset, aliases=["n"], **keys)
        server = await stack.enter_async_context(running(config, tmp_path / "state"))
        http = httpx.AsyncClient(base_url=server.url, timeout=20)
        return await (await stack.enter_async_context(http)).post(path, json=body)

    async with stack:
        yield begin


@pytest.mark.parametrize("preset", ["sglang", "tei"])
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
