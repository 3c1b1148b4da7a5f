"""What a plan writes for `modelyard.yaml`, served by a whole server with engines."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from tests.planner.large_models import folder
from tests.planner.machines import found_at, machine

from modelyard.config import load
from modelyard.config.plans import Ask, PlanView
from modelyard.core.specs import Limits
from modelyard.devices.base import Probe
from modelyard.planner.plan import make_plan, view_of
from modelyard.testing.fake_books import FOLDER_VARIABLE, Book
from modelyard.testing.fake_gpu import FakeGpuProbe, FakeHostProbe
from modelyard.testing.server import DEMO_MODELS, running

FAKE_VLLM = (sys.executable, "-m", "modelyard.testing.fake_vllm")
CARD_MIB = 24564

pytestmark = pytest.mark.usefixtures("nothing_left")


def said(mib: float) -> str:
    return f"{math.ceil(mib)}MiB"


def written(view: PlanView, place: Path) -> Path:
    file = place / "modelyard.yaml"
    file.write_text(view.config)
    return file


async def answer(url: str, model: str) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        return await client.post("/v1/chat/completions", json=body)


async def test_llama_cpp_answers_as_planned_on_the_host(tmp_path: Path) -> None:
    plan = make_plan(found_at(DEMO_MODELS / "yard-chat.gguf"), machine(), Ask(concurrency=2))
    config = load(written(view_of(plan), tmp_path), env={})

    async with running(config, tmp_path / "state") as server:
        told = await answer(server.url, "yard-chat")
        view = server.yard.loop.view(server.yard.loop.scheduler.models["yard-chat"])

    assert told.status_code == 200
    needs = plan.chosen.reckoning.host_mib
    assert view.memory_mib["cpu"] >= needs
    # What was measured is what was planned, within a tenth and the library's own size.
    assert view.used_mib.get("cpu", 0) <= needs * 1.1 + 80


async def test_vllm_takes_what_was_planned_of_a_made_up_card(tmp_path: Path) -> None:
    plan = make_plan(found_at(folder(tmp_path / "big")), machine(CARD_MIB), Ask(context=8192))
    view = view_of(plan)
    part = plan.chosen.reckoning.loads[0].estimate
    terms = {
        "--fake-weights": said(part.term("weights")),
        "--fake-activation": said(part.term("activations")),
        "--fake-graphs": said(part.term("CUDA graphs")),
        "--fake-residue": said(part.term("CUDA graphs") + part.term("CUDA context")),
        "--fake-kv-bytes": str(math.ceil(part.term("kv cache") * 2**20 / 8192)),
        "--fake-derived-len": "131072",
    }
    books = Book.create(tmp_path / "gpus", [CARD_MIB], names=["NVIDIA GeForce RTX 4090"])
    env = {
        FOLDER_VARIABLE: str(books.folder),
        "MODELYARD_FAKE_VLLM": " ".join(f"{name} {value}" for name, value in terms.items()),
    }
    config = load(written(view, tmp_path), env={})
    limits = Limits(stop_grace_s=3.0)
    spec = replace(config.models[0], command=FAKE_VLLM, env=env, limits=limits)
    devices: list[Probe] = [FakeHostProbe(books.folder), FakeGpuProbe(books.folder)]

    served = running(replace(config, models=(spec,)), tmp_path / "state", devices=devices)
    async with served as server:
        told = await answer(server.url, "big")
        used = books.accounts()[0].used_mib

    assert told.status_code == 200, told.text
    assert view.shares[0].needs_mib - 300 <= used <= view.shares[0].needs_mib
