"""Random walks over everything that people, clients and engines do to the whole policy.

The machine keeps its own books (see `virtual_machine.py`), which are compared with the scheduler's
after every step. MODELYARD_WALKS says how many seeds are walked (400 by default, 10000 in a long
run).
"""

from __future__ import annotations

import dataclasses
import os
import random

import pytest
from tests.core.virtual_machine import Engine, Machine
from tests.core.world import model

from modelyard.core.costs import Step
from modelyard.core.events import (
    CostKnown,
    DemandKnown,
    DevicesChanged,
    EngineCleared,
    EngineSuspected,
    FootprintLearned,
    MemoryMeasured,
    ModelsChanged,
    RestartWanted,
    SchedulerEvent,
    ShutdownAsked,
    SleepWanted,
    StartWanted,
    StopWanted,
)
from modelyard.core.footprints import by_position
from modelyard.core.policy import Policy
from modelyard.core.specs import Device, Limits, ModelSpec, Profile, Replicas, SleepLevel

SEEDS = int(os.environ.get("MODELYARD_WALKS", "400"))
BLOCKS = 20
STEPS = 90
MODELS = 5
CARDS = ("GPU-0", "GPU-1")
CARD_MIB = 8000
HOST_MIB = 12_000
CALLS = SleepLevel((), ())


