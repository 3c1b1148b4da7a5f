"""Who sleeps, who wakes, who is stopped instead: the ladder in the scheduler."""

from __future__ import annotations

import dataclasses

from tests.core.world import World, card, model

from modelyard.core.costs import Step
from modelyard.core.events import (
    CostKnown,
    DevicesChanged,
    EngineNews,
    FootprintLearned,
    MemoryMeasured,
    SleepWanted,
    StartWanted,
)
from modelyard.core.lifecycle import (
    EngineAsleep,
    EngineReady,
    SleepFailed,
    State,
    WakeFailed,
)
from modelyard.core.specs import Device, Limits, ModelSpec, Profile, SleepLevel

CALLS = SleepLevel((), ())
HOST = Device("cpu", "cpu", 100_000, 100_000)


def sleeper(
    name: str, mib: int = 3000, levels: tuple[int, ...] = (1, 2), **fields: object
) -> ModelSpec:
    profile = Profile("gpu", ("rtx 3090",), {"rtx 3090": mib})
    limits = Limits(idle_sleep_s=None, idle_stop_s=None)
    made = model(name, profiles=(profile,), sleep=dict.fromkeys(levels, CALLS), limits=limits)
    return dataclasses.replace(made, **fields)  # type: ignore[arg-type]


def world_of(*specs: ModelSpec, mib: int = 8000, host: Device = HOST) -> World:
    return World(*specs, devices=[card(0, mib), host])


def sleeps(world: World, name: str, kept: int = 300) -> None:
    """The engine reports that it sleeps and what it keeps."""
    run = world.live[name]
    world.tell(EngineNews(name, EngineAsleep(run, {"GPU-0": kept, "cpu": 0})))


def test_an_idle_model_makes_room_by_the_sleep_that_is_quickest_there_and_back() -> None:
    world = world_of(sleeper("a"), sleeper("b"), sleeper("c"))
    for name in "ab":
        world.finish(world.up(name))
        world.now += 1

    ticket = world.ask("c")

    assert world.state("a") is State.SUSPENDING
    assert world.scheduler.models["a"].first.life.level == 1
    assert world.state("b") is State.READY
    sleeps(world, "a")
    world.ready("c")
    assert ticket in world.granted


def test_who_is_told_at_which_level_to_sleep_does_so_even_if_a_deeper_one_is_quicker() -> None:
    world = world_of(sleeper("a"))
    world.finish(world.up("a"))
    for step in (Step.SLEEP_2, Step.WAKE_2):
        world.tell(CostKnown("a", "gpu", "rtx 3090", step, 0.01))

    world.tell(SleepWanted("a", 1))

    assert world.scheduler.models["a"].first.life.level == 1


def test_a_sleeper_counts_for_what_it_was_seen_to_keep() -> None:
    world = world_of(sleeper("a"))
    world.finish(world.up("a"))
    world.tell(SleepWanted("a", 2))

    assert world.scheduler.models["a"].held_mib == {"GPU-0": 3000}
    sleeps(world, "a", kept=700)

    assert world.scheduler.models["a"].held_mib == {"GPU-0": 700, "cpu": 0}


def test_a_request_wakes_a_sleeper_once_its_memory_is_there() -> None:
    world = world_of(sleeper("a", 5000), sleeper("b", 5000))
    world.finish(world.up("a"))
    world.tell(SleepWanted("a", 2))
    sleeps(world, "a")
    world.finish(world.up("b"))

    ticket = world.ask("a")
    assert world.state("b") is State.SUSPENDING
    sleeps(world, "b")
    assert world.state("a") is State.WAKING
    world.tell(EngineNews("a", EngineReady(1)))

    assert ticket in world.granted


def test_sleepers_are_stopped_when_what_they_keep_is_needed() -> None:
    world = world_of(sleeper("a"), sleeper("big", 7900, ()))
    world.finish(world.up("a"))
    world.tell(SleepWanted("a", 2))
    sleeps(world, "a", kept=300)

    world.ask("big")

    assert list(world.stopping) == ["a"]


def test_a_model_that_failed_to_sleep_is_stopped_from_then_on() -> None:
    world = world_of(sleeper("a", 5000), sleeper("b", 5000))
    world.finish(world.up("a"))
    world.tell(SleepWanted("a", 2))
    world.tell(EngineNews("a", SleepFailed(1, "it kept its memory")))
    world.exits("a")
    world.finish(world.up("a"))

    world.ask("b")

    assert list(world.stopping) == ["a"]
    assert world.scheduler.models["a"].sleep_levels == []


