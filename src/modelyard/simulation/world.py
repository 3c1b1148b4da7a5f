"""Engines and clients that the real scheduler commands, on a virtual clock.

Laws of this file:
- The one place that knows `core.Scheduler`: events go in, its actions are performed, and their
  ends are reported as an engine's owner would.
- A run that is to leave first serves what it began; only then does memory move.
- At one moment, arrivals come first, then everything else in the order in which it was begun.
- The scheduler is asked for its timer after every event, and is never entered twice.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from modelyard.core.events import (
    CostKnown,
    EngineNews,
    FootprintLearned,
    Grant,
    ModelsChanged,
    Refuse,
    RequestWaits,
    SchedulerAction,
    SchedulerEvent,
    StartEngine,
    StopEngine,
    SuspendEngine,
    TimerDue,
    WakeEngine,
)
from modelyard.core.footprints import kinds_of
from modelyard.core.lifecycle import EngineAsleep, EngineEvent, EngineExited, EngineReady
from modelyard.core.policy import Policy
from modelyard.core.scheduler import Scheduler
from modelyard.core.specs import (
    HOST_DEVICE,
    Device,
    Limits,
    ModelSpec,
    Profile,
    SleepLevel,
    Task,
)
from modelyard.simulation.books import Books
from modelyard.simulation.values import TICK_EVERY, Job, Model, Setup

GPU = "gpu"
WEIGHTS_ON_HOST = 1
IDLE_TIMERS = 100_000
"""Timers in a row without anything else happening after which a run counts as stuck."""
SPINNING = 1000
"""Timers in a row at one moment after which a real event loop would be said to spin."""


@dataclass(slots=True, eq=False)
class _Run:
    """One engine process."""

    model: Model
    number: int
    devices: tuple[int, ...]
    in_flight: int = 0
    is_up: bool = False
    level: int = 0
    """How deep it sleeps, 0 for awake."""
    going_to: int = 0
    """The level that it is about to sleep at."""
    leaves: StopEngine | SuspendEngine | None = None
    """What it does once nobody is served any more."""
    move: _Move | None = None


@dataclass(slots=True, eq=False)
class _Move:
    """What a run is doing, and what is reported when it is done."""

    run: _Run
    news: EngineEvent
    cancelled: bool = False


@dataclass(slots=True, eq=False)
class _Service:
    job: Job
    run: _Run


_Due = _Move | _Service | None
"""What the clock rings for; None is the scheduler's timer."""


@dataclass(slots=True)
class _Clock:
    """What is going to happen, in order."""

    heap: list[tuple[float, int, _Due]] = field(default_factory=list)
    count: int = 0

    def add(self, at: float, due: _Due) -> None:
        self.count += 1
        heapq.heappush(self.heap, (at, self.count, due))


