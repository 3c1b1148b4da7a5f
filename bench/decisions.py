"""What one decision of the scheduler costs, by load and by the number of models.

Plays random arrivals, ends and changes of replicas on the real scheduler and prints the CPU time of
its calls; and that of the looks ahead among them, made while nobody waits without a place.
`python bench/decisions.py --json` prints one object; `growth` is the mean time with the most models
over that with the number before, where it is largest among the loads.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from modelyard.core.events import (
    EngineNews,
    Grant,
    ModelsChanged,
    RequestWaits,
    SchedulerAction,
    SchedulerEvent,
    StartEngine,
    StopEngine,
    TimerDue,
)
from modelyard.core.lifecycle import EngineEvent, EngineExited, EngineReady
from modelyard.core.planning import Planner
from modelyard.core.policy import Policy
from modelyard.core.scheduler import Scheduler
from modelyard.core.specs import Device, Limits, ModelSpec, Profile, Task

T = TypeVar("T")

DEVICES = 8
DEVICE_MIB = 76 * 1024
SIZES_GIB = (8, 11, 15, 15, 24, 25, 25, 39, 41, 52, 62, 76)
LOADS = (0.2, 0.6, 2.0, 8.0)
"""Requests per second, over all models: almost nobody waits with the first, dozens of models wait
with the last."""
SERVICE_S, UP_S, DOWN_S = 4.0, 3.0, 1.0


class Watched(Scheduler):
    """A scheduler that notes what its looks ahead take."""

    def __init__(self, policy: Policy, devices: list[Device]) -> None:
        super().__init__(policy, devices)
        self.looks: list[float] = []

    def _foresee(self, planner: Planner, now: float) -> None:
        before, began = self._looked_ahead, time.thread_time()
        super()._foresee(planner, now)
        if self._looked_ahead != before:
            self.looks.append(time.thread_time() - began)


class Played:
    """A scheduler, its engines and its clients on a virtual clock."""

    def __init__(self, models: int, load: float, seed: int) -> None:
        self.dice = random.Random(seed)
        self._load = load
        devices = [
            Device(f"gpu{n}", "Bench GPU", DEVICE_MIB, DEVICE_MIB, "nvidia", n)
            for n in range(DEVICES)
        ]
        self.scheduler = Watched(Policy(), [*devices, Device("cpu", "cpu", 1 << 20, 1 << 20)])
        self.spent: list[float] = []
        self.now = 0.0
        self._heap: list[tuple[float, int, object]] = []
        self._count = itertools.count()
        self._tickets = itertools.count()
        self._in_flight: dict[tuple[str, int], int] = {}
        self._leaving: set[tuple[str, int]] = set()
        self.names = [f"m{number:04}" for number in range(models)]
        self.weights = [1.0 / (rank + 1) for rank in range(models)]
        self._tell(ModelsChanged(tuple(self._spec(name) for name in self.names)))
        self.spent.clear()

    def _spec(self, name: str) -> ModelSpec:
        mib = self.dice.choice(SIZES_GIB) * 1024
        limits = Limits(max_wait_s=1e9, concurrency=16, idle_sleep_s=None, idle_stop_s=3600)
        profile = Profile("default", ("gpu",), {"gpu": mib})
        return ModelSpec(name, "bench", frozenset({Task.CHAT}), profiles=(profile,), limits=limits)

    def play(self, requests: int) -> None:
        """So many arrivals, and what follows from them until the last has come."""
        for _ in range(requests):
            arrives = self.now + self.dice.expovariate(self._load)
            self._until(arrives)
            self.now = arrives
            (model,) = self.dice.choices(self.names, self.weights)
            run = self._timed(partial(self.scheduler.lease, model, self.now))
            if run is not None:
                self._begin(model, run)
            else:
                self._tell(RequestWaits(model, next(self._tickets)))

    def _until(self, moment: float) -> None:
        while True:
            due = self.scheduler.next_timer()
            first = self._heap[0][0] if self._heap else float("inf")
            if min(due, first) > moment:
                return
            if due < first:
                self.now = max(self.now, due)
                self._tell(TimerDue())
            else:
                self.now, _, what = heapq.heappop(self._heap)
                self._happens(what)

    def _happens(self, what: object) -> None:
        if isinstance(what, EngineNews):
            self._tell(what)
            return
        model, run = self._pair(what)
        self._in_flight[model, run] -= 1
        if (model, run) in self._leaving and not self._in_flight[model, run]:
            self._exit(model, run)
        self._perform(
            self._timed(lambda: self.scheduler.release(model, run, self.now, served=True))
        )

    @staticmethod
    def _pair(what: object) -> tuple[str, int]:
        assert isinstance(what, tuple)
        model, run = what
        return model, run

    def _tell(self, event: SchedulerEvent) -> None:
        self._perform(self._timed(lambda: self.scheduler.handle(event, self.now)))

    def _timed(self, call: Callable[[], T]) -> T:
        began = time.thread_time()
        result = call()
        self.spent.append(time.thread_time() - began)
        return result

    def _perform(self, actions: list[SchedulerAction]) -> None:
        for action in actions:
            match action:
                case StartEngine(spec, run):
                    self._in_flight[spec.id, run] = 0
                    self._later(UP_S, spec.id, EngineReady(run))
                case StopEngine(model, run):
                    self._leaving.add((model, run))
                    if not self._in_flight[model, run]:
                        self._exit(model, run)
                case Grant(_, model, run):
                    self._begin(model, run)

    def _begin(self, model: str, run: int) -> None:
        self._in_flight[model, run] += 1
        self._push(self.dice.expovariate(1 / SERVICE_S), (model, run))

    def _exit(self, model: str, run: int) -> None:
        self._leaving.discard((model, run))
        self._later(DOWN_S, model, EngineExited(run))

    def _later(self, seconds: float, model: str, news: EngineEvent) -> None:
        self._push(seconds, EngineNews(model, news))

    def _push(self, seconds: float, what: object) -> None:
        heapq.heappush(self._heap, (self.now + seconds, next(self._count), what))


def measure(models: int, load: float, requests: int) -> dict[str, float]:
    """Microseconds of one decision, and of one look ahead."""
    played = Played(models, load, seed=1)
    played.play(requests // 4)
    played.spent.clear()
    played.scheduler.looks.clear()
    played.play(requests)
    looks = played.scheduler.looks
    return {
        "load": load,
        "models": models,
        "decisions": len(played.spent),
        **_microseconds(played.spent, ""),
        "looks": len(looks),
        **_microseconds(looks or [0.0], "look_"),
    }


def _microseconds(seconds: list[float], prefix: str) -> dict[str, float]:
    spent = sorted(1e6 * each for each in seconds)
    return {
        f"{prefix}mean_us": sum(spent) / len(spent),
        f"{prefix}p50_us": spent[len(spent) // 2],
        f"{prefix}p99_us": spent[int(len(spent) * 0.99)],
    }


def main() -> int:
    """Print the table, or with --json one object."""
    parser = argparse.ArgumentParser(description="What one decision of the scheduler costs.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--models", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--loads", type=float, nargs="+", default=LOADS)
    parser.add_argument("--requests", type=int, default=2000)
    args = parser.parse_args()
    found = [
        [measure(models, load, args.requests) for models in args.models] for load in args.loads
    ]
    if args.json:
        pairs = [(by_models[-2:][0], by_models[-1]) for by_models in found]
        growth = max(last["mean_us"] / before["mean_us"] for before, last in pairs)
        rows = list(itertools.chain.from_iterable(found))
        json.dump({"devices": DEVICES, "growth": growth, "rows": rows}, sys.stdout, indent=1)
        print()
        return 0
    print("".join(f"{key:>13}" for key in found[0][0]))
    for row in itertools.chain.from_iterable(found):
        print("".join(f"{value:13.5g}" for value in row.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
