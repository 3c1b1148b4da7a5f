"""The lower bound is one: no policy beats it, and it is as tight as the prototype's."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from modelyard.simulation.bound import NoBound, lower_bound_s
from modelyard.simulation.costs import costs_of
from modelyard.simulation.run import POLICIES, simulate
from modelyard.simulation.trace import read_trace
from modelyard.simulation.values import Cut, Job, Model, Setup, default_memory_gib, mib

ARENA = Path(__file__).parents[2] / "bench/traces/vtc_arena_requests.csv.gz"
SIZES = [1.5, 4, 8, 8, 15, 16, 16, 28, 30, 40, 48, 61]


@pytest.mark.parametrize(("longest", "seconds"), [(0, 591.17), (10, 523.41), (60, 227.45)])
def test_the_bound_is_that_of_the_prototype(longest: float, seconds: float) -> None:
    jobs = read_trace(ARENA, [], cut=Cut(stretch=12))
    rng = random.Random(21)
    models = {}
    for name in sorted({job.model for job in jobs}):
        gib = rng.choice(SIZES)
        models[name] = Model(name, gib, mib(default_memory_gib(gib, 1, 76)), costs_of("L1", gib))
    setup = Setup(models, [76 * 1024] * 2)

    assert lower_bound_s(setup, jobs, longest) == pytest.approx(seconds, abs=0.05)


def yard(seed: int, kind: str) -> tuple[Setup, list[Job]]:
    rng = random.Random(seed)
    models = {
        name: Model(name, 10, rng.choice([20_000, 45_000, 70_000]), costs_of(kind, 10))
        for name in "abcdef"
    }
    jobs = [Job(rng.choice("abcdef"), rng.uniform(0, 900), rng.uniform(1, 9)) for _ in range(90)]
    return Setup(models, [77_824]), jobs


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["gguf", "tiers"])
def test_nobody_beats_the_bound(policy: str, kind: str) -> None:
    for seed in range(3):
        setup, jobs = yard(seed, kind)
        result = simulate(policy, setup, jobs)
        least = lower_bound_s(setup, jobs, result.waits.max)

        ups = [
            setup.models[m.model].costs.start.up_s
            if m.what == "start"
            else setup.models[m.model].costs.sleep[1].up_s
            for m in result.moves
            if m.what in ("start", "wake")
        ]
        assert sum(ups) >= least - 1e-6


def test_more_patience_and_more_memory_lower_the_bound() -> None:
    setup, jobs = yard(7, "gguf")
    roomy = Setup(setup.models, [500_000])
    bounds = [lower_bound_s(setup, jobs, patience) for patience in (0, 5, 50, 5000)]
    first = sum(model.costs.start.up_s for model in setup.models.values())

    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] == pytest.approx(first)
    assert lower_bound_s(roomy, jobs, 0) == pytest.approx(first)


def test_without_scipy_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    setup, jobs = yard(1, "gguf")
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)  # what an import finds without it

    with pytest.raises(NoBound, match="pip install scipy"):
        lower_bound_s(setup, jobs, 0)
