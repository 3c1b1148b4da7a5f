"""A machine that only exists in its books, driven by a real scheduler.

Laws of this file:
- The machine notes itself what each engine holds, which requests it has and what it is doing. It
  never reads these from the scheduler, and compares them with it after every step.
- What an action must not do is asserted when the action comes, not afterwards.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

from modelyard.core.errors import ModelyardError
from modelyard.core.events import (
    EngineNews,
    Grant,
    ModelsChanged,
    Refuse,
    RequestLeft,
    RequestWaits,
    SchedulerAction,
    SchedulerEvent,
    StartEngine,
    StopEngine,
    SuspendEngine,
    TimerDue,
    WakeEngine,
)
from modelyard.core.explain import why_waiting
from modelyard.core.lifecycle import (
    EngineAsleep,
    EngineExited,
    EngineReady,
    SleepFailed,
    State,
    WakeFailed,
)
from modelyard.core.policy import Policy
from modelyard.core.scheduler import Scheduler
from modelyard.core.specs import HOST_DEVICE, Device, ModelSpec, Placement
from modelyard.core.state import GOING, ReplicaState

NOT_THE_POLICY = (
    "stopped by a person",
    "restarted by a person",
    "put to sleep by a person",
    "the server is shutting down",
    "its definition changed",
    "removed",
    "its device",
)
"""How reasons begin for which an engine may be cut off at its drain's end."""
RINGS = 6
"""Timer events that may come at one moment; more are a scheduler that turns in circles."""
CALM = frozenset({"ready", "asleep"})
"""What an engine does while its memory stays where it is."""
LEAVING = frozenset({"suspending", "stopping"})


