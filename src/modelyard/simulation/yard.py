"""How models come and go under the policies of others: a yard of slots, devices and a clock.

Laws of this file:
- A swap takes the victims down one after the other and then brings the model up; its devices are
  its own until then.
- At one moment, arrivals come first, then everything else in the order in which it was begun.
- A policy is asked after every event, and does all that it wants at once.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from modelyard.simulation.books import Books
from modelyard.simulation.values import TICK_EVERY, Job, Model, Setup

NEVER_S = -1e9
WEIGHTS_ON_HOST = 1
"""The level of sleep at which the host keeps the weights."""


class Tier(Enum):
    """Where a model is."""

    OFF = "off"
    ASLEEP = "asleep"
    MOVING = "moving"
    UP = "up"


@dataclass(slots=True, eq=False)
class Slot:
    """One model of the yard."""

    model: Model
    name: str
    mib: int
    """What it holds on each of its devices while it is up."""
    queue: deque[Job] = field(default_factory=deque)
    tier: Tier = Tier.OFF
    devices: tuple[int, ...] = ()
    """Where it is, or sleeps."""
    touched: tuple[int, ...] = ()
    """The devices of its last move: its own, and those of its victims."""
    level: int = 0
    in_flight: int = 0
    last_used_s: float = NEVER_S

    @property
    def is_down(self) -> bool:
        return self.tier is Tier.OFF or self.tier is Tier.ASLEEP


class Rules(Protocol):
    """A policy: told of arrivals, asked after every event."""

    def arrive(self, yard: Yard, job: Job) -> None: ...

    def step(self, yard: Yard) -> None: ...


class Yard:
    """Runs a policy over a trace."""

    def __init__(self, setup: Setup, rules: Rules) -> None:
        self.setup = setup
        self.books = Books(setup)
        self.slots = {
            name: Slot(setup.models[name], name, setup.models[name].memory_mib)
            for name in sorted(setup.models)
        }
        self.up: dict[str, Slot] = {}
        """The models that serve, or could."""
        self.moving = 0
        """Models that are coming up."""
        self._asked: dict[str, Slot] = {}
        """Models whose queue is not empty, and perhaps some whose queue just was."""
        self._rules = rules
        self._heap: list[tuple[float, int, Slot, Job | None]] = []
        self._count = 0

    def run(self, jobs: Sequence[Job], tick: Callable[[int], None] | None = None) -> Books:
        """Serve all jobs, which are in the order of their arrival. `tick` hears how many came.

        Raises LawBroken.
        """
        heap, books, rules = self._heap, self.books, self._rules
        came, total = 0, len(jobs)
        while heap or came < total:
            if came < total and (not heap or jobs[came].arrived_s <= heap[0][0]):
                job = jobs[came]
                came += 1
                books.now = job.arrived_s
                slot = self.slots[job.model]
                slot.last_used_s = job.arrived_s
                slot.queue.append(job)
                self._asked[slot.name] = slot
                rules.arrive(self, job)
                if tick is not None and came % TICK_EVERY == 0:
                    tick(came)
            else:
                books.now, _, slot, done = heapq.heappop(heap)
                self._over(slot, done)
            rules.step(self)
        books.audit(total)
        return books

    # ------------------------------------------------------------------------------- for policies

    def asleep_on(self, device: int) -> list[Slot]:
        """The models that sleep there, by name."""
        return [s for s in self.slots.values() if s.tier is Tier.ASLEEP and device in s.devices]

    def waiting(self) -> list[Slot]:
        """Models that are down and asked for, the most urgent first."""
        found = [slot for slot in self._asked.values() if slot.queue and slot.is_down]
        found.sort(key=lambda s: (-s.model.priority, s.queue[0].arrived_s, s.name))
        return found

    def serve_all(self) -> None:
        """Whoever is up serves who waits, as far as its concurrency goes."""
        limit, up = self.setup.concurrency, Tier.UP
        for name in sorted(self._asked):
            slot = self._asked[name]
            if slot.tier is up:
                while slot.queue and slot.in_flight < limit:
                    self.serve(slot, slot.queue.popleft())
            if not slot.queue:
                del self._asked[name]

    def serve(self, slot: Slot, job: Job) -> None:
        if slot.tier is not Tier.UP:
            raise self.books.broken(f"{slot.name!r} serves while it is {slot.tier.value}")
        slot.in_flight += 1
        self.books.serve(job, slot.devices, slot.in_flight)
        self._push(job.service_s, slot, job)

    def take_down(self, slot: Slot) -> float:
        """Free a model's memory; the seconds are to be paid in the next swap."""
        if slot.in_flight:
            raise self.books.broken(f"{slot.name!r} is to leave while it serves")
        level, books = self._level(slot), self.books
        paid = slot.model.costs.sleep[level] if level else slot.model.costs.start
        books.give(slot.name, slot.devices, slot.mib)
        if level:
            books.take(slot.name, slot.devices, self.setup.residue_mib)
            books.take_host(slot.name, _on_host_mib(slot, level))
        books.note("sleep" if level else "stop", slot.name, slot.devices, paid.down_s)
        del self.up[slot.name]
        slot.tier, slot.level = (Tier.ASLEEP, level) if level else (Tier.OFF, 0)
        if not level:
            slot.devices = ()
        return paid.down_s

    def swap(
        self, slot: Slot, devices: tuple[int, ...], victims: Sequence[Slot], owed_s: float = 0.0
    ) -> None:
        """Bring a model up there when the victims, and what is owed from before, have gone."""
        touched = dict.fromkeys(devices)
        for victim in victims:
            touched |= dict.fromkeys(victim.devices)
            owed_s += self.take_down(victim)
        owed_s += self._stop_sleepers(slot, devices)
        asleep, books = slot.tier is Tier.ASLEEP, self.books
        costs = slot.model.costs.sleep[slot.level] if asleep else slot.model.costs.start
        if asleep:
            books.give(slot.name, slot.devices, self.setup.residue_mib)
            books.take_host(slot.name, -_on_host_mib(slot, slot.level))
        books.take(slot.name, devices, slot.mib)
        slot.tier, slot.devices, slot.touched = Tier.MOVING, devices, tuple(touched)
        self.moving += 1
        seconds = owed_s + costs.up_s
        books.begin("wake" if asleep else "start", slot.name, slot.touched, seconds)
        self._push(seconds, slot, None)

    # ------------------------------------------------------------------------------------- inside

    def _stop_sleepers(self, slot: Slot, devices: tuple[int, ...]) -> float:
        """End sleepers whose residue a model needs; returns the seconds that takes."""
        kept = self.setup.residue_mib
        if not kept:
            return 0.0
        owed_s = 0.0
        need = slot.mib - (kept if slot.tier is Tier.ASLEEP else 0)
        for device in devices:
            for sleeper in self.asleep_on(device):
                if self.books.free_mib(device) >= need:
                    break
                if sleeper is not slot:
                    owed_s += self._end_sleep(sleeper)
        return owed_s

    def _end_sleep(self, slot: Slot) -> float:
        self.books.give(slot.name, slot.devices, self.setup.residue_mib)
        self.books.take_host(slot.name, -_on_host_mib(slot, slot.level))
        seconds = slot.model.costs.start.down_s
        self.books.note("stop", slot.name, slot.devices, seconds)
        slot.tier, slot.level, slot.devices = Tier.OFF, 0, ()
        return seconds

    def _push(self, seconds: float, slot: Slot, job: Job | None) -> None:
        """Something will be over: the service of a job, or (None) the move of a model."""
        self._count += 1
        heapq.heappush(self._heap, (self.books.now + seconds, self._count, slot, job))

    def _over(self, slot: Slot, job: Job | None) -> None:
        if job is not None:
            slot.in_flight -= 1
            self.books.served_one(job, slot.devices)
            return
        slot.tier = Tier.UP
        self.up[slot.name] = slot
        self.moving -= 1
        self.books.end(slot.name, slot.touched)

    def _level(self, slot: Slot) -> int:
        """The lightest level of sleep that the host has room for; 0 is a stop."""
        for level in sorted(slot.model.costs.sleep):
            if _on_host_mib(slot, level) <= self.books.host_free_mib:
                return level
        return 0


def _on_host_mib(slot: Slot, level: int) -> int:
    return slot.model.weights_mib if level == WEIGHTS_ON_HOST else 0
