"""A folder of files is a server: no configuration, no restart."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.conftest import Serve

from modelyard.testing.server import DEMO_MODELS

pytestmark = pytest.mark.usefixtures("nothing_left")


async def until_listed(http: httpx.AsyncClient, wanted: set[str]) -> list[dict[str, Any]]:
    async with asyncio.timeout(60):
        while True:
            models: list[dict[str, Any]] = (await http.get("/v1/models")).json()["data"]
            if {model["id"] for model in models} == wanted:
                return models
            await asyncio.sleep(0.05)


async def test_every_file_is_a_model_with_the_tasks_of_its_header(serve: Serve) -> None:
    async with (
        serve(dirs=(DEMO_MODELS,)) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
    ):
        models = await until_listed(http, {"yard-chat", "yard-embed", "yard-rerank"})

    assert {model["id"]: model["tasks"] for model in models} == {
        "yard-chat": ["chat", "completion"],
        "yard-embed": ["embedding"],
        "yard-rerank": ["rerank"],
    }


async def test_files_come_and_go_while_the_server_runs(serve: Serve, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
    async with (
        serve(dirs=(folder,)) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
    ):
        await until_listed(http, set())
        shutil.copy(DEMO_MODELS / "yard-chat.gguf", folder / "tiny.gguf")
        await until_listed(http, {"tiny"})
        answer = await http.post("/v1/chat/completions", json=chat)
        (folder / "tiny.gguf").unlink()
        await until_listed(http, set())

        assert answer.status_code == 200


async def test_a_broken_file_is_a_named_problem_and_spares_the_others(
    serve: Serve, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copy(DEMO_MODELS / "yard-chat.gguf", folder / "good.gguf")
    whole = (DEMO_MODELS / "yard-embed.gguf").read_bytes()
    (folder / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    async with (
        serve(dirs=(folder,)) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
    ):
        await until_listed(http, {"good"})
        problems = (await http.get("/api/info")).json()["problems"]

    assert len(problems) == 1
    assert "cut.gguf" in problems[0]
