"""A machine of fake GPUs whose memory fake vLLM processes really take and give back."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from modelyard.config import Config, Devices
from modelyard.core.policy import Policy
from modelyard.core.specs import Limits, ModelSpec, Profile, Task
from modelyard.devices.base import Probe
from modelyard.devices.cpu import CpuProbe
from modelyard.engines.sleeping import with_levels
from modelyard.testing.fake_books import FOLDER_VARIABLE, Book
from modelyard.testing.fake_gpu import FakeGpuProbe
from modelyard.testing.server import Running, running

CARD = "rtx 4060"
LIMITS = Limits(stop_grace_s=3.0, idle_sleep_s=None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "gpus"


@pytest.fixture
def book(folder: Path) -> Book:
    """One card of 8 GiB."""
    return Book.create(folder, ["8GiB"], names=["NVIDIA GeForce RTX 4060"])


Vllm = Callable[..., ModelSpec]


@pytest.fixture
def vllm(folder: Path) -> Vllm:
    """`vllm("a", "--fake-leak", "300MiB", mib=4000)`: a model on a fake vLLM that can sleep."""

    def make(
        name: str,
        *arguments: str,
        mib: int = 4000,
        devices: Sequence[str] = (CARD,),
        limits: Limits = LIMITS,
        total_mib: int = 8192,
        **fields: Any,
    ) -> ModelSpec:
        command = (
            *(sys.executable, "-m", "modelyard.testing.fake_vllm", name),
            *("--port", "{port}", "--served-model-name", name, "--enable-sleep-mode"),
            *("--gpu-memory-utilization", f"{(mib - 300) / total_mib:.3f}"),
            *("--tensor-parallel-size", str(len(devices))),
            *("--fake-load", "100ms", "--fake-weights", f"{mib // 2}MiB"),
            *arguments,
        )
        spec = ModelSpec(
            name,
            "command",
            frozenset({Task.CHAT}),
            command=command,
            env={FOLDER_VARIABLE: str(folder), "VLLM_SERVER_DEV_MODE": "1"},
            profiles=(Profile("gpu", tuple(devices), dict.fromkeys(devices, mib)),),
            sleep_preset="vllm",
            limits=limits,
        )
        return with_levels(replace(spec, **fields))

    return make


@pytest.fixture
def serve(folder: Path, tmp_path: Path) -> Callable[..., AbstractAsyncContextManager[Running]]:
    def start(
        *models: ModelSpec, fair_after_s: float = 20.0, sample_every_s: float | None = 0.1
    ) -> Any:
        config = Config(
            models=models,
            devices=Devices(reserve_mib=100, sample_every_s=sample_every_s),
            scheduling=Policy(fair_after_s=fair_after_s, backoff_s=0.1),
        )
        probes: list[Probe] = [CpuProbe(), FakeGpuProbe(folder)]
        return running(config, tmp_path / "state", devices=probes)

    return start


class Person:
    """Asks models and looks at them."""

    def __init__(self, server: Running, http: httpx.AsyncClient) -> None:
        self.server = server
        self.http = http

    async def ask(self, model: str, **fields: Any) -> str:
        messages = [{"role": "user", "content": f"hello {model}"}]
        request = {"model": model, "messages": messages, **fields}
        answer = await self.http.post("/v1/chat/completions", json=request)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"])

    async def view(self, model: str) -> dict[str, Any]:
        view: dict[str, Any] = (await self.http.get(f"/api/models/{model}")).json()
        return view

    async def until(self, model: str, state: str) -> dict[str, Any]:
        async with asyncio.timeout(60):
            while (view := await self.view(model))["state"] != state:
                await asyncio.sleep(0.02)
        return view

    async def post(self, path: str) -> httpx.Response:
        return await self.http.post(path)


@pytest.fixture
def person() -> Callable[[Running], AbstractAsyncContextManager[Person]]:
    from contextlib import asynccontextmanager

    @asynccontextmanager
    async def of(server: Running) -> Any:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            yield Person(server, http)

    return of