class World:
    """The real scheduler over a trace."""

    def __init__(self, setup: Setup, policy: Policy) -> None:
        self.setup = setup
        self.books = Books(setup)
        devices = [_device(number, size) for number, size in enumerate(setup.devices_mib)]
        self._numbers = {device.id: number for number, device in enumerate(devices)}
        host = Device(HOST_DEVICE, HOST_DEVICE, setup.host_mib, setup.host_mib)
        self.scheduler = Scheduler(policy, [*devices, host])
        self._runs: dict[tuple[str, int], _Run] = {}
        self._clock = _Clock()
        self._waiting: dict[int, Job] = {}
        self._armed = math.inf
        self._idle_timers = 0
        self._spins = 0
        self._rang_s = -math.inf
        self._begun = 0
        self._tell(ModelsChanged(tuple(spec_of(model, setup) for model in setup.models.values())))
        for event in seed_costs(setup, devices):
            self._tell(event)

    def run(self, jobs: Sequence[Job], tick: Callable[[int], None] | None = None) -> Books:
        """Serve all jobs, which are in the order of their arrival. `tick` hears how many came.

        Raises LawBroken.
        """
        heap, total, came = self._clock.heap, len(jobs), 0
        while came < total or self._waiting or self._serving():
            if came < total and (not heap or jobs[came].arrived_s <= heap[0][0]):
                self.books.now = jobs[came].arrived_s
                self._arrive(came, jobs[came])
                came += 1
                if tick is not None and came % TICK_EVERY == 0:
                    tick(came)
                self._idle_timers = 0
            elif heap:
                self.books.now, _, due = heapq.heappop(heap)
                self._happens(due)
            else:
                raise self.books.broken(f"{len(self._waiting)} requests wait and nothing happens")
        self.books.audit(total)
        return self.books

    # ------------------------------------------------------------------------------------- events

    def _serving(self) -> bool:
        return len(self.books.served) < self._begun

    def _arrive(self, ticket: int, job: Job) -> None:
        number = self.scheduler.lease(job.model, self.books.now)
        if number is not None:
            self._serve(job, number)
            return
        self._waiting[ticket] = job
        self._tell(RequestWaits(job.model, ticket))

    def _happens(self, due: _Due) -> None:
        if due is None:
            self._timer_due()
            return
        self._idle_timers = 0
        if isinstance(due, _Service):
            self._served(due)
        elif not due.cancelled:
            self._moved(due)

    def _timer_due(self) -> None:
        if self.books.now < self._armed:
            return  # an earlier one has rung meanwhile and armed a later
        self._idle_timers += 1
        self._spins = self._spins + 1 if self.books.now == self._rang_s else 0
        self._rang_s = self.books.now
        if self._idle_timers > IDLE_TIMERS or self._spins > SPINNING:
            how = "again and again at this moment" if self._spins > SPINNING else "and nothing else"
            waiting = len(self._waiting)
            raise self.books.broken(f"timers came due {how}, while {waiting} requests wait")
        self._armed = math.inf
        self._tell(TimerDue())

    def _served(self, service: _Service) -> None:
        run, now = service.run, self.books.now
        self.books.served_one(service.job, run.devices)
        run.in_flight -= 1
        if run.leaves is not None and not run.in_flight:
            self._leave(run)
        actions = self.scheduler.release(run.model.name, run.number, now, served=True)
        self._perform(actions)
        if actions or self._waiting:
            self._arm()

    def _moved(self, move: _Move) -> None:
        run, setup, books = move.run, self.setup, self.books
        run.move = None
        books.end(run.model.name, run.devices)
        match move.news:
            case EngineReady():
                run.is_up = True
            case EngineAsleep():
                run.level, run.going_to = run.going_to, 0
                books.give(run.model.name, run.devices, run.model.memory_mib)
                books.take(run.model.name, run.devices, setup.residue_mib)
            case EngineExited():
                held = setup.residue_mib if run.level else run.model.memory_mib
                books.give(run.model.name, run.devices, held)
                books.take_host(run.model.name, -_on_host_mib(run.model, run.level))
                del self._runs[run.model.name, run.number]
        self._tell(EngineNews(run.model.name, move.news))

    # ------------------------------------------------------------------------------------ actions

    def _tell(self, event: SchedulerEvent) -> None:
        self._perform(self.scheduler.handle(event, self.books.now))
        self._arm()

    def _perform(self, actions: Iterable[SchedulerAction]) -> None:
        for action in actions:
            match action:
                case Grant(ticket, _, number):
                    job = self._waiting.pop(ticket, None)
                    if job is None:
                        raise self.books.broken(f"a grant for ticket {ticket}, which nobody holds")
                    self._serve(job, number)
                case StartEngine():
                    self._start(action)
                case StopEngine() | SuspendEngine():
                    self._ask_to_leave(self._found(action.model, action.run), action)
                case WakeEngine():
                    self._wake(self._found(action.model, action.run))
                case Refuse(_, error):
                    raise self.books.broken(f"a request was refused: {error}")

    def _serve(self, job: Job, number: int) -> None:
        run = self._found(job.model, number)
        if not run.is_up or run.leaves is not None:
            raise self.books.broken(f"run {number} of {job.model!r} is to serve, and cannot")
        run.in_flight += 1
        self._begun += 1
        self.books.serve(job, run.devices, run.in_flight)
        self._clock.add(self.books.now + job.service_s, _Service(job, run))

    def _start(self, action: StartEngine) -> None:
        model = self.setup.models[action.spec.id]
        devices = tuple(self._numbers[device] for device in action.placement.devices)
        run = _Run(model, action.run, devices)
        self._runs[model.name, action.run] = run
        self.books.take(model.name, devices, model.memory_mib)
        self._begin(run, "start", model.costs.start.up_s, EngineReady(action.run))

    def _wake(self, run: _Run) -> None:
        model, books = run.model, self.books
        if not run.level or run.move is not None:
            raise books.broken(f"run {run.number} of {model.name!r} is to wake, and is not asleep")
        books.give(model.name, run.devices, self.setup.residue_mib)
        books.take(model.name, run.devices, model.memory_mib)
        books.take_host(model.name, -_on_host_mib(model, run.level))
        seconds, run.level = model.costs.sleep[run.level].up_s, 0
        self._begin(run, "wake", seconds, EngineReady(run.number))

    def _ask_to_leave(self, run: _Run, action: StopEngine | SuspendEngine) -> None:
        if action.drain_s is not None and run.in_flight:
            raise self.books.broken(f"{run.model.name!r} is to be cut while it serves")
        run.leaves = action
        if not run.in_flight:
            self._leave(run)

    def _leave(self, run: _Run) -> None:
        action, run.leaves, run.is_up = run.leaves, None, False
        if run.move is not None:
            if isinstance(run.move.news, EngineExited):
                return
            self._give_up(run, run.move)
        model = run.model
        if isinstance(action, SuspendEngine):
            run.going_to = action.level
            kept = {f"{GPU}{device}": self.setup.residue_mib for device in run.devices}
            kept[HOST_DEVICE] = _on_host_mib(model, action.level)
            self.books.take_host(model.name, kept[HOST_DEVICE])
            down_s = model.costs.sleep[action.level].down_s
            self._begin(run, "sleep", down_s, EngineAsleep(run.number, kept))
        else:
            self._begin(run, "stop", model.costs.start.down_s, EngineExited(run.number))

    def _give_up(self, run: _Run, move: _Move) -> None:
        """A start, a wake or a sleep is not gone through with."""
        move.cancelled = True
        self.books.give_up(run.model.name, run.devices)
        self.books.take_host(run.model.name, -_on_host_mib(run.model, run.going_to))
        run.going_to = 0

    def _begin(self, run: _Run, what: str, seconds: float, news: EngineEvent) -> None:
        self.books.begin(what, run.model.name, run.devices, seconds)
        run.move = _Move(run, news)
        self._clock.add(self.books.now + seconds, run.move)

    def _found(self, model: str, number: int) -> _Run:
        run = self._runs.get((model, number))
        if run is None:
            raise self.books.broken(f"there is no run {number} of {model!r}")
        return run

    def _arm(self) -> None:
        due = self.scheduler.next_timer()
        if due < self._armed:
            self._armed = due
            self._clock.add(due, None)


