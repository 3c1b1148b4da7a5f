"""A real vLLM, built for CPUs, in an environment of its own; `make test-vllm` installs it.

Every test here starts engines of three processes that take twenty seconds and more. They are not
part of `make test`: the environment takes 4 GB.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from modelyard.config import Config, Devices, Engines
from modelyard.core.specs import Limits, ModelSpec, Profile, Task
from modelyard.testing.server import Running, running

ROOT = Path(__file__).parents[2]
PLACE = Path(os.environ.get("VLLM_BIN", ROOT / ".venv-vllm"))
WRITING = frozenset({Task.CHAT, Task.COMPLETION})
LIMITS = Limits(start_timeout_s=240.0, stop_grace_s=10.0)
START_S = 240.0

Model = Callable[..., ModelSpec]
Serve = Callable[..., AbstractAsyncContextManager["Yard"]]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with random weights."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    script = ROOT / "training" / "tiny_llama.py"
    subprocess.run([PLACE / "bin" / "python", script, folder], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """State folder in which vLLM's options are asked for once."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture
def model(checkpoint: Path) -> Model:
    """`model("a", max_model_len=128)`: a model on the host, with options."""

    def make(
        name: str, *, tasks: frozenset[Task] = WRITING, env: dict[str, str] | None = None,
        command: tuple[str, ...] = (), aliases: tuple[str, ...] = (), **options: Any,
    ) -> ModelSpec:  # fmt: skip
        return ModelSpec(
            name,
            "vllm",
            tasks,
            aliases=aliases,
            source=str(checkpoint),
            options={"enforce_eager": True, "max_model_len": 256, **options},
            profiles=(Profile("host", memory_mib={"cpu": 4500}),),
            command=command,
            env=env or {},
            limits=LIMITS,
        )

    return make


class Yard:
    """A server with a client, and a look at its engines' processes."""

    def __init__(self, server: Running, http: httpx.AsyncClient) -> None:
        self.server = server
        self.http = http

    async def view(self, model: str) -> dict[str, Any]:
        view: dict[str, Any] = (await self.http.get(f"/api/models/{model}")).json()
        return view

    async def chat(self, model: str, **fields: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": "the signal"}]
        request = {"model": model, "messages": messages, "max_tokens": 8, **fields}
        answer = await self.http.post("/v1/chat/completions", json=request)
        assert answer.status_code == 200, answer.text
        said: dict[str, Any] = answer.json()
        return said

    async def processes(self, model: str) -> list[psutil.Process]:
        """Those of the model's running engine: the server, its core, its workers."""
        server = psutil.Process((await self.view(model))["pid"])
        return [server, *server.children(recursive=True)]

    async def until_state(self, model: str, state: str) -> None:
        async with asyncio.timeout(START_S):
            while (await self.view(model))["state"] != state:
                await asyncio.sleep(0.1)

    async def until_gone(self, processes: list[psutil.Process]) -> None:
        """Return once none of them runs any more."""
        async with asyncio.timeout(30):
            while any(p.is_running() for p in processes):
                await asyncio.sleep(0.1)

    async def titled(self, model: str, title: str) -> psutil.Process:
        """The process of the engine whose title begins so."""
        all_of_it = await self.processes(model)
        found = [p for p in all_of_it if " ".join(p.cmdline()).startswith(title)]
        assert len(found) == 1, [p.cmdline() for p in all_of_it]
        return found[0]


@pytest.fixture
def serve(tmp_path: Path, answers: Path) -> Serve:
    """`async with serve(model, ...) as yard`: these models, with the real vLLM."""

    @asynccontextmanager
    async def start(*models: ModelSpec) -> AsyncIterator[Yard]:
        config = Config(
            models=models,
            devices=Devices(budget_mib={"cpu": 16000}, sample_every_s=1.0),
            engines=Engines(vllm=str(PLACE)),
        )
        async with (
            running(config, answers) as server,
            httpx.AsyncClient(base_url=server.url, timeout=START_S) as http,
        ):
            yield Yard(server, http)

    return start


@pytest.fixture
def place() -> Path:
    """The environment that holds the real vLLM."""
    return PLACE
