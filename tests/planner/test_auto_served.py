"""Models with `auto: true` on made-up cards: planned, stepped down, remembered, and given up."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.planner.large_models import folder
from tests.planner.machines import found_at, machine

from modelyard.config import Config, Devices, load
from modelyard.config.plans import Ask
from modelyard.core.specs import Limits
from modelyard.core.views import ModelView
from modelyard.devices.base import Probe
from modelyard.planner.plan import Plan, make_plan
from modelyard.testing.fake_books import FOLDER_VARIABLE, Book
from modelyard.testing.fake_gpu import FakeGpuProbe, FakeHostProbe
from modelyard.testing.server import Running, running

FAKE_VLLM = (sys.executable, "-m", "modelyard.testing.fake_vllm")
CARD_MIB = 24564
LIMITS = Limits(stop_grace_s=3.0, max_wait_s=60.0)

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def books(tmp_path: Path) -> Book:
    return Book.create(tmp_path / "gpus", [CARD_MIB], names=["NVIDIA GeForce RTX 4090"])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An 8B model of the llama kind in BF16."""
    return folder(tmp_path / "big")


def planned(place: Path) -> Plan:
    return make_plan(found_at(place), machine(CARD_MIB), Ask(engine="vllm"))


Make = Callable[..., Config]


@pytest.fixture
def config(tmp_path: Path, books: Book, checkpoint: Path) -> Make:
    """`config(kv=2.0)`: an `auto` model whose cache takes twice what was reckoned."""

    def make(kv: float = 1.0, more: str = "", **keys: Any) -> Config:
        chosen = planned(checkpoint).chosen
        part, tokens = chosen.reckoning.loads[0].estimate, chosen.reckoning.layout.context
        terms = {
            "weights": f"{math.ceil(part.term('weights'))}MiB",
            "activation": f"{math.ceil(part.term('activations'))}MiB",
            "graphs": f"{math.ceil(part.term('CUDA graphs'))}MiB",
            "residue": f"{math.ceil(part.term('CUDA graphs') + part.term('CUDA context'))}MiB",
            "kv-bytes": str(math.ceil(kv * part.term("kv cache") * 2**20 / tokens)),
            "derived-len": "131072",
        }
        words = " ".join(f"--fake-{name} {value}" for name, value in terms.items())
        env = {FOLDER_VARIABLE: str(books.folder), "MODELYARD_FAKE_VLLM": f"{words} {more}"}
        entry = {"engine": "vllm", "source": str(checkpoint), "auto": True, **keys}
        file = tmp_path / "modelyard.yaml"
        file.write_text(json.dumps({"models": {"big": entry}, "devices": {"reserve": "0MiB"}}))
        told = load(file, env={})
        spec = replace(told.models[0], command=FAKE_VLLM, env=env, limits=LIMITS)
        return replace(told, models=(spec,), devices=Devices(reserve_mib=0, sample_every_s=0.1))

    return make


@pytest.fixture
def serve(tmp_path: Path, books: Book) -> Callable[[Config], Any]:
    devices: list[Probe] = [FakeHostProbe(books.folder), FakeGpuProbe(books.folder)]
    return lambda config: running(config, tmp_path / "state", devices=devices)


