"""Random walks over starts, sleeps, wakes, failures, vanishing devices and strangers.

The fake machine keeps its own books: what engines hold on each device, and which operation moves
memory there. They are compared with the scheduler's claims after every step. MODELYARD_WALKS says
how many seeds are walked (2000 by default, 10000 in a long run).
"""

from __future__ import annotations

import dataclasses
import os
import random

import pytest
from tests.core.world import World, model

from modelyard.core.events import (
    DevicesChanged,
    EngineNews,
    RestartWanted,
    SchedulerAction,
    SchedulerEvent,
    ShutdownAsked,
    SleepWanted,
    StartEngine,
    StartWanted,
    StopEngine,
    StopWanted,
    SuspendEngine,
    WakeEngine,
)
from modelyard.core.lifecycle import EngineAsleep, EngineReady, SleepFailed, State, WakeFailed
from modelyard.core.policy import Policy
from modelyard.core.specs import Device, Limits, ModelSpec, Profile, SleepLevel

SEEDS = int(os.environ.get("MODELYARD_WALKS", "2000"))
BLOCKS = 20
CARD_MIB = 8000
RESIDUE_MIB = 300
CALLS = SleepLevel((), ())
MOVES = (StartEngine, SuspendEngine, WakeEngine)


class Machine(World):
    """A world whose engines hold memory in books of their own."""

    def __init__(self, chance: random.Random, *specs: ModelSpec) -> None:
        self.chance = chance
        self.books: dict[str, dict[str, int]] = {}
        self.moving: dict[str, str] = {}
        self.strangers = {"GPU-0": 0, "GPU-1": 0}
        self.present = {"GPU-0", "GPU-1"}
        super().__init__(
            *specs,
            devices=self.devices(),
            policy=Policy(fair_after_s=5, backoff_s=0.5, backoff_max_s=5, failed_cooldown_s=20),
        )

    def devices(self) -> list[Device]:
        cards = [
            Device(
                card,
                "NVIDIA GeForce RTX 3090",
                CARD_MIB,
                CARD_MIB - self.strangers[card],
                "nvidia",
                int(card[-1]),
                self.strangers[card],
                CARD_MIB,
            )
            for card in sorted(self.present)
        ]
        return [*cards, Device("cpu", "cpu", 64_000, 64_000)]

    def perform(self, actions: list[SchedulerAction]) -> list[SchedulerAction]:
        for action in actions:
            if isinstance(action, MOVES):
                name = action.spec.id if isinstance(action, StartEngine) else action.model
                self._begin(name, type(action).__name__)
            elif isinstance(action, StopEngine):
                self.moving.pop(action.model, None)
        return super().perform(actions)

    def _begin(self, name: str, what: str) -> None:
        placed = self.scheduler.models[name].placement
        assert placed is not None
        cards = {device for device in placed.claims_mib if device != "cpu"}
        for other, doing in self.moving.items():
            theirs = self.scheduler.models[other].placement
            overlap = cards & set(theirs.claims_mib if theirs else ())
            assert not overlap, f"{what} of {name} beside {doing} of {other} on {overlap}"
        self.moving[name] = what
        if what != "SuspendEngine":
            self.books[name] = dict(placed.claims_mib)

    def tell(self, event: SchedulerEvent) -> list[SchedulerAction]:
        if isinstance(event, EngineNews):
            self.moving.pop(event.model, None)
        return super().tell(event)

    def exits(self, name: str, reason: str = "", *, permanent: bool = False) -> None:
        self.books.pop(name, None)
        self.moving.pop(name, None)
        super().exits(name, reason, permanent=permanent)

    def slept(self, name: str) -> None:
        kept = {card: RESIDUE_MIB for card in self.books[name] if card != "cpu"}
        self.books[name] = kept
        self.tell(EngineNews(name, EngineAsleep(self.live[name], {**kept, "cpu": 0})))

    def check(self) -> None:
        super().check()
        for card in self.strangers:
            ours = sum(held.get(card, 0) for held in self.books.values())
            assert ours <= CARD_MIB, f"overcommitted {card}: {self.books}"
        for name, held in self.books.items():
            claims = self.scheduler.models[name].held_mib
            for device, mib in held.items():
                assert mib <= claims.get(device, 0), f"{name} holds {mib}, claims {claims}"


