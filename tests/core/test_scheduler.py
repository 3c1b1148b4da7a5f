"""Who is started, queued and granted, and what a new definition changes, on small worlds."""

from __future__ import annotations

import dataclasses

from tests.core.world import World, model

from modelyard.core.errors import ModelNotFound, QueueFull
from modelyard.core.events import ModelsChanged, RequestLeft, RequestWaits, StartEngine
from modelyard.core.specs import Limits


def test_a_cold_model_is_started_once_however_many_ask() -> None:
    world = World(model("a"))

    first = world.tell(RequestWaits("a", 1))
    second = world.tell(RequestWaits("a", 2))
    world.ready("a")

    assert [(a.spec.id, a.run) for a in first if isinstance(a, StartEngine)] == [("a", 1)]
    assert second == []
    assert world.granted == [1, 2]


def test_a_ready_model_is_leased_without_an_event() -> None:
    world = World(model("a"))
    world.up("a")

    assert world.scheduler.lease("a", world.now) == 1


def test_concurrency_queues_instead_of_refusing() -> None:
    world = World(model("a", limits=Limits(concurrency=1)))
    first = world.up("a")
    second = world.ask("a")

    assert [first] == world.granted
    world.finish(first)
    assert [first, second] == world.granted


def test_a_request_that_leaves_is_never_granted() -> None:
    world = World(model("a"))
    ticket = world.ask("a")

    world.tell(RequestLeft("a", ticket))
    world.ready("a")

    assert world.granted == []
    assert world.scheduler.models["a"].in_flight == 0


def test_an_unknown_model_is_refused_and_not_forgotten() -> None:
    world = World()

    world.tell(RequestWaits("nobody", 1))

    assert isinstance(world.refused[1], ModelNotFound)


def test_one_request_too_many_in_the_queue_is_refused() -> None:
    world = World(model("a", limits=Limits(max_queue=2)))

    tickets = [world.ask("a") for _ in range(3)]

    assert [tickets[2]] == list(world.refused)
    assert isinstance(world.refused[tickets[2]], QueueFull)


def test_a_preloaded_model_starts_by_itself() -> None:
    world = World(model("a", preload=True))

    assert world.live == {"a": 1}


def test_a_removed_model_is_drained_and_forgotten() -> None:
    world = World(model("a"))
    world.up("a")

    world.tell(ModelsChanged(()))
    assert "a" in world.stopping
    world.exits("a")

    assert world.scheduler.models == {}


def test_a_failed_model_that_is_defined_anew_is_tried_again_at_once() -> None:
    broken = model("a", source="/wrong.gguf")
    world = World(broken)
    world.ask("a")
    world.exits("a", "no such file", permanent=True)

    world.tell(ModelsChanged((dataclasses.replace(broken, source="/right.gguf"),)))
    world.ask("a")

    assert world.live == {"a": 2}


def test_only_a_model_that_runs_differently_is_stopped() -> None:
    a, b = model("a"), model("b")
    world = World(a, b)
    world.up("a")
    world.up("b")

    changed = dataclasses.replace(b, options={"ctx_size": 4096})
    world.tell(ModelsChanged((dataclasses.replace(a, aliases=("x",)), changed)))

    assert list(world.stopping) == ["b"]
    assert world.scheduler.models["a"].spec.aliases == ("x",)
