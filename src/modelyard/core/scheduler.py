"""Who runs, who waits, who leaves: events and `now` come in, actions go out.

Laws of this file:
- `Scheduler` owns every model's state, queue, leases and claims. Nobody else writes them.
- A claim is held from the decision to start until no process of the run is left, so two starts can
  never promise the same memory.
- Nobody is cut by a decision: models in use leave by a drain.
- Who starts and who leaves is decided in `planning.py`; here it is carried out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from modelyard.core import admission, planning
from modelyard.core.errors import (
    EngineStartFailed,
    ModelNotFound,
    ModelStopped,
    ModelyardError,
    QueueFull,
    WaitTimeout,
)
from modelyard.core.events import (
    Changed,
    DevicesChanged,
    EngineCleared,
    EngineNews,
    EngineSuspected,
    FootprintLearned,
    Grant,
    MemoryMeasured,
    ModelEvent,
    ModelsChanged,
    Refuse,
    RequestLeft,
    RequestWaits,
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
from modelyard.core.explain import why_waiting
from modelyard.core.lifecycle import (
    ALIVE,
    HOLDING,
    Action,
    EngineAsleep,
    EngineEvent,
    EngineExited,
    EngineReady,
    Event,
    Replica,
    RestartAsked,
    RestartPutOff,
    SleepAsked,
    SleepFailed,
    StartAsked,
    State,
    StopAsked,
    WakeAsked,
    WakeFailed,
)
from modelyard.core.planning import Leave, Start, Wake
from modelyard.core.policy import Policy
from modelyard.core.specs import Device, ModelSpec
from modelyard.core.state import ModelState


class Scheduler:
    """The state of all models and devices, and the decisions over it."""

    def __init__(self, policy: Policy, devices: Sequence[Device]) -> None:
        self.policy = policy
        self.devices = tuple(devices)
        self.models: dict[str, ModelState] = {}
        self._closing = False
        self._somebody_waits = False

    # ------------------------------------------------------------------------------------ hot path

    def lease(self, model: str, now: float) -> int | None:
        """Take a lease on a ready replica with room: its run number, or None if one must wait."""
        slot = self.models[model]
        if slot.queue or not slot.has_room():
            return None
        slot.in_flight += 1
        slot.last_used = now
        return slot.replica.run

    def release(self, model: str, run: int, now: float, *, served: bool) -> list[SchedulerAction]:
        """Give a lease back; `served` says that the engine answered properly."""
        slot = self.models.get(model)
        if slot is None or slot.replica.run != run or not slot.in_flight:
            return []
        slot.in_flight -= 1
        slot.last_used = now
        if served:
            slot.replica.forgive()
        if slot.queue or (self._somebody_waits and not slot.in_flight):
            return self._decide(now)
        return []

    # -------------------------------------------------------------------------------------- events

    def handle(self, event: SchedulerEvent, now: float) -> list[SchedulerAction]:
        """Apply one event and return everything that has to happen because of it.

        Raises InvalidTransition when the lifecycle has no row for what happened.
        """
        return [
            *self._take(event, now),
            *self._timers(now),
            *self._demote(now),
            *self._decide(now),
        ]

    def next_timer(self, now: float) -> float:
        """When `TimerDue` should come if nothing else happens before; infinity for never."""
        return min((at for at in self._deadlines(now) if at > now), default=math.inf)

    def idle_deadline(self, model: str) -> float:
        """When the model will have been idle for too long; infinity if that cannot happen."""
        slot = self.models.get(model)
        return math.inf if slot is None else min(self._idle_until(slot), self._awake_until(slot))

    def fail(self, model: str, reason: str) -> list[SchedulerAction]:
        """Give a model up after a bug of ours: end what it runs, refuse who waits."""
        slot = self.models[model]
        slot.replica.reason = reason
        slot.wanted_since = None
        actions: list[SchedulerAction] = [*self._refuse_all(slot, EngineStartFailed(model, reason))]
        if slot.placement is None:
            slot.replica.state = State.FAILED
        else:
            slot.replica.state = State.STOPPING
            slot.why_stopping = reason
            actions.append(self._stop_action(slot, 0.0))
        return [*actions, Changed(model)]

    # ------------------------------------------------------------------------------------ handlers

    def _take(self, event: SchedulerEvent, now: float) -> Iterable[SchedulerAction]:
        match event:
            case ModelEvent(model) if model in self.models:
                return self._take_for(self.models[model], event, now)
            case RequestWaits(model, ticket):
                return [Refuse(ticket, ModelNotFound(model))]
            case ModelsChanged(specs):
                return self._models_changed(specs, now)
            case DevicesChanged(devices):
                return self._devices_changed(devices)
            case ShutdownAsked():
                return self._shut_down()
            case _:  # late news of a model that is gone; a timer, which has no effect of its own
                return []

    def _take_for(
        self, slot: ModelState, event: SchedulerEvent, now: float
    ) -> Iterable[SchedulerAction]:
        match event:
            case RequestWaits(_, ticket):
                return self._request_waits(slot, ticket, now)
            case RequestLeft(_, ticket):
                slot.queue.pop(ticket, None)
            case StartWanted():
                return self._want(slot, now)
            case StopWanted():
                return self._stop_for_a_person(slot)
            case RestartWanted():
                return self._restart(slot, now)
            case SleepWanted(_, level):
                slot.sleep_asked = level
                slot.bad_sleeper = False
            case EngineNews(_, news):
                return self._engine_news(slot, news, now)
            case EngineSuspected(_, run) | EngineCleared(_, run) if run == slot.replica.run:
                slot.suspected = isinstance(event, EngineSuspected)
            case MemoryMeasured(_, run, used_mib) if run == slot.replica.run:
                slot.used_mib = used_mib
            case FootprintLearned(_, profile, kinds, level, by_position):
                slot.footprints.known[profile, kinds, level] = by_position
        return []

    def _request_waits(
        self, slot: ModelState, ticket: int, now: float
    ) -> Iterator[SchedulerAction]:
        if slot.state is State.FAILED:
            if now < slot.retry_at:
                error = EngineStartFailed(slot.spec.id, slot.replica.reason, hint=self._revival)
                yield Refuse(ticket, error)
                return
            yield from self._revive(slot)
        try:
            if slot.state not in HOLDING:
                admission.check(self.models, self.devices, slot.spec.id)
            if len(slot.queue) >= slot.spec.limits.max_queue:
                raise QueueFull(slot.spec.id, len(slot.queue))
        except ModelyardError as error:
            yield Refuse(ticket, error)
            return
        slot.queue[ticket] = now

    @property
    def _revival(self) -> str:
        return f"tried again after {self.policy.failed_cooldown_s:g} s, or by `modelyard start`"

    def _revive(self, slot: ModelState) -> Iterator[SchedulerAction]:
        slot.replica.forgive()
        yield from self._apply(slot, StopAsked())

    def _want(self, slot: ModelState, now: float) -> Iterator[SchedulerAction]:
        slot.replica.forgive()
        slot.retry_at = now
        if slot.state is State.FAILED:
            yield from self._revive(slot)
        if slot.state not in (State.STARTING, State.READY, State.RESTARTING, State.WAKING):
            slot.wanted_since = now
            yield Changed(slot.spec.id)

    def _stop_for_a_person(self, slot: ModelState) -> Iterator[SchedulerAction]:
        slot.wanted_since = None
        stopped = ModelStopped(f"model {slot.spec.id!r} was stopped while the request waited")
        slot.replica.forgive()
        yield from self._refuse_all(slot, stopped)
        yield from self._stop(slot, "stopped by a person", slot.spec.limits.drain_timeout_s)

    def _restart(self, slot: ModelState, now: float) -> Iterator[SchedulerAction]:
        if slot.state not in HOLDING or slot.asleep_mib:  # it has given its memory away
            yield from self._want(slot, now)
            return
        slot.why_stopping = "restarted by a person"
        yield from self._apply(slot, RestartAsked(), slot.spec.limits.drain_timeout_s)

    def _engine_news(
        self, slot: ModelState, news: EngineEvent, now: float
    ) -> Iterator[SchedulerAction]:
        if news.run != slot.replica.run:
            return
        if isinstance(news, EngineExited) and slot.state is State.RESTARTING:
            others = (other for other in self.models.values() if other is not slot)
            moving = planning.moving_gpus(others, self.devices)
            if not moving.isdisjoint(slot.held_mib):
                slot.wanted_since = now
                yield from self._apply(slot, RestartPutOff())
        before = slot.state
        yield from self._apply(slot, news)
        match news:
            case EngineReady() if slot.state is State.READY:
                slot.ready_since = slot.last_used = now
                slot.wanted_since = None
            case EngineAsleep(_, held_mib) if slot.state is State.ASLEEP:
                slot.asleep_mib = held_mib
            case SleepFailed() | WakeFailed():
                slot.bad_sleeper = True
                slot.why_stopping = slot.replica.reason
            case EngineExited():
                yield from self._after_exit(slot, before, now)

    def _after_exit(self, slot: ModelState, before: State, now: float) -> Iterator[SchedulerAction]:
        slot.in_flight = 0
        slot.suspected = False
        slot.used_mib = {}
        slot.asleep_mib = {}
        if slot.state is State.STARTING:  # restarted: the claim is kept
            slot.started_at = now
            return
        slot.placement = None
        if slot.removed:
            del self.models[slot.spec.id]
        elif slot.state is State.BACKOFF:
            slot.retry_at = now + self._pause(slot.replica.failures, before)
        elif slot.state is State.FAILED:
            slot.retry_at = now + self.policy.failed_cooldown_s
            reason = slot.replica.reason
            failed = EngineStartFailed(slot.spec.id, reason, hint=self._revival)
            yield from self._refuse_all(slot, failed)
            slot.wanted_since = None
        if slot.spec.preload and slot.state in (State.BACKOFF, State.FAILED):
            slot.wanted_since = now

    def _pause(self, failures: int, before: State) -> float:
        """An engine that was ready and died is replaced at once, the first time."""
        if before is State.READY and failures == 1:
            return 0.0
        return min(self.policy.backoff_max_s, self.policy.backoff_s * 2.0 ** (failures - 1))

    def _models_changed(self, specs: Iterable[ModelSpec], now: float) -> Iterator[SchedulerAction]:
        new = {spec.id: spec for spec in specs}
        for model, slot in tuple(self.models.items()):
            if model not in new:
                yield from self._remove(slot)
        for model, spec in new.items():
            known = self.models.get(model)
            if known is None:
                replica = Replica(max_failures=self.policy.max_start_attempts)
                self.models[model] = ModelState(spec, replica, last_used=now)
                if spec.preload:
                    self.models[model].wanted_since = now
                yield Changed(model)
                continue
            known.removed = False
            if not known.spec.runs_like(spec):
                # A restart would keep the old placement, which may be of a profile that is gone.
                known.replica.forgive()
                known.bad_sleeper = False
                yield from self._stop(known, "its definition changed", spec.limits.drain_timeout_s)
            if known.spec != spec:
                known.spec = spec
                yield Changed(model)

    def _remove(self, slot: ModelState) -> Iterator[SchedulerAction]:
        model = slot.spec.id
        slot.removed = True
        slot.wanted_since = None
        yield from self._refuse_all(slot, ModelStopped(f"model {model!r} was removed"))
        yield from self._stop(slot, "removed", slot.spec.limits.drain_timeout_s)
        if slot.state not in HOLDING:
            del self.models[model]
            yield Changed(model)

    def _devices_changed(self, devices: tuple[Device, ...]) -> Iterator[SchedulerAction]:
        """Replicas on a device that vanished end; who waits for what cannot be had is told."""
        self.devices = devices
        present = {device.id for device in devices}
        for slot in self._holders():
            gone = sorted(slot.placement.claims_mib.keys() - present) if slot.placement else []
            if gone and slot.state in ALIVE | {State.RESTARTING}:
                yield from self._stop(slot, f"its device {', '.join(gone)} vanished", 0.0)
        for slot in self.models.values():
            if not slot.queue or slot.state in (State.STARTING, State.READY):
                continue
            try:
                admission.check(self.models, devices, slot.spec.id)
            except ModelyardError as error:
                yield from self._refuse_all(slot, error)

    def _timers(self, now: float) -> Iterator[SchedulerAction]:
        for slot in tuple(self.models.values()):
            limits = slot.spec.limits
            for ticket, arrived in tuple(slot.queue.items()):
                if arrived + limits.max_wait_s > now:
                    break
                del slot.queue[ticket]
                why = why_waiting(self.models, self.devices, slot.spec.id, now)
                waited = f"waited {now - arrived:.0f} s for model {slot.spec.id!r}"
                yield Refuse(ticket, WaitTimeout(f"{waited}: {why}"))
            if slot.state is State.FAILED and slot.wanted and slot.retry_at <= now:
                yield from self._revive(slot)
            if slot.state is State.BACKOFF and not slot.wanted and slot.retry_at <= now:
                yield from self._apply(slot, StopAsked())

    def _demote(self, now: float) -> Iterator[SchedulerAction]:
        """Put to sleep or stop who is unused or told to, one at a time on each GPU."""
        for slot in self.models.values():
            limits, held = slot.spec.limits, slot.held_mib
            if slot.state is not State.READY:
                slot.sleep_asked = 0
            asked = slot.sleep_asked
            unused = min(self._idle_until(slot), self._awake_until(slot)) <= now
            if not asked and not unused:
                continue
            if not planning.moving_gpus(self.models.values(), self.devices).isdisjoint(held):
                continue
            least = asked or planning.WEIGHTS_ON_HOST
            level = planning.lightest_level(slot, self.models, self.devices, at_least=least)
            if asked:
                slot.sleep_asked, slot.wanted_since = 0, None
                why, drain_s = "put to sleep by a person", limits.drain_timeout_s
                if level < planning.STOP:
                    yield from self._sleep(slot, level, why, drain_s)
                else:
                    yield from self._stop(slot, f"{why}, and the host has no room", drain_s)
            elif self._idle_until(slot) <= now:
                yield from self._stop(slot, f"unused for {limits.idle_stop_s:g} s", None)
            elif level < planning.STOP:
                yield from self._sleep(slot, level, f"unused for {limits.idle_sleep_s:g} s", None)

    def _shut_down(self) -> Iterator[SchedulerAction]:
        self._closing = True
        for slot in self.models.values():
            slot.wanted_since = None
            yield from self._refuse_all(slot, ModelStopped("the server is shutting down"))
            yield from self._stop(slot, "the server is shutting down", None)

    # ----------------------------------------------------------------------------------- decisions

    def _decide(self, now: float) -> list[SchedulerAction]:
        actions: list[SchedulerAction] = []
        for slot in self.models.values():
            while slot.queue and slot.has_room():
                ticket = next(iter(slot.queue))
                del slot.queue[ticket]
                slot.in_flight += 1
                slot.last_used = now
                actions.append(Grant(ticket, slot.spec.id, slot.replica.run))
        if not self._closing:
            actions += self._serve_waiting(now)
        self._somebody_waits = any(slot.wanted for slot in self.models.values())
        return actions

    def _serve_waiting(self, now: float) -> Iterator[SchedulerAction]:
        plan = planning.plan(self.models, self.devices, self.policy, now)
        for model, passed_over in plan.passed_over.items():
            self.models[model].passed_over = passed_over
        for step in plan.steps:
            slot = self.models[step.model]
            match step:
                case Leave(_, level, why) if level == planning.STOP:
                    yield from self._stop(slot, why, None)
                case Leave(_, level, why):
                    yield from self._sleep(slot, level, why, None)
                case Wake():
                    slot.started_at = now
                    slot.asleep_mib = {}
                    yield from self._apply(slot, WakeAsked())
                case Start(_, chosen):
                    slot.placement = chosen
                    slot.started_at = now
                    yield from self._apply(slot, StartAsked())

    # ------------------------------------------------------------------------------------- helpers

    def _apply(
        self, slot: ModelState, event: Event, drain_s: float | None = None
    ) -> Iterator[SchedulerAction]:
        action = slot.replica.handle(event)
        if action is Action.START_ENGINE:
            assert slot.placement is not None, "a start without a placement"
            yield StartEngine(slot.spec, slot.replica.run, slot.placement)
        elif action is Action.STOP_ENGINE:
            yield self._stop_action(slot, drain_s)
        elif action is Action.SUSPEND_ENGINE:
            model, run, level = slot.spec.id, slot.replica.run, slot.replica.level
            yield SuspendEngine(model, run, level, drain_s, slot.why_stopping)
        elif action is Action.WAKE_ENGINE:
            yield WakeEngine(slot.spec.id, slot.replica.run, slot.replica.level)
        yield Changed(slot.spec.id)

    def _stop(self, slot: ModelState, why: str, drain_s: float | None) -> Iterator[SchedulerAction]:
        if slot.state is not State.STOPPED:
            slot.why_stopping = why
            yield from self._apply(slot, StopAsked(), drain_s)

    def _sleep(
        self, slot: ModelState, level: int, why: str, drain_s: float | None
    ) -> Iterator[SchedulerAction]:
        slot.why_stopping = why
        yield from self._apply(slot, SleepAsked(level), drain_s)

    def _stop_action(self, slot: ModelState, drain_s: float | None) -> StopEngine:
        model, grace_s = slot.spec.id, slot.spec.limits.stop_grace_s
        return StopEngine(model, slot.replica.run, drain_s, grace_s, slot.why_stopping)

    def _refuse_all(self, slot: ModelState, error: ModelyardError) -> Iterator[SchedulerAction]:
        tickets = tuple(slot.queue)
        slot.queue.clear()
        for ticket in tickets:
            yield Refuse(ticket, error)

    def _holders(self) -> list[ModelState]:
        return [slot for slot in self.models.values() if slot.placement is not None]

    def _idle_until(self, slot: ModelState) -> float:
        idle_stop_s = slot.spec.limits.idle_stop_s
        unused = slot.idle or (slot.state is State.ASLEEP and not slot.wanted)
        if not unused or slot.spec.pinned or idle_stop_s is None:
            return math.inf
        return slot.last_used + idle_stop_s

    def _awake_until(self, slot: ModelState) -> float:
        idle_sleep_s = slot.spec.limits.idle_sleep_s
        may_sleep = slot.idle and slot.sleep_levels and not slot.spec.pinned
        return math.inf if not may_sleep or idle_sleep_s is None else slot.last_used + idle_sleep_s

    def _deadlines(self, now: float) -> Iterator[float]:
        anybody_waits = False
        for slot in self.models.values():
            yield min(self._idle_until(slot), self._awake_until(slot))
            if slot.queue:
                yield next(iter(slot.queue.values())) + slot.spec.limits.max_wait_s
            if slot.state in (State.BACKOFF, State.FAILED):
                yield slot.retry_at
            if slot.wanted and planning.is_startable(slot, now):
                anybody_waits = True
                yield slot.waiting_since + self.policy.fair_after_s
        if anybody_waits:
            for slot in self.models.values():
                if slot.state is State.READY:
                    yield slot.ready_since + self.policy.fair_after_s
