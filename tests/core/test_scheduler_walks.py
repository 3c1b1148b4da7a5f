"""Random walks through small worlds: nothing is overcommitted, lost or left waiting."""

from __future__ import annotations

import random

import pytest
from tests.core.world import World, model

from modelyard.core.events import (
    RequestLeft,
    RestartWanted,
    SchedulerEvent,
    StartWanted,
    StopWanted,
)
from modelyard.core.lifecycle import State
from modelyard.core.policy import Policy
from modelyard.core.specs import Limits


@pytest.mark.parametrize("block", range(10))
def test_whatever_happens_nothing_is_overcommitted_lost_or_left_waiting(block: int) -> None:
    for seed in range(block * 100, block * 100 + 100):
        _walk(random.Random(seed))


def _walk(chance: random.Random) -> None:
    specs = [
        model(
            f"m{number}",
            chance.choice([40, 90, 150]),
            pinned=number == 0 and chance.random() < 0.3,
            preload=chance.random() < 0.1,
            limits=Limits(idle_stop_s=50, max_wait_s=400, concurrency=chance.choice([None, 1, 2])),
        )
        for number in range(4)
    ]
    world = World(*specs, policy=Policy(backoff_s=1, failed_cooldown_s=30))
    waiting: dict[int, str] = {}
    for _ in range(120):
        _happen(world, chance, waiting)
        world.passes(chance.choice([0, 0.1, 3, 30]))
        world.check()
    _settle(world)
    undecided = set(waiting) - set(world.granted) - set(world.refused)
    assert not undecided, "a request was forgotten"
    assert all(slot.in_flight == 0 for slot in world.scheduler.models.values())


def _happen(world: World, chance: random.Random, waiting: dict[int, str]) -> None:
    name = f"m{chance.randrange(4)}"
    match chance.randrange(9):
        case 0 | 1 | 2:
            waiting[world.ask(name)] = name
        case 3 if world.leases:
            world.finish(chance.choice(list(world.leases)), served=chance.random() < 0.9)
        case 4 if name in world.live and world.state(name) is State.STARTING:
            world.ready(name)
        case 5 if name in world.stopping:
            world.exits(name)
        case 6 if name in world.live and chance.random() < 0.4:
            world.exits(name, "crash", permanent=chance.random() < 0.2)
        case 7 if chance.random() < 0.3:
            asked: list[SchedulerEvent] = [StopWanted(name), RestartWanted(name), StartWanted(name)]
            world.tell(chance.choice(asked))
        case 8 if waiting and chance.random() < 0.5:
            ticket = chance.choice(list(waiting))
            if ticket not in world.granted and ticket not in world.refused:
                world.tell(RequestLeft(waiting.pop(ticket), ticket))


def _settle(world: World) -> None:
    """Engines and clients do what they should for a while: everybody who waits is served."""
    for _ in range(200):
        for ticket in tuple(world.leases):
            world.finish(ticket)
        for name in tuple(world.stopping):
            world.exits(name)
        for name in tuple(world.live):
            if world.state(name) is State.STARTING:
                world.ready(name)
        world.passes(5)
        world.check()