def _spec(chance: random.Random, number: int) -> ModelSpec:
    mib = chance.choice([2500, 4000, 7000])
    one = Profile("one", ("rtx 3090",), {"rtx 3090": mib})
    two = Profile("two", ("rtx 3090", "rtx 3090"), {"rtx 3090": mib})
    host = Profile("host", ("cpu",), {"cpu": mib})
    return dataclasses.replace(
        model(f"m{number}"),
        profiles=chance.choice([(one,), (two, one), (one, host), (two,)]),
        sleep=dict.fromkeys(chance.choice([(), (2,), (1, 2)]), CALLS),
        pinned=number == 0 and chance.random() < 0.2,
        limits=Limits(idle_sleep_s=20, idle_stop_s=60, max_wait_s=200, concurrency=None),
    )


@pytest.mark.parametrize("block", range(BLOCKS))
def test_claims_never_exceed_the_machine_and_no_operation_overlaps(block: int) -> None:
    for seed in range(block * SEEDS // BLOCKS, (block + 1) * SEEDS // BLOCKS):
        _walk(seed)


def _walk(seed: int) -> None:
    chance = random.Random(seed)
    machine = Machine(chance, *(_spec(chance, number) for number in range(4)))
    asked: set[int] = set()
    for _ in range(60):
        _happen(machine, chance, asked)
        machine.passes(chance.choice([0, 0.1, 3, 25]))
        machine.check()
    machine.present = {"GPU-0", "GPU-1"}
    machine.strangers = dict.fromkeys(machine.strangers, 0)
    machine.tell(DevicesChanged(tuple(machine.devices())))
    for _ in range(120):
        _behave(machine)
    undecided = asked - set(machine.granted) - set(machine.refused)
    assert not undecided, f"seed {seed}: requests {undecided} were forgotten"
    machine.tell(ShutdownAsked())
    for name in tuple(machine.live):
        machine.exits(name)
    assert machine.books == {}, f"seed {seed}"


def _happen(machine: Machine, chance: random.Random, asked: set[int]) -> None:
    name = f"m{chance.randrange(4)}"
    state = machine.state(name)
    match chance.randrange(12):
        case 0 | 1 | 2:
            asked.add(machine.ask(name))
        case 3 | 4 if machine.leases:
            machine.finish(chance.choice(list(machine.leases)), served=chance.random() < 0.9)
        case 5 | 6 if name in machine.live:
            _engine_goes_on(machine, chance, name, state)
        case 7 if name in machine.stopping:
            machine.exits(name)
        case 8 if name in machine.live and chance.random() < 0.3:
            machine.exits(name, "crash", permanent=chance.random() < 0.1)
        case 9 if chance.random() < 0.5:
            orders: list[SchedulerEvent] = [
                StopWanted(name),
                RestartWanted(name),
                StartWanted(name),
                SleepWanted(name, chance.choice([1, 2])),
            ]
            machine.tell(chance.choice(orders))
        case 10:
            card = chance.choice(["GPU-0", "GPU-1"])
            room = CARD_MIB - sum(held.get(card, 0) for held in machine.books.values())
            machine.strangers[card] = chance.choice([0, min(2000, max(0, room))])
            machine.tell(DevicesChanged(tuple(machine.devices())))
        case 11 if chance.random() < 0.2:
            machine.present ^= {chance.choice(["GPU-0", "GPU-1"])}
            machine.tell(DevicesChanged(tuple(machine.devices())))


def _engine_goes_on(
    machine: Machine, chance: random.Random, name: str, state: State, *, fails: float = 0.1
) -> None:
    run = machine.live[name]
    if state in (State.STARTING, State.WAKING):
        if state is State.WAKING and chance.random() < fails:
            machine.tell(EngineNews(name, WakeFailed(run, "500")))
        else:
            machine.tell(EngineNews(name, EngineReady(run)))
    elif state is State.SUSPENDING and not machine.scheduler.models[name].in_flight:
        if chance.random() < fails:
            machine.tell(EngineNews(name, SleepFailed(run, "kept it")))
        else:
            machine.slept(name)


def _behave(machine: Machine) -> None:
    """Engines and clients do what they should for a while."""
    for ticket in tuple(machine.leases):
        machine.finish(ticket)
    for name in tuple(machine.stopping):
        if name in machine.live:
            machine.exits(name)
    for name in tuple(machine.live):
        if name not in machine.stopping:
            _engine_goes_on(machine, machine.chance, name, machine.state(name), fails=0.0)
    machine.passes(3)
    machine.check()
