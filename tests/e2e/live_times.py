"""What was live, told to the simulator: how long everything took, and how that compares.

Laws of this file:
- Nothing is decided here: worlds differ from the simulator's in their times alone.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tests.e2e.live_trace import Live, Told, Turn, actions_of, parameters

from modelyard.core.events import EngineNews, Grant, RequestWaits, StartEngine, StopEngine, TimerDue
from modelyard.core.lifecycle import EngineEvent, EngineExited, EngineReady
from modelyard.core.policy import Policy
from modelyard.simulation.books import Move
from modelyard.simulation.values import Job, Setup
from modelyard.simulation.world import World, _Run


@dataclass
class Measured:
    """How long everything took that was live, and when each request came."""

    jobs: list[Job]
    moves: dict[tuple[str, int, str], float]
    timers: list[float] = field(default_factory=list)
    """When timers rang."""
    mean_wait_s: float = 0.0
    over: dict[str, list[float]] = field(default_factory=dict)
    """Seconds more than planned, of every `start`, `stop`, `come` and `end`."""


@dataclass
class _Asked:
    model: str
    arrived_s: float
    planned: Job
    run: int = 0
    granted_s: float = 0.0
    service_s: float = 0.0


def measured(live: Live, setup: Setup, jobs: Sequence[Job]) -> Measured:
    """What the story tells of times."""
    asked = _arrivals(live, jobs)
    _services(live, asked)
    found = Measured(
        [Job(each.model, each.arrived_s, each.service_s) for each in asked], moves_of(live.story)
    )
    found.timers = [
        told.now - live.begun_s for told in live.story if isinstance(told.given[0], TimerDue)
    ]
    planned = {name: model.costs.start for name, model in setup.models.items()}
    for (model, _, what), seconds in found.moves.items():
        expected = planned[model].up_s if what == "start" else planned[model].down_s
        found.over.setdefault(what, []).append(seconds - expected)
    found.over["come"] = [each.arrived_s - each.planned.arrived_s for each in asked]
    found.mean_wait_s = sum(each.granted_s - live.begun_s - each.arrived_s for each in asked)
    found.mean_wait_s /= len(asked)
    found.over["end"] = [each.service_s - each.planned.service_s for each in asked]
    return found


def moves_of(story: Sequence[Told]) -> dict[tuple[str, int, str], float]:
    """Seconds of every start and stop that is over, by model, run, and which of the two."""
    begun: dict[tuple[str, int, str], float] = {}
    took: dict[tuple[str, int, str], float] = {}
    for told in story:
        for action in actions_of(told):
            if isinstance(action, StartEngine):
                begun[action.spec.id, action.run, "start"] = told.now
            elif isinstance(action, StopEngine):
                begun[action.model, action.run, "stop"] = told.now
        event = told.given[0]
        if isinstance(event, EngineNews) and isinstance(event.news, EngineReady | EngineExited):
            what = "start" if isinstance(event.news, EngineReady) else "stop"
            key = (event.model, event.news.run, what)
            took[key] = told.now - begun[key]
    return took


def _arrivals(live: Live, jobs: Sequence[Job]) -> list[_Asked]:
    """The requests as the scheduler saw them come and begin, with the service they asked for."""
    to_come: dict[str, list[Job]] = {}
    for job in reversed(jobs):
        to_come.setdefault(job.model, []).append(job)
    asked: list[_Asked] = []
    by_ticket: dict[int, _Asked] = {}
    for told in live.story:
        if told.what == "lease":
            model = str(told.given[0])
            asked.append(_Asked(model, told.now - live.begun_s, to_come[model].pop()))
            if isinstance(told.answer, int):
                asked[-1].run, asked[-1].granted_s = told.answer, told.now
        elif isinstance(event := told.given[0], RequestWaits):
            by_ticket[event.ticket] = asked[-1]
        for action in actions_of(told):
            if isinstance(action, Grant):
                each = by_ticket[action.ticket]
                each.run, each.granted_s = action.run, told.now
    return asked


def _services(live: Live, asked: Sequence[_Asked]) -> None:
    """Whose release is whose: the end that is expected first came first, run by run."""
    ends: dict[tuple[object, object], list[float]] = {}
    for told in live.story:
        if told.what == "release":
            ends.setdefault((told.given[0], told.given[1]), []).append(told.now)
    for (model, run), times in ends.items():
        served = [each for each in asked if (each.model, each.run) == (model, run)]
        served.sort(key=lambda each: each.granted_s + each.planned.service_s)
        for each, now in zip(served, times, strict=True):
            each.service_s = now - each.granted_s


class MeasuredWorld(World):
    """The simulator with the times that real processes and a real event loop took.

    What was not measured takes what it takes in `setup`; timers ring when they rang live.
    """

    def __init__(self, setup: Setup, policy: Policy, times: Measured) -> None:
        self._times = times
        super().__init__(setup, policy)
        for at_s in times.timers:
            self._clock.add(at_s, None)

    def _begin(self, run: _Run, what: str, seconds: float, news: EngineEvent) -> None:
        took = self._times.moves.get((run.model.name, run.number, what), seconds)
        super()._begin(run, what, took, news)

    def _timer_due(self) -> None:
        self._tell(TimerDue())

    def _arm(self) -> None:
        """All timers are set from the beginning."""


def as_measured(setup: Setup, times: Measured) -> list[Turn]:
    """What the simulator does when everything takes as long as it took."""
    world = MeasuredWorld(setup, parameters(), times)
    jobs = sorted((replace(job) for job in times.jobs), key=lambda job: job.arrived_s)
    return simulated_turns(world.run(jobs).moves)


class JitteryWorld(World):
    """The simulator with moves that take as much longer than planned as some that were live."""

    def __init__(self, setup: Setup, over: Mapping[str, Sequence[float]], seed: int) -> None:
        self._over = over
        self._chance = random.Random(seed)
        super().__init__(setup, parameters())

    def _begin(self, run: _Run, what: str, seconds: float, news: EngineEvent) -> None:
        late = self._chance.choice(self._over[what])
        super()._begin(run, what, max(0.0, seconds + late), news)

    def play(self, jobs: Sequence[Job]) -> Sequence[Move]:
        """The moves for jobs that come and end as much later as some that were live."""
        late = self._late
        moved = [
            replace(
                job, arrived_s=late(job.arrived_s, "come"), service_s=late(job.service_s, "end")
            )
            for job in jobs
        ]
        return self.run(sorted(moved, key=lambda job: job.arrived_s)).moves

    def _late(self, seconds: float, what: str) -> float:
        return max(0.001, seconds + self._chance.choice(self._over[what]))


def simulated_turns(moves: Sequence[Move]) -> list[Turn]:
    return [(move.what, move.model) for move in moves]


# -------------------------------------------------------------------------------------- comparing


def swaps_of(turns: Sequence[Turn]) -> int:
    return sum(what == "start" for what, _ in turns)


def in_common(one: Sequence[Turn], other: Sequence[Turn]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for a in one:
        before = row
        row = [0]
        for at, b in enumerate(other):
            row.append(before[at] + 1 if a == b else max(row[at], before[at + 1]))
    return row[-1]


def likeness(one: Sequence[Turn], other: Sequence[Turn]) -> float:
    """Share of the longer sequence that both have in the same order."""
    return in_common(one, other) / max(len(one), len(other), 1)
