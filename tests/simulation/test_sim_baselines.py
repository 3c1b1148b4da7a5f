"""What others do, as the prototype of this scheduler measured it.

The numbers were computed once by the prototype from which the baselines were written: 27 models of
the arena trace, sizes drawn by seed 22, devices of 76 GiB, 16 requests at once.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from modelyard.simulation.costs import costs_of
from modelyard.simulation.run import BASELINES, simulate
from modelyard.simulation.trace import read_trace
from modelyard.simulation.values import Cut, Job, Model, Setup, default_memory_gib, mib

ARENA = Path(__file__).parents[2] / "bench/traces/vtc_arena_requests.csv.gz"
SIZES = [1.5, 4, 8, 8, 15, 16, 16, 28, 30, 40, 48, 61]
Cell = tuple[float, str, int, str]

MEASURED: dict[Cell, tuple[float, ...]] = {
    (6, "L1", 1, "single"): (
        55.697921,
        45.179127,
        145.516724,
        167.260639,
        186.709812,
        371,
        910.277273,
    ),
    (6, "L1", 1, "fifo"): (
        15.752204,
        7.348891,
        61.342806,
        102.738809,
        139.475088,
        580,
        1343.229545,
    ),
    (6, "L1", 1, "ollama"): (
        350.953864,
        106.005024,
        1330.486394,
        1515.506942,
        1530.494648,
        946,
        2350.865909,
    ),
    (6, "L1", 1, "lru"): (
        474.161016,
        197.931124,
        1625.391779,
        1817.562797,
        1832.550503,
        927,
        2338.550000,
    ),
    (12, "L1", 2, "single"): (
        28.149540,
        20.099582,
        84.117079,
        106.188655,
        125.337452,
        783,
        1799.793182,
    ),
    (12, "L1", 2, "fifo"): (2.153964, 0.000000, 10.443952, 18.899903, 30.571076, 647, 1774.190909),
    (12, "L1", 2, "ollama"): (
        3.241737,
        0.800000,
        14.285706,
        25.680988,
        31.094552,
        781,
        1910.836364,
    ),
    (12, "L1", 2, "lru"): (3.652022, 0.800000, 18.811164, 28.679727, 35.197645, 607, 1698.900000),
    (8, "L1", 4, "single"): (
        43.921311,
        36.872964,
        118.287106,
        142.046339,
        167.555264,
        525,
        1238.125000,
    ),
    (8, "L1", 4, "fifo"): (1.100757, 0.000000, 6.322727, 12.803173, 17.723242, 315, 1125.029545),
    (8, "L1", 4, "ollama"): (2.398050, 0.320000, 11.339164, 18.068873, 21.512364, 523, 1298.170455),
    (8, "L1", 4, "lru"): (1.731991, 0.000000, 7.942436, 16.677964, 23.471091, 321, 1023.352273),
    (12, "L2", 2, "single"): (
        54.386250,
        40.941244,
        158.804278,
        194.603433,
        206.774422,
        607,
        3097.555556,
    ),
    (12, "L2", 2, "fifo"): (5.120421, 0.933333, 21.630600, 40.038456, 54.822844, 677, 3994.911111),
    (12, "L2", 2, "ollama"): (
        39.760856,
        10.704756,
        158.862678,
        203.656722,
        212.557311,
        761,
        4200.511111,
    ),
    (12, "L2", 2, "lru"): (
        78.519453,
        11.566667,
        389.084400,
        515.691289,
        528.995400,
        598,
        3861.766667,
    ),
    (40, "cold", 2, "single"): (
        285.337755,
        260.044500,
        674.891000,
        771.402500,
        835.527333,
        469,
        21523.200000,
    ),
    (40, "cold", 2, "fifo"): (
        46.024995,
        38.060000,
        152.779833,
        244.516833,
        436.727667,
        611,
        28795.400000,
    ),
    (40, "cold", 2, "ollama"): (
        3191.846825,
        1406.469000,
        10891.438667,
        12276.518833,
        12484.222833,
        760,
        35257.800000,
    ),
    (40, "cold", 2, "lru"): (
        1516.469733,
        328.949833,
        6231.720667,
        7185.000500,
        7298.566333,
        544,
        26422.400000,
    ),
    (12, "gguf", 1, "single"): (
        53.345992,
        40.507000,
        151.660067,
        178.066600,
        192.589333,
        604,
        3117.416667,
    ),
    (12, "gguf", 1, "fifo"): (
        18.476073,
        8.556633,
        72.734767,
        116.900767,
        171.731567,
        718,
        3739.000000,
    ),
    (12, "gguf", 1, "ollama"): (
        284.826709,
        64.535767,
        1235.559267,
        1437.362667,
        1458.026067,
        957,
        5206.250000,
    ),
    (12, "gguf", 1, "lru"): (
        326.777053,
        73.238500,
        1395.038567,
        1608.482300,
        1629.145700,
        932,
        5122.916667,
    ),
}
"""By stretch, costs, devices and policy: mean, p50, p95, p99, max of the waits, swaps and their
seconds."""


def arena(stretch: float, kind: str, devices: int) -> tuple[Setup, list[Job]]:
    jobs = read_trace(ARENA, [], cut=Cut(stretch=stretch))
    rng = random.Random(22)
    names = sorted({job.model for job in jobs})
    sizes = {name: rng.choice(SIZES) for name in names}
    models = {
        name: Model(name, gib, mib(default_memory_gib(gib, 1, 76)), costs_of(kind, gib))
        for name, gib in sizes.items()
    }
    return Setup(models, [76 * 1024] * devices), jobs


@pytest.mark.parametrize("cell", MEASURED, ids=lambda cell: "-".join(map(str, cell)))
def test_a_baseline_does_exactly_what_the_prototype_did(cell: Cell) -> None:
    stretch, kind, devices, policy = cell
    result = simulate(policy, *arena(stretch, kind, devices))

    waits = result.waits
    shown = (waits.mean, waits.p50, waits.p95, waits.p99, waits.max)
    assert (*shown, result.swaps, result.swap_seconds) == pytest.approx(MEASURED[cell], abs=1e-6)


def small(**kwargs: int) -> Model:
    """One of two that fit on a device together."""
    return replace(Model("", 10, 40_000, costs_of("gguf", 10)), **kwargs)  # type: ignore[arg-type]


def named(**models: Model) -> dict[str, Model]:
    return {name: replace(model, name=name) for name, model in models.items()}


def asks(*requests: tuple[float, str]) -> list[Job]:
    return [Job(model, at, 5.0) for at, model in requests]


UP, DOWN = costs_of("gguf", 10).start.up_s, costs_of("gguf", 10).start.down_s


@pytest.mark.parametrize("policy", BASELINES)
def test_a_model_over_two_devices_waits_until_both_are_free(policy: str) -> None:
    models = named(a=small(), b=small(), wide=small(tensor_parallel=2, memory_mib=70_000))
    jobs = asks((0, "a"), (0, "b"), (100, "wide"))
    result = simulate(policy, Setup(models, [77_824, 77_824]), jobs)

    last = [move for move in result.moves if move.model == "wide"]
    assert [(move.what, move.devices) for move in last] == [("start", (0, 1))]
    assert result.models["wide"].max >= DOWN + UP


@pytest.mark.parametrize("policy", BASELINES)
def test_a_pinned_model_never_leaves(policy: str) -> None:
    models = named(pinned=small(pinned=True), a=small(), b=small())
    jobs = asks((0, "pinned"), (10, "a"), (20, "b"), (30, "a"), (40, "b"))
    result = simulate(policy, Setup(models, [80_000]), jobs)

    assert [m.what for m in result.moves if m.model == "pinned"] == ["start"]


@pytest.mark.parametrize("policy", ["fifo", "single", "lru", "ollama"])
def test_the_more_important_model_comes_up_first(policy: str) -> None:
    models = named(a=small(memory_mib=70_000), b=small(memory_mib=70_000))
    models["z"] = replace(small(memory_mib=70_000, priority=1), name="z")
    jobs = asks((0, "a"), (1, "b"), (2, "z"))
    result = simulate(policy, Setup(models, [77_824]), jobs)

    starts = [move.model for move in result.moves if move.what == "start"]
    assert starts.index("z") < starts.index("b")


def sleepers(host_mib: int, residue_mib: int = 0, policy: str = "fifo") -> list[tuple[str, str]]:
    """Two models of 10 GiB that take turns on a device which holds one of them."""
    model = replace(small(memory_mib=70_000), costs=costs_of("tiers", 10))
    setup = Setup(named(a=model, b=model), [77_824], host_mib=host_mib, residue_mib=residue_mib)
    result = simulate(policy, setup, asks((0, "a"), (100, "b"), (200, "a"), (300, "b")))
    return [(move.what, move.model) for move in result.moves]


@pytest.mark.parametrize("policy", ["fifo", "lru"])
def test_models_sleep_as_lightly_as_the_host_allows(policy: str) -> None:
    roomy, full = sleepers(20_480, policy=policy), sleepers(0, policy=policy)

    assert roomy == [
        ("start", "a"),
        ("sleep", "a"),
        ("start", "b"),
        ("sleep", "b"),
        ("wake", "a"),
        ("sleep", "a"),
        ("wake", "b"),
    ]
    assert full == roomy  # at level 2, which keeps nothing on the host


def test_level_2_costs_more_than_level_1() -> None:
    model = replace(small(memory_mib=70_000), costs=costs_of("tiers", 10))
    jobs = asks((0, "a"), (100, "b"), (200, "a"))
    spent = [
        simulate("fifo", Setup(named(a=model, b=model), [77_824], host_mib=host), jobs).swap_seconds
        for host in (20_480, 10_240, 0)
    ]

    cold, first, second = costs_of("tiers", 10).start.up_s, *costs_of("tiers", 10).sleep.values()
    assert spent == pytest.approx(
        [
            2 * cold + 2 * first.down_s + first.up_s,
            2 * cold + first.down_s + second.down_s + first.up_s,
            2 * cold + 2 * second.down_s + second.up_s,
        ]
    )


def test_a_sleeper_ends_when_what_it_keeps_is_needed() -> None:
    moves = sleepers(20_480, residue_mib=10_000)

    assert moves[:4] == [("start", "a"), ("sleep", "a"), ("stop", "a"), ("start", "b")]