async def answer(server: Running) -> httpx.Response:
    body = {"model": "big", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        return await client.post("/v1/chat/completions", json=body)


async def view(server: Running) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        told: dict[str, Any] = (await client.get("/api/models/big")).json()
    return told


async def test_an_auto_model_starts_as_the_planner_recommends(
    config: Make, serve: Any, checkpoint: Path
) -> None:
    plan = planned(checkpoint)

    async with serve(config()) as server:
        told = await answer(server)
        shown = await view(server)

    assert told.status_code == 200, told.text
    assert shown["auto"]["step"] == "as planned"
    assert shown["auto"]["tried"] == []
    assert shown["auto"]["options"]["max_model_len"] == plan.chosen.reckoning.layout.context
    assert list(shown["needs_mib"].values()) == [plan.chosen.reckoning.loads[0].needs_mib]


async def phases_of(server: Running, phases: list[str | None]) -> None:
    """What is told of the start, as people hear it while it goes on, until the server ends."""
    with server.yard.loop.broadcast.subscribe(["models"]) as news:
        async for event in news:
            if isinstance(event.data, ModelView):
                phases.append(event.data.phase)


async def test_a_cache_larger_than_reckoned_is_met_by_a_shorter_context_that_is_remembered(
    config: Make, serve: Any, checkpoint: Path
) -> None:
    context = planned(checkpoint).chosen.reckoning.layout.context

    phases: list[str | None] = []
    async with serve(config(kv=1.7)) as server:
        listening = asyncio.create_task(phases_of(server, phases), name="listen")
        told = await answer(server)
        shown = await view(server)
        runs = shown["run"]
    await listening
    async with serve(config(kv=1.7)) as server:
        again = await answer(server)
        later = await view(server)

    assert told.status_code == again.status_code == 200, told.text
    assert shown["failures"] == 0
    assert shown["auto"]["context"] == context // 2 // 256 * 256
    assert shown["auto"]["tried"][0].startswith("as planned: one request of")
    assert runs == 2
    assert f"trying {shown['auto']['step']}" in phases
    # A restart of the server begins where it was.
    assert later["run"] == 1
    assert later["auto"] == shown["auto"]


async def test_a_card_too_full_for_the_plan_is_met_by_taking_less_of_it(
    config: Make, serve: Any, checkpoint: Path
) -> None:
    """What the driver takes of it is more than was reckoned, and the plan takes all the rest."""
    part = planned(checkpoint).chosen.reckoning.loads[0].estimate
    context = math.ceil(part.term("CUDA graphs") + part.term("CUDA context")) + 1200

    async with serve(config(more=f"--fake-residue {context}MiB")) as server:
        told = await answer(server)
        shown = await view(server)

    assert told.status_code == 200, told.text
    assert "it was to take" in shown["auto"]["tried"][0]
    first = planned(checkpoint).chosen.reckoning
    assert shown["auto"]["options"]["gpu_memory_utilization"] < (first.utilisation or 0)
    assert sum(shown["needs_mib"].values()) < first.loads[0].needs_mib


FIXED = {
    "max_model_len": 4096,
    "kv-cache-dtype": "fp8",
    "enforce_eager": True,
    "max_num_batched_tokens": 512,
}


async def test_the_end_of_the_ladder_is_a_failure_that_tells_what_was_tried(
    config: Make, serve: Any
) -> None:
    """Options that a person wrote are kept: only offloading is left to try."""
    async with serve(config(more="--fake-weights 40GiB", options=FIXED)) as server:
        told = await answer(server)
        shown = await view(server)
        log = server.yard.loop.view_log("big", 200)

    assert told.status_code == 503
    error = told.json()["error"]["message"]
    assert "the last step of auto" in error
    assert "as planned: " in error
    assert "GiB of weights per card in host memory: " in error
    assert shown["state"] == "failed"
    assert shown["auto"]["step"] == "as planned"
    # vLLM was told what the person wrote each time.
    assert any("'max_model_len': 4096" in line.text for line in log.lines)
    # The plan, the steps that are listed, and the last one.
    assert shown["run"] == 2 + error.count("GiB of weights per card in host memory: ")


async def test_a_failure_for_another_reason_changes_nothing(config: Make, serve: Any) -> None:
    async with (
        serve(config(more="--fake-crash-while-loading")) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as client,
        asyncio.timeout(60),
    ):
        await client.post("/api/models/big/start")
        while (shown := await view(server))["failures"] == 0:
            await asyncio.sleep(0.05)

    assert shown["auto"]["tried"] == []
    assert "as asked" in shown["reason"]


async def test_a_card_that_comes_later_is_planned_for(
    config: Make, serve: Any, books: Book
) -> None:
    (card,) = books.accounts()
    books.vanish(card.id)

    async with serve(config()) as server:
        before = await view(server)
        books.come_back(card.id)
        async with asyncio.timeout(60):
            while (after := await view(server))["needs_mib"].keys() <= {"cpu"}:
                await asyncio.sleep(0.05)

    assert "gpu_memory_utilization" not in before["auto"]["options"]
    assert "gpu_memory_utilization" in after["auto"]["options"]
