"""What is done while nobody waits: the corners. The rules themselves are shown in test_rules."""

from __future__ import annotations

from tests.core.test_rules import often
from tests.core.test_sleeping import sleeper, sleeps
from tests.core.world import World, card, held, model, on

from modelyard.core.events import (
    CostKnown,
    DevicesChanged,
    EngineNews,
    KeepWanted,
    SleepWanted,
)
from modelyard.core.lifecycle import EngineAsleep, State
from modelyard.core.policy import Policy
from modelyard.core.specs import Device, Limits

ENDLESS = Limits(idle_sleep_s=None, idle_stop_s=None)
HOST = Device("cpu", "cpu", 7000, 7000)


def test_a_return_needs_no_further_event_once_the_last_who_waits_has_its_place() -> None:
    names = ("left", "here", "waits")
    specs = [model(name, profiles=on("rtx 3090", mib=150), limits=ENDLESS) for name in names]
    world = World(*specs, devices=[card(0)])
    for name in names:
        world.tell(CostKnown(name, "only", "rtx 3090", "start", 10))
    world.finish(world.up("left"))
    world.ask("here")
    world.exits("left")
    world.ready("here")
    world.ask("waits")
    world.now += 2

    world.tell(DevicesChanged((card(0), card(1), card(2))))

    assert {"left", "waits"} <= world.live.keys()


def test_a_model_that_a_client_wants_kept_does_not_leave_ahead() -> None:
    world = World(model("often", limits=ENDLESS), model("kept", limits=ENDLESS), mib=100)
    for name in ("often", "kept"):
        world.tell(CostKnown(name, "default", "cpu", "stop", 10))
    world.finish(world.up("often"))
    often(world, "often", 20)
    for _ in range(3):
        world.ask("kept")
    world.exits("often")
    world.ready("kept")
    world.tell(KeepWanted("kept", 600))
    for ticket in tuple(world.leases):
        world.finish(ticket)

    world.passes(100)

    assert world.stopping == {}


def test_a_sleeper_sleeps_deeper_where_one_that_is_asked_more_lacks_its_place_on_the_host() -> None:
    world = _short_of_host()

    assert world.state("cold") is State.WAKING
    world.ready("cold")

    assert world.state("cold") is State.SUSPENDING
    assert world.scheduler.models["cold"].first.life.level == 2
    sleeps(world, "cold")
    assert held(world, "cold") == {"GPU-0": 300, "cpu": 0}
    world.passes(100)
    assert world.state("cold") is State.ASLEEP


def test_who_is_asked_for_while_it_wakes_to_sleep_deeper_serves() -> None:
    world = _short_of_host()

    ticket = world.ask("cold")
    world.ready("cold")

    assert ticket in world.granted
    world.passes(1)
    assert world.state("cold") is State.READY


def test_a_sleeper_that_is_asked_as_often_keeps_its_place_on_the_host() -> None:
    world = _short_of_host(asked=1)

    assert world.state("cold") is State.ASLEEP


def test_nobody_wakes_to_sleep_deeper_where_memory_is_not_free() -> None:
    world = _short_of_host(card_mib=7000)

    assert world.state("cold") is State.ASLEEP


def _short_of_host(asked: int = 40, card_mib: int = 12_000) -> World:
    """`cold` sleeps lightly; beside it the host has no room for `hot`, which runs and is idle."""
    specs = (sleeper("cold", 3000), sleeper("hot", 6000))
    world = World(*specs, devices=[card(0, card_mib), HOST], policy=Policy(prefetch=False))
    world.finish(world.up("cold"))
    world.tell(SleepWanted("cold", 1))
    run = world.live["cold"]
    world.tell(EngineNews("cold", EngineAsleep(run, {"GPU-0": 300, "cpu": 3000})))
    world.finish(world.up("hot"))
    often(world, "hot", asked)
    world.passes(3)
    return world