@dataclass(slots=True, eq=False)
class Engine:
    """One run of one replica."""

    model: str
    run: int
    number: int
    full_mib: dict[str, int]
    """What it holds awake."""
    pinned: bool
    doing: str = "starting"
    holds_mib: dict[str, int] = field(default_factory=dict)
    level: int = 0
    may_cut: bool = False
    """Whether it was told a bound for its drain."""
    suspected: bool = False

    @property
    def id(self) -> tuple[str, int]:
        return self.model, self.run

    def __repr__(self) -> str:
        return f"{self.model}#{self.number} run {self.run} {self.doing} {self.holds_mib}"


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that nobody has decided about yet."""

    ticket: int
    model: str
    key: str
    priority: int
    at: float


class Machine:
    """Devices, engines and clients, and what the scheduler makes of them."""

    def __init__(
        self, specs: Iterable[ModelSpec], devices: Iterable[Device], policy: Policy
    ) -> None:
        self.now = 1000.0
        self.devices = tuple(devices)
        self.total_mib = {device.id: device.total_mib for device in self.devices}
        self.scheduler = Scheduler(policy, self.devices)
        self.engines: dict[tuple[str, int], Engine] = {}
        self.waiting: dict[int, Asked] = {}
        self.granted: dict[int, float] = {}
        """Seconds that each request waited."""
        self.refused: dict[int, ModelyardError] = {}
        self.left: set[int] = set()
        self.leases: dict[int, tuple[str, int]] = {}
        self.broken: dict[int, tuple[str, int]] = {}
        """Leases whose engine is gone; their clients have not noticed."""
        self.tickets = itertools.count(1)
        self.lenient = ""
        """The model whose engine failed to sleep or to wake: it ends without a decision."""
        self.tell(ModelsChanged(tuple(specs)))

    # ------------------------------------------------------------------------------------- events

    def tell(self, event: SchedulerEvent) -> list[SchedulerAction]:
        actions = self.scheduler.handle(event, self.now)
        self.perform(actions)
        return actions

    def perform(self, actions: Iterable[SchedulerAction]) -> None:
        for action in actions:
            match action:
                case StartEngine():
                    self._start(action)
                case StopEngine(model, run):
                    self._stop(self.engines[model, run], action)
                case SuspendEngine(model, run):
                    self._suspend(self.engines[model, run], action)
                case WakeEngine(model, run, level):
                    self._wake(self.engines[model, run], level)
                case Grant(ticket, model, run):
                    self._grant(ticket, model, run)
                case Refuse(ticket, error):
                    assert ticket in self.waiting, f"{ticket} refused, and it does not wait"
                    del self.waiting[ticket]
                    self.refused[ticket] = error

    def passes(self, seconds: float) -> None:
        """Time goes by, with a timer event at every deadline on the way."""
        until, rang_at, rings = self.now + seconds, -1.0, 0
        while (due := self.scheduler.next_timer()) <= until:
            rings = rings + 1 if due <= rang_at else 1
            assert rings <= RINGS, f"the alarm rings for ever at {due}"
            self.now = rang_at = max(self.now, due)
            self.tell(TimerDue())
        self.now = until

    # ------------------------------------------------------------------------------------ actions

    def _start(self, action: StartEngine) -> None:
        spec, placed = action.spec, action.placement
        same = [each for each in self.engines.values() if each.model == spec.id]
        assert action.number not in {each.number for each in same}, f"two engines of {action.key}"
        engine = Engine(spec.id, action.run, action.number, dict(placed.claims_mib), spec.pinned)
        assert engine.id not in self.engines, f"{engine} has the number of another"
        assert engine.id not in {*self.leases.values(), *self.broken.values()}, (
            f"{engine} has the number of an earlier run whose requests are not over"
        )
        self._is_possible(spec, placed)
        self._moves_alone(engine)
        engine.holds_mib = dict(engine.full_mib)
        self.engines[engine.id] = engine

    def _is_possible(self, spec: ModelSpec, placed: Placement) -> None:
        present = {device.id for device in self.devices}
        assert placed.claims_mib.keys() <= present, f"{spec.id} starts on what is gone: {placed}"
        profile = next((each for each in spec.profiles if each.name == placed.profile), None)
        assert profile is not None, f"{spec.id} starts by a profile that is gone: {placed}"
        assert len(profile.devices) == len(placed.devices)
        for name, device in zip(profile.devices, placed.devices, strict=True):
            held, needed = placed.claims_mib[device], profile.memory_mib.get(name, 0)
            assert held >= needed, f"{spec.id} starts with {held} MiB of the {needed} it needs"

    def _stop(self, engine: Engine, action: StopEngine) -> None:
        if not (action.why.startswith(NOT_THE_POLICY) or self.lenient == engine.model):
            assert engine.doing != "stopping", f"{engine} is stopped twice: {action}"
            self._by_policy(engine, action.drain_s, action.why)
            self._moves_alone(engine)
        if engine.doing == "suspending" and HOST_DEVICE not in engine.full_mib:
            engine.holds_mib.pop(HOST_DEVICE, None)  # what it had copied there is let go
        engine.doing = "stopping"
        engine.may_cut = action.drain_s is not None

    def _suspend(self, engine: Engine, action: SuspendEngine) -> None:
        assert engine.doing == "ready", f"{engine} is put to sleep"
        if not action.why.startswith(NOT_THE_POLICY):
            self._by_policy(engine, action.drain_s, action.why)
        self._moves_alone(engine)
        engine.doing = "suspending"
        engine.level = action.level
        engine.may_cut = action.drain_s is not None
        kept_on_host = sum(self._kept(engine, HOST_DEVICE))
        if HOST_DEVICE not in engine.full_mib and kept_on_host:
            engine.holds_mib[HOST_DEVICE] = kept_on_host  # copied before the GPU is given back

    def _wake(self, engine: Engine, level: int) -> None:
        assert (engine.doing, engine.level) == ("asleep", level)
        self._moves_alone(engine)
        engine.doing = "waking"
        engine.holds_mib = dict(engine.full_mib)

    def _grant(self, ticket: int, model: str, run: int) -> None:
        asked = self.waiting.pop(ticket, None)
        assert asked is not None, f"{ticket} granted, and it does not wait"
        assert asked.model == model
        is_aged = self._has_aged(asked)
        for other in self.waiting.values():
            if other.model == model:
                assert other.priority <= asked.priority or is_aged, f"{asked} before {other}"
                older = (other.key, other.priority) == (asked.key, asked.priority)
                assert not (older and other.ticket < ticket), f"{asked} before {other}"
        self._serves(model, run)
        self.granted[ticket] = self.now - asked.at
        self.leases[ticket] = model, run

    def _has_aged(self, asked: Asked) -> bool:
        """Whether one of its priority has waited too long behind higher ones."""
        like = [each for each in self.waiting.values() if each.model == asked.model]
        since = min(e.at for e in [asked, *like] if e.priority == asked.priority)
        return self.now - since >= self.scheduler.policy.fair_after_s - 1e-6

    def _serves(self, model: str, run: int) -> None:
        engine = self.engines[model, run]
        assert engine.doing == "ready", f"{engine} gets a request"
        assert not engine.suspected, f"{engine} gets a request"
        replica = self.scheduler.models[model].replica_of(run)
        assert replica is not None
        assert not self._was_closed(replica), f"a request behind the closed gate of {engine}"
        bound = replica.spec.limits.concurrency
        assert bound is None or self.in_flight(engine) < bound, f"{engine} has too many requests"

    def _was_closed(self, replica: ReplicaState) -> bool:
        """Whether its gate was closed before this moment, and still is."""
        return replica.ready_since < self.now and any(
            leaver is replica and each.reservation.since < self.now
            for slot in self.scheduler.models.values()
            for each in slot.replicas
            if each.reservation is not None and replica.promised_to == each.spec.id
            for leaver, _ in each.reservation.leaving
        )

    def _by_policy(self, engine: Engine, drain_s: float | None, why: str) -> None:
        assert drain_s is None, f"{engine} is cut off after {drain_s} s {why}"
        assert not self.in_flight(engine), f"{engine} leaves with requests {why}"
        assert not engine.pinned, f"{engine} is pinned and leaves {why}"

    def _moves_alone(self, engine: Engine) -> None:
        gpus = engine.full_mib.keys() - {HOST_DEVICE}
        for other in self.engines.values():
            if other is not engine and other.doing not in CALM:
                both = gpus & other.full_mib.keys()
                assert not both, f"{engine} moves beside {other} on {both}"

    # ------------------------------------------------------------------------------------ clients

    def in_flight(self, engine: Engine) -> int:
        return sum(1 for lease in self.leases.values() if lease == engine.id)

    def ask(self, model: str, key: str = "", priority: int = 0, prefix: int | None = None) -> int:
        ticket = next(self.tickets)
        run = self.scheduler.lease(model, self.now, prefix)
        if run is not None:
            self._serves(model, run)
            self.granted[ticket] = 0.0
            self.leases[ticket] = model, run
        else:
            self.waiting[ticket] = Asked(ticket, model, key, priority, self.now)
            self.tell(RequestWaits(model, ticket, key, priority))
        return ticket

    def cancel(self, ticket: int) -> None:
        asked = self.waiting.pop(ticket)
        self.left.add(ticket)
        self.tell(RequestLeft(asked.model, ticket))

    def finish(self, ticket: int, *, served: bool = True) -> None:
        """A request is over; one whose engine is gone is noticed now, and changes nothing."""
        if ticket in self.broken:
            model, run = self.broken.pop(ticket)
            served = False
        else:
            model, run = self.leases.pop(ticket)
        self.perform(self.scheduler.release(model, run, self.now, served=served))

    # ------------------------------------------------------------------------------------ engines

    def becomes_ready(self, engine: Engine) -> None:
        if engine.doing in ("starting", "waking"):
            engine.doing = "ready"
        self.tell(EngineNews(engine.model, EngineReady(engine.run)))

    def falls_asleep(self, engine: Engine) -> None:
        """It sleeps; its requests are over, or they are cut off where it was told a bound."""
        assert self.drains(engine)
        kept = {device: sum(self._kept(engine, device)) for device in self._devices_of(engine)}
        engine.holds_mib = dict(kept)
        if engine.doing == "suspending":
            engine.doing = "asleep"
        self.tell(EngineNews(engine.model, EngineAsleep(engine.run, kept)))

    def fails_to_sleep(self, engine: Engine) -> None:
        assert self.drains(engine)
        self.lenient = engine.model
        self.tell(EngineNews(engine.model, SleepFailed(engine.run, "kept its memory")))
        self.lenient = ""

    def fails_to_wake(self, engine: Engine) -> None:
        self.lenient = engine.model
        self.tell(EngineNews(engine.model, WakeFailed(engine.run, "500")))
        self.lenient = ""

    def exits(self, engine: Engine, reason: str = "", *, permanent: bool = False) -> None:
        del self.engines[engine.id]
        for ticket, lease in tuple(self.leases.items()):
            if lease == engine.id:
                self.broken[ticket] = self.leases.pop(ticket)
        self.tell(EngineNews(engine.model, EngineExited(engine.run, reason, permanent)))

    def drains(self, engine: Engine) -> bool:
        """Whether nothing is in flight; what may be cut off is."""
        if engine.may_cut:
            for ticket, lease in tuple(self.leases.items()):
                if lease == engine.id:
                    self.finish(ticket, served=False)
        return not self.in_flight(engine)

    def _devices_of(self, engine: Engine) -> set[str]:
        return {*engine.full_mib, HOST_DEVICE}

    def _kept(self, engine: Engine, device: str) -> Iterable[int]:
        """What it keeps asleep: a little on each GPU, at level 1 its weights on the host."""
        for held, mib in engine.full_mib.items():
            if held == device:
                yield mib if device == HOST_DEVICE else min(mib, 200 * engine.level)
            elif device == HOST_DEVICE and engine.level == 1:
                yield mib

    # --------------------------------------------------------------------------------- invariants

    def used_mib(self, device: str) -> int:
        return sum(engine.holds_mib.get(device, 0) for engine in self.engines.values())

    def check(self) -> None:
        """What must hold at any moment."""
        for device, most in self.total_mib.items():
            used = self.used_mib(device)
            assert used <= most, f"overcommitted {device}: {[*self.engines.values()]}"
        models = self.scheduler.models
        for engine in self.engines.values():
            replica = models[engine.model].replica_of(engine.run)
            assert replica is not None, f"nobody knows {engine}"
            assert replica.in_flight == self.in_flight(engine), f"lost or doubled lease: {replica}"
            for device, mib in engine.holds_mib.items():
                if device == HOST_DEVICE and engine.level and engine.doing in LEAVING:
                    continue  # its copy on the host counts once it was seen
                assert mib <= replica.held_mib.get(device, 0), f"{engine}: {replica.held_mib}"
        for slot in models.values():
            queued = {
                ticket for ticket, asked in self.waiting.items() if asked.model == slot.spec.id
            }
            assert set(slot.queue) == queued, f"lost request of {slot.spec.id}"
            assert slot.queue or slot.wanted or not queued
            if slot.queue:
                assert why_waiting(models, self.devices, slot.spec.id, self.now)
                assert self.scheduler.outlook(slot.spec.id, self.now).expected_s >= 0.0
        self._check_promises()

    def _check_promises(self) -> None:
        replicas = [each for slot in self.scheduler.models.values() for each in slot.replicas]
        reserved = [each for each in replicas if each.reservation is not None]
        for replica in reserved:
            assert replica.model.wanted, f"a promise to {replica}, whom nobody wants"
            assert replica.state not in (State.READY, State.STARTING, State.WAKING), f"{replica}"
        for replica in replicas:
            if replica.state is State.READY:
                assert (replica.spec.id, replica.life.run) in self.engines
            if not replica.promised_to or replica.state in {*GOING, State.RESTARTING}:
                continue
            leaving = {
                id(leaver)
                for each in reserved
                if each.spec.id == replica.promised_to and each.reservation is not None
                for leaver, _ in each.reservation.leaving
            }
            assert id(replica) in leaving, f"{replica} is closed for nobody"
