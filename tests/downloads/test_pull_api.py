"""A server fetches models on order, tells how it goes, serves them, and removes them again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.downloads.conftest import CHAT, below
from tests.downloads.fake_hub import Hub

from modelyard.config import Config, Devices
from modelyard.config.values import Downloads
from modelyard.core.specs import ModelSpec
from modelyard.testing.server import DEMO_MODELS, running

pytestmark = pytest.mark.usefixtures("nothing_left")

CHAT_BODY = {
    "model": "chat-Q4_K_M",
    "max_tokens": 4,
    "messages": [{"role": "user", "content": "Hello"}],
}


@asynccontextmanager
async def served(
    hub: Hub, tmp_path: Path, *models: ModelSpec, dirs: tuple[Path, ...] | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """A server with the fake hub, and a client of it."""
    folder = tmp_path / "models"
    folder.mkdir(exist_ok=True)
    config = Config(
        models=models,
        models_dirs=(folder,) if dirs is None else dirs,
        devices=Devices(budget_mib={"cpu": 2000}),
        downloads=Downloads(endpoint=hub.url),
    )
    async with (
        running(config, tmp_path / "state") as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
    ):
        yield http


async def ended(http: httpx.AsyncClient, pull: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while True:
            view: dict[str, Any] = (await http.get(f"/api/pulls/{pull}")).json()
            if view["ended_at"] is not None:
                return view
            await asyncio.sleep(0.05)


async def until_models(http: httpx.AsyncClient, expected: set[str]) -> None:
    async with asyncio.timeout(60):
        while {model["id"] for model in (await http.get("/api/models")).json()} != expected:
            await asyncio.sleep(0.1)


async def test_a_pulled_model_answers_and_its_files_can_be_removed(
    hub: Hub, tmp_path: Path
) -> None:
    async with served(hub, tmp_path) as http:
        ordered = await http.post("/api/pulls", json={"model": "yard/chat-GGUF"})
        pull = await ended(http, ordered.json()["id"])
        await until_models(http, {"chat-Q4_K_M"})
        answer = await http.post("/v1/chat/completions", json=CHAT_BODY)
        while_running = await http.delete("/api/models/chat-Q4_K_M/files")
        await http.post("/api/models/chat-Q4_K_M/stop")
        async with asyncio.timeout(60):
            while (await http.get("/api/models/chat-Q4_K_M")).json()["state"] != "stopped":
                await asyncio.sleep(0.05)
        would = await http.delete("/api/models/chat-Q4_K_M/files?dry_run=true")
        there = below(tmp_path / "models")
        removed = await http.delete("/api/models/chat-Q4_K_M/files")
        await until_models(http, set())

    assert ordered.status_code == 202
    assert (pull["state"], pull["folder"]) == ("done", str(tmp_path / "models/yard/chat-GGUF"))
    assert answer.status_code == 200, answer.text
    assert while_running.status_code == 403
    assert "its files are in use" in while_running.json()["error"]["message"]
    assert (would.json()["removed"], would.json()["freed_bytes"]) == (False, len(CHAT))
    assert "yard/chat-GGUF/chat-Q4_K_M.gguf" in there
    assert removed.json()["freed_bytes"] == len(CHAT)
    assert list((tmp_path / "models").iterdir()) == []


async def test_news_of_downloads_are_streamed(hub: Hub, tmp_path: Path) -> None:
    hub.pause_s = 0.05
    told: list[dict[str, Any]] = []
    async with served(hub, tmp_path) as http:
        await http.post("/api/pulls", json={"model": "yard/chat-GGUF"})
        async with http.stream("GET", "/api/events?topics=pulls") as stream:
            async for line in stream.aiter_lines():
                if line.startswith("data:"):
                    told.append(json.loads(line[5:]))
                    if told[-1]["data"]["ended_at"] is not None:
                        break

    states = [event["data"]["state"] for event in told]
    counts = [event["data"]["done_bytes"] for event in told]
    assert {event["topic"] for event in told} == {"pulls"}
    assert (states[-1], counts[-1]) == ("done", len(CHAT))
    assert "downloading" in states
    assert counts == sorted(counts)
    assert len(set(counts)) > 3


async def test_an_order_can_be_taken_back_and_wrong_ones_are_refused(
    hub: Hub, tmp_path: Path
) -> None:
    hub.pause_s = 0.1
    async with served(hub, tmp_path) as http:
        pull = (await http.post("/api/pulls", json={"model": "yard/chat-GGUF"})).json()
        cancelled = await http.delete(f"/api/pulls/{pull['id']}")
        listed = (await http.get("/api/pulls")).json()
        unknown = await http.delete("/api/pulls/77")
        wrong = await http.post("/api/pulls", json={"model": "llama3"})
        outside = await http.post("/api/pulls", json={"model": "yard/chat-GGUF", "to": "/tmp"})
        senseless = await http.post("/api/pulls", json={"revision": 3})

    assert cancelled.json()["state"] == "cancelled"
    assert [view["state"] for view in listed] == ["cancelled"]
    assert unknown.status_code == 404
    assert wrong.status_code == 400
    assert "ollama pull llama3" in wrong.json()["error"]["message"]
    assert outside.status_code == 403
    assert senseless.status_code == 400


async def test_a_server_that_ends_leaves_no_download_process(hub: Hub, tmp_path: Path) -> None:
    hub.pause_s = 0.1
    async with served(hub, tmp_path) as http:
        pull = (await http.post("/api/pulls", json={"model": "yard/chat-GGUF"})).json()
        async with asyncio.timeout(60):
            while not (await http.get(f"/api/pulls/{pull['id']}")).json()["done_bytes"]:
                await asyncio.sleep(0.05)

    assert any(name.endswith(".part") for name in below(tmp_path / "models"))


async def test_a_server_without_models_folders_has_one_for_downloads(
    hub: Hub, tmp_path: Path
) -> None:
    async with served(hub, tmp_path, dirs=()) as http:
        pull = (await http.post("/api/pulls", json={"model": "yard/chat-GGUF"})).json()
        view = await ended(http, pull["id"])
        await until_models(http, {"chat-Q4_K_M"})

    assert view["folder"] == str(tmp_path / "state/models/yard/chat-GGUF")


async def test_declared_models_keep_their_files_unless_the_order_insists(
    hub: Hub, tmp_path: Path
) -> None:
    inside = tmp_path / "models/own.gguf"
    inside.parent.mkdir()
    inside.write_bytes((DEMO_MODELS / "yard-chat.gguf").read_bytes())
    outside = tmp_path / "elsewhere.gguf"
    outside.write_bytes(inside.read_bytes())
    models = [
        ModelSpec(name, "llamacpp", frozenset(), source=str(path))
        for name, path in (("mine", inside), ("far", outside))
    ]
    async with served(hub, tmp_path, *models) as http:
        refused = await http.delete("/api/models/mine/files")
        far = await http.delete("/api/models/far/files?force=true")
        insisted = await http.delete("/api/models/mine/files?force=true")

    assert refused.status_code == 400
    assert "is declared in the configuration" in refused.json()["error"]["message"]
    assert far.status_code == 403
    assert "outside the models folders" in far.json()["error"]["message"]
    assert insisted.json()["removed"] is True
    assert (inside.exists(), outside.exists()) == (False, True)
