"""Plans for vLLM, tried: a fake one with true bookkeeping starts where a plan says so."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import shlex
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.planner.large_models import LLAMA_8B, Shape, folder
from tests.planner.machines import found_at, machine, smallest

from modelyard.config.plans import Ask
from modelyard.core.specs import Device
from modelyard.planner.layout import Layout, Reckoning, reckon
from modelyard.planner.machine import Machine, machine_of
from modelyard.planner.plan import Plan, fallbacks, make_plan, view_of
from modelyard.planner.subject import subject_of
from modelyard.testing.fake_gpu import Book

PATIENCE_S = 60.0
MIB = 2**20
TINY = Shape(4, 512, 1024, 8, 4, words=4096, context=8192, head=64)
MLA: Mapping[str, object] = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}
KINDS: Mapping[str, tuple[Shape, Mapping[str, object]]] = {
    "GQA": (TINY, {}),
    "MLA": (TINY, MLA),
    "8B": (LLAMA_8B, {}),
}


def asked(place: Path, machine: Machine, cards: int) -> Plan:
    plan = make_plan(found_at(place), machine, Ask(context=4096, concurrency=2, engine="vllm"))
    assert plan.chosen.reckoning.layout.gpus in (0, cards)
    return plan


def is_whole(plan: Plan) -> bool:
    """It fits on the cards without any sacrifice."""
    layout = plan.chosen.reckoning.layout
    return plan.fits and layout.gpus > 0 and not plan.chosen.step


def fake_terms(like: Reckoning, cards: int) -> list[str]:
    """Arguments by which a fake vLLM takes what the terms of `like` say."""
    part = like.loads[0].estimate
    weights = math.ceil(part.term("weights") + part.term("offloaded weights"))
    graphs = math.ceil(part.term("CUDA graphs"))
    context = math.ceil(part.term("CUDA context") + part.term("collective buffers"))
    tokens = like.layout.context * like.layout.sequences
    fake = {
        "weights": f"{weights * cards}MiB",
        "activation": f"{math.ceil(part.term('activations'))}MiB",
        "graphs": f"{graphs}MiB",
        "residue": f"{graphs + context}MiB",
        "kv-bytes": str(math.ceil(part.term("kv cache") * MIB / tokens)),
        "derived-len": str(tokens),
    }
    return [word for name, value in fake.items() for word in (f"--fake-{name}", value)]


async def starts(
    folder: Path, port: int, cards: int, total_mib: int, words: list[str], like: Reckoning
) -> tuple[bool, str]:
    """Start a fake vLLM that takes what the terms of `like` say, on cards of this size."""
    book = Book.create(folder / f"gpus-{total_mib}", [total_mib] * cards)
    flags = fake_terms(like, cards)
    tokens = like.layout.context * like.layout.sequences
    # Room for all sequences is what was asked for, so a single one as long as all of them fits.
    at = words.index("--max-model-len")
    words = [*words[: at + 1], str(tokens), *words[at + 2 :]]
    output = folder / f"engine-{total_mib}.log"
    with output.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "modelyard.testing.fake_vllm", *words[1:], *flags),
            *("--host", "127.0.0.1", "--port", str(port)),
            env={**os.environ, "MODELYARD_FAKE_GPUS": str(book.folder)},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        async with asyncio.timeout(PATIENCE_S):
            while process.returncode is None and "startup complete" not in output.read_text():
                await asyncio.sleep(0.01)
        return process.returncode is None, output.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


@pytest.mark.parametrize(("kind", "cards"), [("GQA", 1), ("MLA", 1), ("8B", 1), ("8B", 2)])
async def test_vllm_starts_on_cards_of_the_planned_size_and_not_on_smaller_ones(
    tmp_path: Path, unused_tcp_port: int, kind: str, cards: int
) -> None:
    shape, extra = KINDS[kind]
    place = folder(tmp_path / "model", shape, extra)
    least = smallest(
        lambda mib: reckon_whole(place, machine(*[mib] * cards), cards).fits, most=1 << 17
    )
    claimed = reckon_whole(place, machine(*[least] * cards), cards)
    words = shlex.split(view_of(whole_plan(place, least, cards)).commands[0])

    fits, log = await starts(tmp_path, unused_tcp_port, cards, least, words, claimed)
    assert fits, log
    fits, log = await starts(tmp_path, unused_tcp_port, cards, least * 11 // 10, words, claimed)
    assert fits, log
    # No share of a card that is a hundredth smaller is enough: neither this one nor any other.
    smaller = least * 99 // 100
    outside = claimed.loads[0].needs_mib - int((claimed.utilisation or 0) * least)
    most = math.floor((smaller - outside) / smaller * 10000) / 10000
    for share in (claimed.utilisation, most):
        tried = [*words]
        tried[tried.index("--gpu-memory-utilization") + 1] = str(share)
        fits, log = await starts(tmp_path, unused_tcp_port, cards, smaller, tried, claimed)
        assert not fits
        assert any(why in log for why in ("Free memory on device", "KV cache is needed", "memory"))


async def test_every_size_of_card_starts_with_what_is_planned_for_it(
    tmp_path: Path, unused_tcp_port: int
) -> None:
    """From a card that holds all to one of which half of the weights must stay away."""
    found = found_at(folder(tmp_path / "model"))
    given_up = []
    for mib in (24564, 18432, 17600, 12288, 8192):
        plan = make_plan(found, machine(mib), Ask())
        reckoned = plan.chosen.reckoning
        words = shlex.split(view_of(plan).commands[0])

        fits, log = await starts(tmp_path, unused_tcp_port, 1, mib, words, reckoned)

        assert plan.fits
        assert reckoned.layout.gpus == 1
        assert fits, log
        given_up.append(plan.chosen.step)
    assert given_up[0] == ""
    assert "in host memory" in given_up[-1]
    assert len(set(given_up)) > 3


def reckon_whole(place: Path, machine: Machine, cards: int) -> Reckoning:
    layout = Layout("vllm", cards, 4096, 2, tensor_parallel=cards)
    return reckon(subject_of(found_at(place)), layout, machine)


def whole_plan(place: Path, mib: int, cards: int) -> Plan:
    plan = asked(place, machine(*[mib] * cards), cards)
    assert is_whole(plan)
    return plan


def test_what_strangers_hold_and_the_reserve_are_left_alone(tmp_path: Path) -> None:
    found = found_at(folder(tmp_path / "model"))
    host = Device("cpu", "a processor", 64000, 64000)

    def planned(capacity: int) -> Plan:
        card = Device("GPU-0", "NVIDIA A100 80GB PCIe", 81920, capacity, "nvidia")
        return make_plan(found, machine_of([host, card]), Ask())

    alone, beside = planned(81408), planned(81408 - 56000)

    assert alone.fits
    assert beside.fits
    for plan, capacity in ((alone, 81408), (beside, 25408)):
        reckoned = plan.chosen.reckoning
        assert (reckoned.utilisation or 0) * 81920 < capacity
        assert reckoned.loads[0].needs_mib <= capacity
    assert beside.chosen.reckoning.layout.context < alone.chosen.reckoning.layout.context


def test_the_ladder_goes_from_context_over_eager_to_offload_and_always_down(
    tmp_path: Path,
) -> None:
    found = found_at(folder(tmp_path / "model"))
    here = machine(24564)
    plan = make_plan(found, here, Ask(concurrency=2))
    steps = fallbacks(plan)

    kinds = [step.name.split()[0] for step in steps]
    order = [kind for number, kind in enumerate(kinds) if kind not in kinds[:number]]
    assert order[:5] == ["context", "1", "eager", "KV", "batch"]
    assert "in host memory" in steps[-3].name
    needs = [reckon(plan.chosen.subject, step.layout, here).gpu_mib for step in steps]
    assert needs == sorted(needs, reverse=True)
    assert all(step.reason for step in steps)


def test_a_context_that_was_asked_for_is_never_shortened(tmp_path: Path) -> None:
    found = found_at(folder(tmp_path / "model"))

    plan = make_plan(found, machine(24564), Ask(context=16000))

    assert {step.layout.context for step in fallbacks(plan)} == {16000}
    assert plan.chosen.reckoning.layout.context == 16000
