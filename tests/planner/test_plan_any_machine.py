"""Whatever the machine and the wish: a plan comes out, and it keeps what it promises."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.planner.large_models import LLAMA_8B, QWEN3_30B_A3B, folder, gguf_file
from tests.planner.machines import found_at, machine

from modelyard.catalog.found import FoundModel
from modelyard.config.plans import Ask
from modelyard.planner.layout import reckon
from modelyard.planner.plan import fallbacks, make_plan, view_of
from modelyard.testing.server import DEMO_MODELS

KINDS = ("dense", "experts", "folder", "embedding")


@cache
def model(kind: str) -> FoundModel:
    with TemporaryDirectory() as place:
        path = {
            "dense": lambda: gguf_file(Path(place) / "m-Q4_K_M.gguf", LLAMA_8B),
            "experts": lambda: gguf_file(Path(place) / "m-Q4_K_M.gguf", QWEN3_30B_A3B),
            "folder": lambda: folder(Path(place) / "m", LLAMA_8B),
            "embedding": lambda: DEMO_MODELS / "yard-embed.gguf",
        }[kind]()
        return found_at(path)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(
    cards=st.lists(st.integers(300, 100_000), max_size=4),
    host=st.integers(0, 200_000),
    context=st.none() | st.integers(1, 300_000),
    concurrency=st.none() | st.integers(1, 64),
)
def test_every_plan_keeps_within_the_machine_or_says_that_it_does_not(
    kind: str, cards: list[int], host: int, context: int | None, concurrency: int | None
) -> None:
    here = machine(*cards, host=host)
    ask = Ask(context=context, concurrency=concurrency)

    plan = make_plan(model(kind), here, ask)
    view = view_of(plan)

    within = all(share.fits for share in view.shares)
    assert view.fits is (within and (view.utilisation or 0) <= 1)
    assert ("missing" in view.verdict) is not view.fits
    assert view.context <= plan.chosen.subject.trained
    assert not view.fits or view.longest_context >= min(view.context, 1024) // 256 * 256 or context
    assert all(row.reason for row in view.settings)
    # Twice the machine holds it too.
    larger = machine(*(2 * mib for mib in cards), host=2 * host)
    if view.fits:
        assert reckon(plan.chosen.subject, plan.chosen.reckoning.layout, larger).fits
    # Every step down needs less on the cards, or less in all.
    subject, layout = plan.chosen.subject, plan.chosen.reckoning.layout
    before = reckon(subject, layout, here)
    for step in fallbacks(plan):
        after = reckon(subject, step.layout, here)
        total = after.gpu_mib + after.host_mib <= before.gpu_mib + before.host_mib
        assert after.gpu_mib <= before.gpu_mib or total
        before = after
