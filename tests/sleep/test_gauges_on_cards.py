"""A second engine comes when the first says that it is full: real processes, on fake cards."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from modelyard.config import Config, Devices
from modelyard.core.policy import Policy
from modelyard.core.specs import Replicas
from modelyard.devices.base import Probe
from modelyard.devices.cpu import CpuProbe
from modelyard.testing.fake_books import Book
from modelyard.testing.fake_gpu import FakeGpuProbe
from modelyard.testing.server import running

pytestmark = pytest.mark.usefixtures("nothing_left")

EAGER = Policy(scale_up_after_s=0.1, scale_up_kv=0.01, read_gauges_every_s=0.05)
"""The fake's cache is full at a hundred requests: one is enough."""


async def test_an_engine_whose_cache_is_full_gets_company(
    book: Book, vllm: Any, folder: Path, tmp_path: Path
) -> None:
    spec = vllm("a", "--fake-tps", "10", mib=3000, replicas=Replicas(0, 2))
    config = Config(models=(spec,), devices=Devices(reserve_mib=100), scheduling=EAGER)
    probes: list[Probe] = [CpuProbe(), FakeGpuProbe(folder)]
    asked = {"model": "a", "messages": [{"role": "user", "content": "go on"}], "max_tokens": 600}
    async with (
        running(config, tmp_path / "state", devices=probes) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
        asyncio.timeout(60),
    ):
        answer = asyncio.create_task(http.post("/v1/chat/completions", json=asked))
        while len(await _ready(http)) < 2:
            await asyncio.sleep(0.02)
        is_asked_for_still = not answer.done()
        answer.cancel()

    assert is_asked_for_still, "nobody waited in our own queue"


async def _ready(http: httpx.AsyncClient) -> list[Any]:
    view = (await http.get("/api/models/a")).json()
    return [each for each in view["replicas"] if each["state"] == "ready"]