def spec_of(model: Model, setup: Setup) -> ModelSpec:
    """The model as the scheduler knows it: nothing is refused, nothing goes for idleness."""
    wanted = (GPU,) * model.tensor_parallel
    return ModelSpec(
        model.name,
        "simulated",
        frozenset({Task.CHAT}),
        profiles=(Profile("default", wanted, {GPU: model.memory_mib}),),
        sleep={level: SleepLevel((), ()) for level in model.costs.sleep},
        priority=model.priority,
        pinned=model.pinned,
        replicas=model.replicas,
        limits=Limits(
            idle_sleep_s=None,
            idle_stop_s=None,
            max_wait_s=math.inf,
            max_queue=1 << 60,
            concurrency=setup.concurrency,
        ),
    )


def seed_costs(setup: Setup, devices: Sequence[Device]) -> Iterable[SchedulerEvent]:
    """What a scheduler that has served these models for long would know about them."""
    for model in setup.models.values():
        chosen = devices[: model.tensor_parallel]
        for level in model.costs.sleep:
            kept = {str(at): setup.residue_mib for at in range(model.tensor_parallel)}
            kept[HOST_DEVICE] = _on_host_mib(model, level)
            yield FootprintLearned(model.name, "default", kinds_of(chosen), level, kept)
        steps = {"start": model.costs.start.up_s, "stop": model.costs.start.down_s}
        for level, cost in model.costs.sleep.items():
            steps |= {f"sleep {level}": cost.down_s, f"wake {level}": cost.up_s}
        for step, seconds in steps.items():
            yield CostKnown(model.name, "default", kinds_of(chosen), step, seconds)


def _device(number: int, size_mib: int) -> Device:
    name = f"simulated {size_mib} mib"
    return Device(f"{GPU}{number}", name, size_mib, size_mib, kind="nvidia", index=number)


def _on_host_mib(model: Model, level: int) -> int:
    return model.weights_mib if level == WEIGHTS_ON_HOST else 0