class Site(Machine):
    """Two cards and a host, five models, and the dice."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.present = set(CARDS)
        self.strangers = dict.fromkeys(CARDS, 0)
        self.specs = {f"m{n}": _spec(chance, n) for n in range(MODELS)}
        policy = Policy(
            fair_after_s=chance.choice([3, 10]),
            residency_factor=chance.choice([0, 2, 4]),
            backoff_s=0.5,
            backoff_max_s=5,
            failed_cooldown_s=20,
            scale_up_after_s=2,
            scale_down_after_s=15,
        )
        super().__init__(self.specs.values(), self.cards(), policy)

    def cards(self) -> list[Device]:
        found = [
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
        return [*found, Device("cpu", "cpu", HOST_MIB, HOST_MIB)]

    def cards_change(self) -> None:
        self.devices = tuple(self.cards())
        self.tell(DevicesChanged(self.devices))

    def any_model(self) -> str:
        return f"m{self.chance.randrange(MODELS)}"


def _spec(chance: random.Random, number: int) -> ModelSpec:
    mib = chance.choice([2500, 4000, 7000])
    one = Profile("one", ("rtx 3090",), {"rtx 3090": mib})
    two = Profile("two", ("rtx 3090", "rtx 3090"), {"rtx 3090": mib})
    host = Profile("host", ("cpu",), {"cpu": mib})
    replicas = chance.choice([Replicas()] * 3 + [Replicas(0, 2), Replicas(0, 3), Replicas(1, 2)])
    return dataclasses.replace(
        model(f"m{number}"),
        profiles=chance.choice([(one,), (one,), (two, one), (one, host), (two,)]),
        sleep=dict.fromkeys(chance.choice([(), (2,), (1,), (1, 2)]), CALLS),
        pinned=number == 0 and chance.random() < 0.3,
        preload=chance.random() < 0.1,
        priority=chance.choice([0, 0, 0, 1, -1]),
        replicas=replicas,
        limits=Limits(
            idle_sleep_s=chance.choice([None, 20]),
            idle_stop_s=chance.choice([None, 60]),
            max_wait_s=200,
            max_queue=8,
            concurrency=chance.choice([None, 1, 2]),
        ),
    )


@pytest.mark.parametrize("block", range(BLOCKS))
def test_whatever_happens_the_books_agree_and_everybody_gets_an_answer(block: int) -> None:
    for seed in range(block * SEEDS // BLOCKS, (block + 1) * SEEDS // BLOCKS):
        try:
            random_walk(random.Random(seed))
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise


def random_walk(chance: random.Random) -> None:
    """Anything happens, then everybody behaves, then everything ends."""
    site = Site(chance)
    site.check()
    for _ in range(STEPS):
        happen(site)
        site.check()
        site.passes(chance.choice([0, 0, 0.1, 1, 3, 25]))
        site.check()
    site.present = set(CARDS)
    site.strangers = dict.fromkeys(CARDS, 0)
    site.cards_change()
    for _ in range(110):
        behave(site)
        site.passes(3)
        site.check()
    assert not site.waiting, f"forgotten: {site.waiting}"
    decided = len(site.granted) + len(site.refused) + len(site.left)
    assert decided == next(site.tickets) - 1, "decided twice"
    site.tell(ShutdownAsked())
    for engine in tuple(site.engines.values()):
        site.exits(engine)
    site.check()
    assert not site.engines


def happen(site: Site) -> None:
    """One thing, whatever comes."""
    dice = site.chance
    match dice.randrange(20):
        case 0 | 1 | 2 | 3 | 4 if (name := site.any_model()) in site.scheduler.models:
            for _ in range(dice.choice([1, 1, 1, 4])):
                prefix = dice.choice([None, dice.getrandbits(32)])
                site.ask(name, dice.choice("xyz"), dice.choice([0, 0, 0, 2]), prefix)
        case 5 | 6 | 7 if site.leases:
            site.finish(dice.choice(list(site.leases)), served=dice.random() < 0.9)
        case 8 if site.broken:
            site.finish(dice.choice(list(site.broken)))
        case 9 if site.waiting:
            site.cancel(dice.choice(list(site.waiting)))
        case 10 | 11 | 12 | 13 | 14 if site.engines:
            _goes_on(site, dice.choice(list(site.engines.values())), fails=0.1)
        case 15 if site.engines and dice.random() < 0.3:
            engine = dice.choice(list(site.engines.values()))
            site.exits(engine, "crash", permanent=dice.random() < 0.1)
        case 16 if dice.random() < 0.5:
            _a_person_acts(site)
        case 17:
            _is_learned(site)
        case 18:
            _devices_change(site)
        case 19 if dice.random() < 0.3:
            _definitions_change(site)


def _goes_on(site: Site, engine: Engine, fails: float) -> None:
    """An engine does the next thing that it was told to do, or fails in it."""
    bad = site.chance.random() < fails
    match engine.doing:
        case "starting" | "waking":
            if bad and engine.doing == "waking":
                site.fails_to_wake(engine)
            else:
                site.becomes_ready(engine)
        case "suspending" if site.drains(engine):
            if bad:
                site.fails_to_sleep(engine)
            else:
                site.falls_asleep(engine)
        case "stopping" if engine.may_cut or not site.in_flight(engine):
            site.exits(engine)


def behave(site: Site) -> None:
    """Engines and clients do what they should."""
    for ticket in (*site.leases, *site.broken):
        if ticket in site.leases or ticket in site.broken:
            site.finish(ticket)
    for engine in tuple(site.engines.values()):
        if engine.suspected:
            _clear(site, engine)
        if engine.id in site.engines:
            _goes_on(site, engine, fails=0.0)


def _clear(site: Site, engine: Engine) -> None:
    engine.suspected = False
    site.tell(EngineCleared(engine.model, engine.run))


def _a_person_acts(site: Site) -> None:
    name, dice = site.any_model(), site.chance
    orders: list[SchedulerEvent] = [
        StopWanted(name),
        RestartWanted(name),
        StartWanted(name),
        SleepWanted(name, dice.choice([1, 2])),
    ]
    site.tell(dice.choice(orders))


def _is_learned(site: Site) -> None:
    """What the server measures, or knows from earlier runs."""
    name, dice = site.any_model(), site.chance
    asleep = [engine for engine in site.engines.values() if engine.doing == "asleep"]
    if asleep and dice.random() < 0.5:
        _residue_is_learned(site, dice.choice(asleep))
        return
    awake = [engine for engine in site.engines.values() if engine.doing == "ready"]
    if awake and dice.random() < 0.6:
        engine = dice.choice(awake)
        if dice.random() < 0.5:
            used = {device: mib - 100 for device, mib in engine.full_mib.items()}
            site.tell(MemoryMeasured(engine.model, engine.run, used))
        elif engine.suspected:
            _clear(site, engine)
        else:
            engine.suspected = True
            site.tell(EngineSuspected(engine.model, engine.run))
        return
    profile = dice.choice(["one", "two", "host"])
    kinds = {"one": "rtx 3090", "two": "rtx 3090+rtx 3090", "host": "cpu"}[profile]
    seconds = dice.choice([0.0, 0.1, 5.0, 90.0])
    site.tell(CostKnown(name, profile, kinds, dice.choice(list(Step)).value, seconds))
    site.tell(DemandKnown(name, dice.choice([0.0, 0.01, 1.0]), seconds, 20.0))


def _residue_is_learned(site: Site, engine: Engine) -> None:
    replica = site.scheduler.models[engine.model].replica_of(engine.run)
    placed = replica.placement if replica is not None else None
    assert placed is not None
    seen = by_position(placed, engine.holds_mib)
    known = FootprintLearned(engine.model, placed.profile, placed.kinds, engine.level, seen)
    site.tell(known)


def _devices_change(site: Site) -> None:
    dice = site.chance
    card = dice.choice(CARDS)
    if dice.random() < 0.2:
        site.present ^= {card}
    else:
        room = CARD_MIB - site.used_mib(card)
        site.strangers[card] = dice.choice([0, min(2000, max(0, room))])
    site.cards_change()


def _definitions_change(site: Site) -> None:
    """A model is defined anew, taken away, or comes back."""
    name, dice = site.any_model(), site.chance
    if name in site.specs and dice.random() < 0.4:
        del site.specs[name]
    else:
        site.specs[name] = _spec(dice, int(name[1:]))
    site.tell(ModelsChanged(tuple(site.specs.values())))