def test_where_a_profile_cannot_sleep_its_engine_is_stopped_instead() -> None:
    limits = Limits(idle_sleep_s=60, idle_stop_s=600)
    profiles = (Profile("host", ("cpu",), {"cpu": 3000}, can_sleep=False),)
    world = world_of(sleeper("a", profiles=profiles, limits=limits))
    world.finish(world.up("a"))

    world.passes(300)
    assert world.state("a") is State.READY
    world.tell(SleepWanted("a", 1))

    assert list(world.stopping) == ["a"]
    assert world.scheduler.models["a"].sleep_levels == [1, 2]


def test_a_model_that_failed_to_wake_gets_a_fresh_engine_and_its_requests_wait() -> None:
    world = world_of(sleeper("a"))
    world.finish(world.up("a"))
    world.tell(SleepWanted("a", 2))
    sleeps(world, "a")
    ticket = world.ask("a")

    world.tell(EngineNews("a", WakeFailed(1, "500")))
    world.exits("a")
    world.ready("a")

    assert world.live == {"a": 2}
    assert ticket in world.granted


def test_idle_models_sleep_as_lightly_as_the_host_can_hold() -> None:
    limits = Limits(idle_sleep_s=60, idle_stop_s=600)
    roomy = world_of(sleeper("a", limits=limits))
    tight = world_of(sleeper("a", limits=limits), host=Device("cpu", "cpu", 1000, 1000))
    for world in (roomy, tight):
        world.finish(world.up("a"))
        world.passes(61)

    assert roomy.scheduler.models["a"].first.life.level == 1
    assert tight.scheduler.models["a"].first.life.level == 2


def test_a_sleeper_that_stays_unused_is_stopped() -> None:
    world = world_of(sleeper("a", limits=Limits(idle_sleep_s=60, idle_stop_s=600)))
    world.finish(world.up("a"))
    world.passes(61)
    sleeps(world, "a")

    world.passes(500)
    assert world.state("a") is State.ASLEEP
    world.passes(100)

    assert list(world.stopping) == ["a"]


def test_on_one_card_only_one_model_goes_to_sleep_at_a_time() -> None:
    world = world_of(sleeper("a"), sleeper("b"))
    world.finish(world.up("a"))
    world.finish(world.up("b"))

    world.tell(SleepWanted("a", 2))
    world.tell(SleepWanted("b", 2))
    assert world.state("b") is State.READY
    sleeps(world, "a")

    assert world.state("b") is State.SUSPENDING


def test_a_person_can_wake_a_model() -> None:
    world = world_of(sleeper("a"))
    world.finish(world.up("a"))
    world.tell(SleepWanted("a", 1))
    sleeps(world, "a")

    world.tell(StartWanted("a"))

    assert world.state("a") is State.WAKING


def test_a_request_while_going_to_sleep_is_served_after_waking() -> None:
    world = world_of(sleeper("a"))
    world.finish(world.up("a"))
    world.tell(SleepWanted("a", 2))

    ticket = world.ask("a")
    sleeps(world, "a")
    world.tell(EngineNews("a", EngineReady(1)))

    assert ticket in world.granted


def test_what_was_measured_wins_on_a_gpu_and_the_larger_counts_on_the_host() -> None:
    profile = Profile("gpu", ("rtx 3090", "cpu"), {"rtx 3090": 3000, "cpu": 500})
    world = world_of(sleeper("a", profiles=(profile,)))
    learned = {"0": 2100, "cpu": 200}

    world.tell(FootprintLearned("a", "gpu", "rtx 3090+cpu", 0, learned))
    world.ask("a")

    assert world.scheduler.models["a"].held_mib == {"GPU-0": 2100, "cpu": 500}


def test_a_known_residue_replaces_the_rule_of_thumb() -> None:
    world = world_of(sleeper("a", 4000), sleeper("b", 7500))
    world.tell(FootprintLearned("a", "gpu", "rtx 3090", 2, {"0": 400}))
    world.finish(world.up("a"))

    world.ask("b")

    assert world.state("a") is State.SUSPENDING, "400 MiB leave room for 7500 of 8000"


def test_a_wake_needs_what_the_engine_really_held_and_not_only_its_claim() -> None:
    world = world_of(sleeper("a", 5000))
    world.finish(world.up("a"))
    world.tell(MemoryMeasured("a", 1, {"GPU-0": 5500}))
    world.tell(SleepWanted("a", 2))
    sleeps(world, "a", kept=300)
    crowded = card(0, 8000, capacity_mib=5100, strangers_mib=2900, ceiling_mib=8000)
    world.tell(DevicesChanged((crowded, HOST)))

    world.ask("a")
    assert world.state("a") is State.ASLEEP, "4800 free, 5200 needed"
    world.tell(DevicesChanged((card(0, 8000), HOST)))

    assert world.state("a") is State.WAKING
    assert world.scheduler.models["a"].held_mib == {"GPU-0": 5500}
