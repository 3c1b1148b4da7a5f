"""Every sample is imported, its programs are replaced by stand-ins, and every model answers."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.importers.conftest import FILES, SAMPLES, make_database, surroundings

from modelyard.app import engine_problems
from modelyard.config import load
from modelyard.core.specs import ModelSpec, Task
from modelyard.devices.base import Probe
from modelyard.importers import import_path
from modelyard.testing.fake_gpu import Book, FakeGpuProbe, FakeHostProbe
from modelyard.testing.fake_page import mebibytes
from modelyard.testing.server import DEMO_MODELS, running

CARDS = ("NVIDIA GeForce RTX 4060", "Tesla V100-SXM2-16GB", "NVIDIA GeForce RTX 4090",
         "NVIDIA GeForce RTX 3090")  # fmt: skip
SIZES = ("8188MiB", "16384MiB", "24564MiB", "24576MiB")
SERVERS = ("llama-server", "vllm", "lmdeploy", "python", "docker", "house-server", "embed-server")
STAND_IN = f"""#!{sys.executable}
import os, re, sys
words = " ".join(sys.argv[1:])
port = re.search(r"(?:--port|--server-port|--listen|-p)[ =]([0-9]+)", words)[1]
module = ["-m", "modelyard.testing.fake_engine", "--model", "stand-in", "--port", port]
os.execv(sys.executable, [sys.executable, *module])
"""
CONDA = """#!/bin/sh
test "$1 $2" = "run --no-capture-output" || exit 9
shift 4
exec "$@"
"""
REQUESTS: dict[Task, tuple[str, dict[str, Any]]] = {
    Task.CHAT: ("chat/completions", {"messages": [{"role": "user", "content": "hello"}]}),
    Task.COMPLETION: ("completions", {"prompt": "hello"}),
    Task.EMBEDDING: ("embeddings", {"input": "hello"}),
    Task.RERANK: ("rerank", {"query": "a", "documents": ["b", "c"]}),
}
NO_MODELS = {
    "vllama/vllama.env",
    "vllama/readme.env",
    "nexus/defaults.json",
    "llm-manager-v2/debug.json",
    "llm-manager-v2/program-only.json",
}


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder at the front of the PATH with a stand-in for every program of the samples."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in SERVERS:
        (folder / name).write_text(STAND_IN)
    (folder / "conda").write_text(CONDA)
    for program in folder.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    return folder


@pytest.mark.parametrize("name", [*FILES, "llm_manager.db"])
async def test_every_model_of_an_imported_sample_answers(
    name: str, tmp_path: Path, programs: Path, nothing_left: None
) -> None:
    source = prepared(name, tmp_path, programs)
    here = surroundings(tmp_path, tuple(map(mebibytes, SIZES)))
    path = tmp_path / "modelyard.yaml"
    path.write_text(import_path(source, here, engine_problems).text, encoding="utf-8")
    config = load(path, env={"HOME": str(tmp_path)})
    book = Book.create(tmp_path / "books", SIZES, names=CARDS)
    devices: list[Probe] = [FakeGpuProbe(book.folder), FakeHostProbe(book.folder)]

    answers = {}
    async with (
        running(config, tmp_path / "state", devices=devices) as server,
        httpx.AsyncClient(base_url=f"{server.url}/v1/", timeout=60) as client,
    ):
        found = [spec for spec in server.yard.inventory.read() if spec.tasks]
        for spec in found:
            for model in (spec.id, *spec.aliases):
                answers[model] = await ask(client, spec, model)

    assert {model: status for model, (status, _) in answers.items() if status != 200} == {}
    assert bool(answers) == (name not in NO_MODELS)


def prepared(name: str, folder: Path, programs: Path) -> Path:
    """A copy of the sample with what it needs beside it."""
    if name == "llm_manager.db":
        return make_database(folder / name)
    sample = folder / "sample"
    shutil.copytree((SAMPLES / name).parent, sample)
    copied = sample / Path(name).name
    match name.partition("/")[0]:
        case "modelfile":
            shutil.copy(DEMO_MODELS / "yard-chat.gguf", sample / "tiny-chat-q8_0.gguf")
        case "llama-swap":
            shutil.copy(programs / "house-server", sample / "house-server")
        case "local-llm":
            copied.write_text(copied.read_text().replace("=/models", f"={DEMO_MODELS}"))
    return copied


async def ask(client: httpx.AsyncClient, spec: ModelSpec, model: str) -> tuple[int, str]:
    path, body = REQUESTS[sorted(spec.tasks)[0]]
    answer = await client.post(path, json={"model": model, "max_tokens": 4, **body})
    return answer.status_code, answer.text[:200]
