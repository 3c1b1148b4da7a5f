"""The real scheduler on the virtual clock: what it pays, what it is held to."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from modelyard.core.errors import ConfigError, WaitTimeout
from modelyard.core.events import (
    Grant,
    Refuse,
    SchedulerAction,
    StartEngine,
    StopEngine,
    SuspendEngine,
)
from modelyard.core.policy import Policy
from modelyard.core.specs import ModelSpec, Replicas, Task
from modelyard.simulation.books import LawBroken
from modelyard.simulation.costs import costs_of
from modelyard.simulation.results import Result
from modelyard.simulation.run import POLICIES, simulate
from modelyard.simulation.values import Job, Model, Setup
from modelyard.simulation.world import World

DEVICE_MIB = 77_824
COST = costs_of("gguf", 12).start


def model(name: str, mib: int = 70_000, kind: str = "gguf", wake: str = "anywhere") -> Model:
    return Model(name, 12, mib, costs_of(kind, 12, wake))


def setup(*models: Model, devices: int = 1, **kwargs: int) -> Setup:
    return Setup({each.name: each for each in models}, [DEVICE_MIB] * devices, **kwargs)


def asks(*requests: tuple[float, str], service_s: float = 5.0) -> list[Job]:
    return [Job(model, at, service_s) for at, model in requests]


def moves(result: Result) -> list[tuple[str, str]]:
    return [(move.what, move.model) for move in result.moves]


def test_a_cold_model_costs_its_start_and_a_warm_one_nothing() -> None:
    result = simulate("modelyard", setup(model("a")), asks((0, "a"), (100, "a")))

    assert (result.waits.max, result.waits.p50) == pytest.approx((COST.up_s, COST.up_s))
    assert result.swaps == 1
    assert result.swap_seconds == pytest.approx(COST.up_s)
    assert result.makespan_s == pytest.approx(105)
    assert result.utilisation == pytest.approx((10 / 105,))


def test_an_idle_model_leaves_before_the_other_comes() -> None:
    result = simulate("modelyard", setup(model("a"), model("b")), asks((0, "a"), (100, "b")))

    assert moves(result)[:3] == [("start", "a"), ("stop", "a"), ("start", "b")]
    assert result.models["b"].max == pytest.approx(COST.down_s + COST.up_s)


def test_a_model_leaves_only_when_it_has_served_what_it_began() -> None:
    jobs = [Job("a", 0, 60), *asks((1, "b"))]
    result = simulate("modelyard", setup(model("a"), model("b")), jobs)

    assert result.models["b"].max >= COST.up_s + 60 + COST.down_s - 1 + COST.up_s - 1e-6


def test_engines_that_sleep_wake_where_they_were() -> None:
    models = [model("a", kind="L1", wake="home"), model("b", kind="L1", wake="home")]
    jobs = asks((0, "a"), (100, "b"), (200, "a"))
    result = simulate("modelyard", setup(*models), jobs)

    kinds = [what for what, name in moves(result) if name == "a"]
    assert kinds[:3] == ["start", "sleep", "wake"]


def test_a_hot_model_may_have_several_engines() -> None:
    hot = replace(model("a", 30_000), replicas=Replicas(0, 3))
    jobs = [Job("a", at / 2, 20) for at in range(200)]
    one = simulate("modelyard", setup(model("a", 30_000), concurrency=2), jobs)
    several = simulate("modelyard", setup(hot, devices=2, concurrency=2), jobs)

    assert (one.swaps, several.swaps) == (1, 3)
    assert several.waits.mean < one.waits.mean / 2


def test_no_more_requests_are_served_at_once_than_allowed() -> None:
    jobs = asks(*((0.0, "a"),) * 5, service_s=10)
    result = simulate("modelyard", setup(model("a"), concurrency=2), jobs)

    waits = [COST.up_s + turn for turn in (0, 0, 10, 10, 20)]
    assert result.waits.mean == pytest.approx(sum(waits) / 5)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_input_gives_the_same_result(policy: str) -> None:
    rng = random.Random(5)
    names = [f"m{number}" for number in range(6)]
    known = setup(*(model(name, rng.choice([20_000, 40_000, 70_000])) for name in names), devices=2)
    jobs = [Job(rng.choice(names), rng.uniform(0, 900), rng.uniform(1, 20)) for _ in range(150)]

    assert simulate(policy, known, jobs) == simulate(policy, known, jobs)
    assert all(job.started_s != job.started_s for job in jobs), "the input was written to"


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["L1", "L2", "cold", "gguf", "tiers"])
@pytest.mark.parametrize("wake", ["anywhere", "home"])
def test_random_yards_break_no_law(policy: str, kind: str, wake: str) -> None:
    for seed in range(4):
        rng = random.Random(f"{kind}/{seed}")
        models = {}
        for number in range(rng.randint(2, 8)):
            mib = rng.choice([8_000, 20_000, 38_000, 70_000])
            wide = rng.choice([1, 1, 1, 2])
            base = model(f"m{number}", mib, kind, wake)
            models[base.name] = replace(base, tensor_parallel=wide, priority=rng.choice([0, 0, 1]))
        known = Setup(
            models,
            [DEVICE_MIB] * 3,
            host_mib=rng.choice([0, 20_000, 1_000_000]),
            residue_mib=rng.choice([0, 0, 700]),
        )
        jobs = [
            Job(rng.choice(sorted(models)), rng.uniform(0, 600), rng.uniform(0.5, 30))
            for _ in range(60)
        ]
        assert simulate(policy, known, jobs).waits.requests == 60


def test_what_fits_nowhere_is_refused_before_the_clock_starts() -> None:
    known = setup(model("a", 90_000), replace(model("b"), tensor_parallel=2))
    with pytest.raises(ConfigError) as told:
        simulate("modelyard", known, asks((0, "a"), (0, "c")))

    assert [problem.split(":")[0] for problem in told.value.problems] == [
        "models.a",
        "models.b",
        "models.'c'",
    ]


# ------------------------------------------------------------------------------- broken schedulers


Actions = list[SchedulerAction]
KNOWN = setup(model("a"), model("b"))


def twice(actions: Actions) -> Actions:
    return [each for action in actions for each in [action] * (1 + isinstance(action, Grant))]


def never(actions: Actions) -> Actions:
    return [action for action in actions if not isinstance(action, Grant)]


def both(actions: Actions) -> Actions:
    starts = [action for action in actions if isinstance(action, StartEngine)]
    other = ModelSpec("b", "simulated", frozenset({Task.CHAT}))
    return [*actions, *(replace(action, spec=other) for action in starts)]


def impatient(actions: Actions) -> Actions:
    grants = [action for action in actions if isinstance(action, Grant)]
    return [*actions, *(StopEngine(g.model, g.run, 0.0, 0.0, "no patience") for g in grants)]


def rude(actions: Actions) -> Actions:
    error = WaitTimeout("too late")
    return [Refuse(a.ticket, error) if isinstance(a, Grant) else a for a in actions]


def hasty(actions: Actions) -> Actions:
    starts = [action for action in actions if isinstance(action, StartEngine)]
    return [*actions, *(Grant(0, action.spec.id, action.run) for action in starts)]


def lost(actions: Actions) -> Actions:
    return [replace(a, run=a.run + 7) if isinstance(a, Grant) else a for a in actions]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (twice, "which nobody holds"),
        (never, "requests wait"),
        (both, "would hold 140000 of 77824 MiB"),
        (impatient, "is to be cut while it serves"),
        (rude, "a request was refused: too late"),
        (hasty, "is to serve, and cannot"),
        (lost, "there is no run 8 of 'a'"),
    ],
)
def test_a_scheduler_that_breaks_a_law_is_found_out(
    spoil: Callable[[Actions], Actions], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(KNOWN, Policy())
    handle = world.scheduler.handle
    monkeypatch.setattr(world.scheduler, "handle", lambda event, now: spoil(handle(event, now)))

    with pytest.raises(LawBroken) as broken:
        world.run([Job("a", 0, 60), Job("a", 1, 60)])
    assert told in str(broken.value)


def test_a_timer_that_is_due_for_ever_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(KNOWN, Policy())
    monkeypatch.setattr(world.scheduler, "next_timer", lambda: world.books.now)

    with pytest.raises(LawBroken, match="timers came due again and again at this moment"):
        world.run([Job("a", 0, 60)])


def stopped_at_once(kind: type[StartEngine | SuspendEngine]) -> Callable[[Actions], Actions]:
    """A scheduler that thinks better of its first order of this kind."""
    done: list[SchedulerAction] = []

    def spoil(actions: Actions) -> Actions:
        for action in actions:
            if isinstance(action, kind) and not done:
                done.append(action)
                name = action.spec.id if isinstance(action, StartEngine) else action.model
                return [*actions, StopEngine(name, action.run, None, 0.0, "on second thoughts")]
        return actions

    return spoil


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (StartEngine, [("start", "a"), ("stop", "a"), ("start", "a")]),
        (SuspendEngine, [("start", "a"), ("sleep", "a"), ("stop", "a"), ("start", "b")]),
    ],
)
def test_a_move_that_is_given_up_costs_what_it_took(
    kind: type[StartEngine | SuspendEngine],
    expected: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = [model("a", kind="L1", wake="home"), model("b", kind="L1", wake="home")]
    world = World(setup(*models), Policy())
    handle, spoil = world.scheduler.handle, stopped_at_once(kind)
    monkeypatch.setattr(world.scheduler, "handle", lambda event, now: spoil(handle(event, now)))
    books = world.run(asks((0, "a"), (100, "b")))

    given_up = books.moves[len(expected) - 3 if kind is StartEngine else 1]
    assert [(move.what, move.model) for move in books.moves][: len(expected)] == expected
    assert given_up.end_s == given_up.begin_s
    assert books.swap_s == pytest.approx(sum(m.end_s - m.begin_s for m in books.moves))
    assert books.host_free_mib >= world.setup.host_mib - 12 * 1024
