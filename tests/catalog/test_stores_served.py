"""Models in other programs' stores, found and served by a whole server with the real engine."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import httpx
import pytest
from tests.conftest import Serve

from modelyard.testing.server import DEMO_MODELS

pytestmark = pytest.mark.usefixtures("nothing_left")


def ollama_store(root: Path) -> Path:
    """A store with one model, as `ollama pull` leaves it."""
    content = (DEMO_MODELS / "yard-chat.gguf").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    (root / "blobs").mkdir(parents=True)
    (root / f"blobs/sha256-{digest}").write_bytes(content)
    media = "application/vnd.ollama.image.model"
    layers = [{"mediaType": media, "digest": f"sha256:{digest}", "size": len(content)}]
    manifest = root / "manifests/registry.ollama.ai/library/yard/latest"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}), encoding="utf-8")
    return root


def hub_cache(root: Path) -> Path:
    """A repository of one file, as `hf download` leaves it."""
    place = root / "models--modelyard--yard-embed"
    snapshot = place / "snapshots/0123456789abcdef"
    (place / "blobs").mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs/main").write_text(snapshot.name, encoding="ascii")
    snapshot.mkdir(parents=True)
    shutil.copy(DEMO_MODELS / "yard-embed.gguf", place / "blobs/ab12")
    (snapshot / "yard-embed-F16.gguf").symlink_to("../../blobs/ab12")
    return root


async def test_models_of_ollama_and_of_the_hub_answer(serve: Serve, tmp_path: Path) -> None:
    dirs = (ollama_store(tmp_path / "ollama"), hub_cache(tmp_path / "hub"))
    chat = {"model": "yard", "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}
    async with (
        serve(dirs=dirs) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
    ):
        listed = (await http.get("/v1/models")).json()["data"]
        answer = await http.post("/v1/chat/completions", json=chat)
        vector = await http.post(
            "/v1/embeddings", json={"model": "modelyard/yard-embed:F16", "input": "Hello"}
        )

    assert {model["id"] for model in listed} == {"yard:latest", "yard-embed-F16"}
    assert answer.status_code == 200, answer.text
    assert vector.status_code == 200, vector.text
    assert len(vector.json()["data"][0]["embedding"]) == 192
