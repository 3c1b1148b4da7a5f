"""Nobody waits for ever: with engines that behave and a load below one, waits have a bound.

The bound is the policy's own: a model that has waited for two age bounds has a place kept free for
it, and until it gets it each older model comes up, stays as long as the policy lets it, and leaves.
MODELYARD_WALKS says how many walks there are (a tenth of it, 40 by default).
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import os
import random
from collections.abc import Callable
from functools import partial

import pytest
from tests.core.virtual_machine import Engine, Machine
from tests.core.world import model

from modelyard.core.events import StartEngine, StopEngine, SuspendEngine
from modelyard.core.policy import Policy
from modelyard.core.specs import Device, Limits, ModelSpec, Profile, SleepLevel

WALKS = int(os.environ.get("MODELYARD_WALKS", "400")) // 10
BLOCKS = 10
CARD_MIB = 8000
HOST_MIB = 12_000
CALLS = SleepLevel((), ())
ARRIVE_S = 1200.0
"""How long requests come."""
PLAIN = Policy(fair_after_s=10, residency_factor=4)


class Clocked(Machine):
    """One card, engines that do what they are told in their time, and clients that stay."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.later: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.most_usual_s = self.longest_service_s = 0.0
        names = [f"m{number}" for number in range(chance.choice([2, 3, 5]))]
        self.up_s = {name: chance.choice([0.5, 4.0, 20.0]) for name in names}
        self.down_s = {name: chance.choice([0.2, 3.0]) for name in names}
        self.service_s = {name: chance.choice([0.3, 2.0, 8.0]) for name in names}
        super().__init__(
            [_steady(chance, name) for name in names],
            [
                Device("GPU-0", "NVIDIA GeForce RTX 3090", CARD_MIB, CARD_MIB, "nvidia"),
                Device("cpu", "cpu", HOST_MIB, HOST_MIB),
            ],
            PLAIN,
        )

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        heapq.heappush(self.later, (self.now + seconds, next(self.order), do))

    def runs_until(self, until: float) -> None:
        """What comes next comes next: a timer of the scheduler, or something of the machine."""
        while (at := self._next()) <= until:
            if self.later and self.later[0][0] <= at:
                self.now, _, do = heapq.heappop(self.later)
                do()
            else:
                self.passes(max(0.0, at - self.now))
            self.most_usual_s = max(self.most_usual_s, self.scheduler.pace.usual_wait_s())
        self.now = until

    def _next(self) -> float:
        timer = self.scheduler.next_timer()
        return min(timer, self.later[0][0]) if self.later else timer

    def is_busy(self, load: float) -> None:
        """Requests come for a while, some models more often than others, and are all served."""
        shares = {name: self.chance.choice([1.0, 1.0, 20.0]) for name in self.up_s}
        for name, share in shares.items():
            every_s = self.service_s[name] * sum(shares.values()) / (share * load)
            self.after(self.chance.uniform(0.0, every_s), partial(self.comes, name, every_s))
        self.runs_until(1000.0 + ARRIVE_S)
        self.runs_until(self.now + self.bound_s())

    def comes(self, model: str, every_s: float) -> None:
        if self.now >= 1000.0 + ARRIVE_S:
            return
        ticket = self.ask(model)
        if ticket in self.leases:
            self._begins(ticket, model)
        self.after(self.chance.expovariate(1 / every_s), partial(self.comes, model, every_s))

    def bound_s(self) -> float:
        """The longest wait: two age bounds, then every older model comes, stays and leaves."""
        change = max(self.up_s.values()) + sum(self.down_s.values())
        away = self.longest_service_s + 2 * change + max(self.service_s.values())
        aged = max(PLAIN.fair_after_s, PLAIN.wait_factor * self.most_usual_s, 2 * away / (1 - 0.6))
        stay = (1 + PLAIN.residency_factor) * change + self.longest_service_s
        return PLAIN.reserve_factor * aged + (len(self.up_s) - 1) * stay

    def _begins(self, ticket: int, model: str) -> None:
        seconds = min(4.0, self.chance.expovariate(1.0)) * self.service_s[model]
        self.longest_service_s = max(self.longest_service_s, seconds)
        self.after(seconds, lambda: self.finish(ticket))

    def _grant(self, ticket: int, model: str, run: int) -> None:
        super()._grant(ticket, model, run)
        self._begins(ticket, model)

    def _start(self, action: StartEngine) -> None:
        super()._start(action)
        engine = self.engines[action.spec.id, action.run]
        self.after(self.up_s[engine.model], lambda: self.becomes_ready(engine))

    def _wake(self, engine: Engine, level: int) -> None:
        super()._wake(engine, level)
        self.after(self.up_s[engine.model] / 5, lambda: self.becomes_ready(engine))

    def _suspend(self, engine: Engine, action: SuspendEngine) -> None:
        super()._suspend(engine, action)
        self.after(self.down_s[engine.model], lambda: self.falls_asleep(engine))

    def _stop(self, engine: Engine, action: StopEngine) -> None:
        super()._stop(engine, action)
        self.after(self.down_s[engine.model], lambda: self.exits(engine))


def _steady(chance: random.Random, name: str) -> ModelSpec:
    mib = chance.choice([3000, 5000, 7000])
    return dataclasses.replace(
        model(name),
        profiles=(Profile("one", ("rtx 3090",), {"rtx 3090": mib}),),
        sleep=dict.fromkeys(chance.choice([(), (2,), (1, 2)]), CALLS),
        limits=Limits(max_wait_s=1e6, max_queue=10**6, concurrency=chance.choice([None, 1, 4])),
    )


@pytest.mark.parametrize("block", range(BLOCKS))
def test_at_a_load_below_one_nobody_waits_longer_than_the_bound(block: int) -> None:
    for seed in range(block * WALKS // BLOCKS, (block + 1) * WALKS // BLOCKS):
        site = Clocked(random.Random(seed))
        site.is_busy(site.chance.choice([0.1, 0.3, 0.6]))
        site.check()
        assert not site.waiting, f"seed {seed}: {site.waiting} wait for ever"
        assert not site.refused, f"seed {seed}"
        longest, bound = max(site.granted.values()), site.bound_s()
        assert longest <= bound, f"seed {seed}: waited {longest:.0f} s, the bound is {bound:.0f} s"
