"""Who runs, who waits, who leaves: events and `now` come in, actions go out.

Laws of this file:
- `Scheduler` owns the state of every model and replica, queues, leases and claims. Nobody else
  writes them.
- A claim is held from the decision to start until no process of the run is left, so two starts can
  never promise the same memory.
- Nobody is cut by a decision: models in use leave by a drain.
- Who starts and who leaves is decided in `planning.py`; here it is carried out.
- What happens at every request costs the same however many models there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from modelyard.core import admission, autoscale, placement, planning
from modelyard.core.alarms import Alarms
from modelyard.core.costs import SLEEP, WAKE, Step
from modelyard.core.demand import Demand, Pace
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
    CostKnown,
    CostLearned,
    DemandKnown,
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
from modelyard.core.leaving import STOP, WEIGHTS_ON_HOST, level_to_leave_to
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
from modelyard.core.planning import Leave, Planner, Reserve, Start, Unreserve, Wake
from modelyard.core.policy import Policy
from modelyard.core.queueing import Waiting
from modelyard.core.routing import choose
from modelyard.core.specs import Device, ModelSpec
from modelyard.core.state import GOING, ModelState, ReplicaState

PLAN = ""
"""The alarm that is no model's: somebody who waits has to be looked at again."""


class Scheduler:
    """The state of all models and devices, and the decisions over it."""

    def __init__(self, policy: Policy, devices: Sequence[Device]) -> None:
        self.policy = policy
        self.devices = tuple(devices)
        self.models: dict[str, ModelState] = {}
        self.pace = Pace()
        self._alarms = Alarms()
        self._left = placement.free(devices, ())
        """MiB on each device that no replica counts for."""
        self._holders: dict[str, ReplicaState] = {}
        """The replicas that have a place, by key."""
        self._wanted: dict[str, ModelState] = {}
        """The models that somebody waits for."""
        self._reserved: list[ReplicaState] = []
        """The replicas that memory is promised to."""
        self._changed: set[str] = set()
        """The devices on which something is new since the last plan."""
        self._all_changed = True
        """Whether more is new than can be told by device."""
        self._closing = False

    # ------------------------------------------------------------------------------------ hot path

    def lease(self, model: str, now: float, prefix: int | None = None) -> int | None:
        """Take a lease on a ready replica with room: its run number, or None if one must wait.

        `prefix` is a hash of the beginning of the prompt; like ones go to the same replica.
        """
        slot = self.models[model]
        if slot.queue:
            return None
        replica = choose(slot.replicas, prefix) if len(slot.replicas) > 1 else slot.replicas[0]
        if replica is None or not replica.has_room():
            return None
        slot.demand.arrived(now)
        slot.demand.begun(now)
        self.pace.waited(0.0)
        replica.in_flight += 1
        replica.last_used = now
        return replica.life.run

    def release(self, model: str, run: int, now: float, *, served: bool) -> list[SchedulerAction]:
        """Give a lease back; `served` says that the engine answered properly."""
        slot = self.models.get(model)
        replica = slot.replica_of(run) if slot is not None else None
        if slot is None or replica is None or not replica.in_flight:
            return []
        replica.in_flight -= 1
        replica.last_used = now
        slot.demand.over(now, ended=served)
        if served:
            replica.life.forgive()
        if replica.in_flight:
            return list(self._grants(slot, now)) if slot.queue else []
        self._alarms.set(model, self._unused_until(replica))
        if replica.state in GOING:
            replica.changing_since = now
        if not self._wanted:
            return []
        self._changed.update(replica.held_mib)
        return self._decide(now)

    # -------------------------------------------------------------------------------------- events

    def handle(self, event: SchedulerEvent, now: float) -> list[SchedulerAction]:
        """Apply one event and return everything that has to happen because of it.

        Raises InvalidTransition when the lifecycle has no row for what happened.
        """
        actions = [*self._take(event, now)]
        for subject in self._alarms.due(now):
            if (slot := self.models.get(subject)) is not None:
                actions += self._look_at(slot, now)
        return [*actions, *self._decide(now)]

    def next_timer(self) -> float:
        """When `TimerDue` should come if nothing else happens before; infinity for never."""
        return self._alarms.next()

    def fail(self, model: str, reason: str) -> list[SchedulerAction]:
        """Give a model up after a bug of ours: end what it runs, refuse who waits."""
        slot = self.models[model]
        slot.wanted_since = None
        actions: list[SchedulerAction] = [*self._refuse_all(slot, EngineStartFailed(model, reason))]
        for replica in slot.replicas:
            replica.life.reason = reason
            self._unreserve(replica)
            if replica.placement is None:
                replica.life.state = State.FAILED
            else:
                replica.life.state = State.STOPPING
                replica.why_stopping = reason
                actions.append(self._stop_action(replica, 0.0))
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
                return self._devices_changed(devices, now)
            case ShutdownAsked():
                return self._shut_down(now)
            case _:  # late news of a model that is gone; a timer, which has no effect of its own
                return []

    def _take_for(
        self, slot: ModelState, event: SchedulerEvent, now: float
    ) -> Iterable[SchedulerAction]:
        match event:
            case RequestWaits(_, ticket, key, priority):
                return self._request_waits(slot, Waiting(ticket, now, key, priority))
            case RequestLeft(_, ticket):
                slot.queue.remove(ticket)
                slot.look_at = now
            case StartWanted():
                return self._want(slot, now)
            case StopWanted():
                return self._stop_for_a_person(slot, now)
            case RestartWanted():
                return self._restart(slot, now)
            case SleepWanted(_, level):
                return self._sleep_for_a_person(slot, level, now)
            case EngineNews(_, news):
                return self._engine_news(slot, news, now)
            case _:
                self._learn(slot, event, now)
        return []

    def _learn(self, slot: ModelState, event: SchedulerEvent, now: float) -> None:
        match event:
            case EngineSuspected(_, run) | EngineCleared(_, run):
                if (replica := slot.replica_of(run)) is not None:
                    replica.suspected = isinstance(event, EngineSuspected)
            case MemoryMeasured(_, run, used_mib):
                if (replica := slot.replica_of(run)) is not None:
                    replica.used_mib = used_mib
                    self._count(replica)
            case FootprintLearned(_, profile, kinds, level, by_position):
                slot.footprints.known[profile, kinds, level] = by_position
                slot.ways = slot.change_s = None
                slot.look_at = 0.0
                self._all_changed = True
            case CostKnown(_, profile, kinds, step, seconds):
                slot.change_s = None
                slot.costs.known.setdefault((profile, kinds, Step(step)), seconds)
            case DemandKnown(_, rate, service_s, ended):
                slot.demand.recall(rate, service_s, ended, now)

    def _request_waits(self, slot: ModelState, request: Waiting) -> Iterator[SchedulerAction]:
        now, state = request.arrived, slot.state
        slot.demand.arrived(now)
        if state is State.FAILED:
            failed = slot.best
            if now < failed.retry_at:
                reason = failed.life.reason
                error = EngineStartFailed(slot.spec.id, reason, hint=self._revival)
                yield Refuse(request.ticket, error)
                return
            yield from self._revive(failed, now)
        try:
            if state not in HOLDING:
                admission.check(self.models, self.devices, slot)
            if len(slot.queue) >= slot.spec.limits.max_queue:
                raise QueueFull(slot.spec.id, len(slot.queue), self._next_place_s(slot))
        except ModelyardError as error:
            yield Refuse(request.ticket, error)
            return
        slot.queue.add(request)
        slot.look_at = now
        self._wanted[slot.spec.id] = slot
        self._alarms.set(slot.spec.id, slot.queue.oldest.arrived + slot.spec.limits.max_wait_s)

    def _next_place_s(self, slot: ModelState) -> float:
        """When a place in a full queue is likely to be free again."""
        at_once = sum(each.in_flight for each in slot.serving)
        return max(1.0, slot.demand.service_s / at_once if at_once else slot.demand.service_s)

    @property
    def _revival(self) -> str:
        return f"tried again after {self.policy.failed_cooldown_s:g} s, or by `modelyard start`"

    def _revive(self, replica: ReplicaState, now: float) -> Iterator[SchedulerAction]:
        replica.life.forgive()
        yield from self._apply(replica, StopAsked(), now)

    def _want(self, slot: ModelState, now: float) -> Iterator[SchedulerAction]:
        for replica in slot.replicas:
            replica.life.forgive()
            replica.retry_at = now
            if replica.state is State.FAILED:
                yield from self._revive(replica, now)
        slot.look_at = now
        if not slot.serving:
            slot.wanted_since = now
            self._wanted[slot.spec.id] = slot
            yield Changed(slot.spec.id)

    def _stop_for_a_person(self, slot: ModelState, now: float) -> Iterator[SchedulerAction]:
        slot.wanted_since = None
        stopped = ModelStopped(f"model {slot.spec.id!r} was stopped while the request waited")
        yield from self._refuse_all(slot, stopped)
        for replica in slot.replicas:
            replica.life.forgive()
            replica.evicted = False
            drain_s = slot.spec.limits.drain_timeout_s
            yield from self._stop(replica, "stopped by a person", drain_s, now)

    def _restart(self, slot: ModelState, now: float) -> Iterator[SchedulerAction]:
        running = [each for each in slot.replicas if each.state in HOLDING and not each.asleep_mib]
        if not running:  # they have given their memory away
            yield from self._want(slot, now)
        for replica in running:
            self._unreserve(replica)
            replica.why_stopping = "restarted by a person"
            yield from self._apply(replica, RestartAsked(), now, slot.spec.limits.drain_timeout_s)

    def _sleep_for_a_person(
        self, slot: ModelState, level: int, now: float
    ) -> Iterator[SchedulerAction]:
        slot.bad_sleeper = False
        for replica in slot.replicas:
            if replica.state is State.READY:
                replica.level_asked = level
        yield from self._look_at(slot, now)

    def _engine_news(
        self, slot: ModelState, news: EngineEvent, now: float
    ) -> Iterator[SchedulerAction]:
        replica = slot.replica_of(news.run)
        if replica is None:
            return
        if isinstance(news, EngineExited) and replica.state is State.RESTARTING:
            others = (other for other in self._holders.values() if other is not replica)
            moving = planning.moving_gpus(others, planning.gpus_of(self.devices))
            if not moving.isdisjoint(replica.held_mib):
                slot.wanted_since = now
                self._wanted[slot.spec.id] = slot
                yield from self._apply(replica, RestartPutOff(), now)
        before = replica.state
        self._changed.update(replica.held_mib)
        yield from self._apply(replica, news, now)
        match news:
            case EngineReady() if replica.state is State.READY:
                yield from self._became_ready(replica, before, now)
            case EngineAsleep(_, held_mib) if replica.state is State.ASLEEP:
                replica.asleep_mib = held_mib
                replica.promised_to = ""
                yield from self._took(replica, SLEEP[replica.life.level], now)
            case SleepFailed() | WakeFailed():
                slot.bad_sleeper = True
                replica.why_stopping = replica.life.reason
            case EngineExited():
                yield from self._after_exit(replica, before, now)
        self._count(replica)
        self._changed.update(replica.held_mib)
        yield from self._look_at(slot, now)
        for other in tuple(self._holders.values()):
            yield from self._demote(other, now)

    def _became_ready(
        self, replica: ReplicaState, before: State, now: float
    ) -> Iterator[SchedulerAction]:
        replica.ready_since = replica.last_used = now
        replica.model.wanted_since = None
        replica.evicted = False
        step = WAKE[replica.life.level] if before is State.WAKING else Step.START
        replica.changing_since = replica.started_at
        yield from self._took(replica, step, now)

    def _took(self, replica: ReplicaState, step: Step, now: float) -> Iterator[SchedulerAction]:
        placed = replica.placement
        if placed is None:
            return
        replica.model.change_s = None
        seconds = replica.model.costs.learn(placed, step, now - replica.changing_since)
        yield CostLearned(replica.spec.id, placed.profile, placed.kinds, step.value, seconds)

    def _after_exit(
        self, replica: ReplicaState, before: State, now: float
    ) -> Iterator[SchedulerAction]:
        slot = replica.model
        for _ in range(replica.in_flight):
            slot.demand.over(now, ended=False)
        replica.in_flight = 0
        replica.suspected = False
        replica.promised_to = ""
        replica.used_mib = {}
        replica.asleep_mib = {}
        if before is State.STOPPING:
            yield from self._took(replica, Step.STOP, now)
        if replica.state is State.STARTING:  # restarted: the claim is kept
            replica.started_at = now
            return
        replica.placement = None
        if slot.removed and all(each.placement is None for each in slot.replicas):
            self._count(replica)
            self._forget(slot)
        elif replica.state is State.BACKOFF:
            replica.retry_at = now + self._pause(replica.life.failures, before)
        elif replica.state is State.FAILED:
            replica.retry_at = now + self.policy.failed_cooldown_s
            if not slot.serving:
                reason = replica.life.reason
                failed = EngineStartFailed(slot.spec.id, reason, hint=self._revival)
                yield from self._refuse_all(slot, failed)
                slot.wanted_since = None
        if slot.spec.preload and replica.state in (State.BACKOFF, State.FAILED):
            slot.wanted_since = now
            self._wanted[slot.spec.id] = slot

    def _pause(self, failures: int, before: State) -> float:
        """An engine that was ready and died is replaced at once, the first time."""
        if before is State.READY and failures == 1:
            return 0.0
        return min(self.policy.backoff_max_s, self.policy.backoff_s * 2.0 ** (failures - 1))

    def _models_changed(self, specs: Iterable[ModelSpec], now: float) -> Iterator[SchedulerAction]:
        self._all_changed = True
        new = {spec.id: spec for spec in specs}
        for model, slot in tuple(self.models.items()):
            if model not in new:
                yield from self._remove(slot, now)
        for model, spec in new.items():
            known = self.models.get(model)
            if known is None:
                slot = ModelState(spec, Demand(self.pace, self.policy.rate_memory_s))
                self.models[model] = slot
                self._resize(slot, now)
                if spec.preload or spec.replicas.min:
                    slot.wanted_since = now
                    self._wanted[model] = slot
                yield Changed(model)
                continue
            known.removed = False
            if not known.spec.runs_like(spec):
                # A restart would keep the old placement, which may be of a profile that is gone.
                known.bad_sleeper = False
                for replica in known.replicas:
                    replica.life.forgive()
                    drain_s = spec.limits.drain_timeout_s
                    yield from self._stop(replica, "its definition changed", drain_s, now)
            if known.spec != spec:
                known.spec = spec
                known.ways = known.change_s = None
                known.look_at = 0.0
                self._resize(known, now)
                yield Changed(model)

    def _resize(self, slot: ModelState, now: float) -> None:
        """Have as many replicas as the model may have; those too many go when they have stopped."""
        most = max(1, slot.spec.replicas.max)
        while len(slot.replicas) < most:
            number = len(slot.replicas) + 1
            life = Replica(max_failures=self.policy.max_start_attempts, runs=slot.runs)
            slot.replicas.append(ReplicaState(slot, number, life, last_used=now))
        while len(slot.replicas) > most and slot.replicas[-1].placement is None:
            slot.replicas.pop()

    def _remove(self, slot: ModelState, now: float) -> Iterator[SchedulerAction]:
        model = slot.spec.id
        slot.removed = True
        slot.wanted_since = None
        yield from self._refuse_all(slot, ModelStopped(f"model {model!r} was removed"))
        for replica in slot.replicas:
            yield from self._stop(replica, "removed", slot.spec.limits.drain_timeout_s, now)
        if all(replica.state not in HOLDING for replica in slot.replicas):
            self._forget(slot)
            yield Changed(model)

    def _forget(self, slot: ModelState) -> None:
        del self.models[slot.spec.id]
        self._wanted.pop(slot.spec.id, None)

    def _devices_changed(
        self, devices: tuple[Device, ...], now: float
    ) -> Iterator[SchedulerAction]:
        """Replicas on a device that vanished end; who waits for what cannot be had is told."""
        self.devices = devices
        self._all_changed = True
        self._left = placement.free(devices, (each.held_mib for each in self._holders.values()))
        for slot in self.models.values():
            slot.ways = slot.change_s = None
        present = {device.id for device in devices}
        for replica in tuple(self._holders.values()):
            claims = replica.placement.claims_mib if replica.placement else {}
            gone = sorted(claims.keys() - present)
            if gone and replica.state in ALIVE | {State.RESTARTING}:
                yield from self._stop(replica, f"its device {', '.join(gone)} vanished", 0.0, now)
        for slot in tuple(self._wanted.values()):
            slot.look_at = 0.0
            if not slot.queue or slot.serving:
                continue
            try:
                admission.check(self.models, devices, slot)
            except ModelyardError as error:
                yield from self._refuse_all(slot, error)

    def _shut_down(self, now: float) -> Iterator[SchedulerAction]:
        self._closing = True
        for slot in self.models.values():
            slot.wanted_since = None
            yield from self._refuse_all(slot, ModelStopped("the server is shutting down"))
            for replica in slot.replicas:
                yield from self._stop(replica, "the server is shutting down", None, now)

    # -------------------------------------------------------------------------------------- timers

    def _look_at(self, slot: ModelState, now: float) -> Iterator[SchedulerAction]:
        """Do what is due for one model, and set its next alarm."""
        yield from self._time_out(slot, now)
        for replica in slot.replicas:
            yield from self._retry(replica, slot, now)
            yield from self._demote(replica, now)
        while len(slot.replicas) > max(1, slot.spec.replicas.max):
            if slot.replicas[-1].placement is not None:
                break
            slot.replicas.pop()
        self._alarms.set(slot.spec.id, self._next_look(slot, now))

    def _next_look(self, slot: ModelState, now: float) -> float:
        """When something is due next. What is due and cannot be yet waits for news of an engine."""
        times = [self._unused_until(replica) for replica in slot.replicas]
        if slot.queue:
            times.append(slot.queue.oldest.arrived + slot.spec.limits.max_wait_s)
        for replica in slot.replicas:
            if replica.state is State.BACKOFF or (replica.state is State.FAILED and slot.wanted):
                times.append(replica.retry_at)
        return min((at for at in times if at > now), default=math.inf)

    def _time_out(self, slot: ModelState, now: float) -> Iterator[SchedulerAction]:
        most = slot.spec.limits.max_wait_s
        while slot.queue and slot.queue.oldest.arrived + most <= now:
            request = slot.queue.oldest
            why = why_waiting(self.models, self.devices, slot.spec.id, now)
            slot.queue.remove(request.ticket)
            waited = f"waited {now - request.arrived:.0f} s for model {slot.spec.id!r}"
            yield Refuse(request.ticket, WaitTimeout(f"{waited}: {why}"))

    def _retry(
        self, replica: ReplicaState, slot: ModelState, now: float
    ) -> Iterator[SchedulerAction]:
        if replica.retry_at > now:
            return
        if replica.state is State.FAILED and slot.wanted:
            yield from self._revive(replica, now)
        if replica.state is State.BACKOFF:
            slot.look_at = now
            if not slot.wanted:
                yield from self._apply(replica, StopAsked(), now)

    def _demote(self, replica: ReplicaState, now: float) -> Iterator[SchedulerAction]:
        """Put to sleep or stop who is unused or told to, one at a time on each GPU."""
        slot, limits = replica.model, replica.spec.limits
        if replica.state is not State.READY:
            replica.level_asked = 0
        asked = replica.level_asked
        if not asked and self._unused_until(replica) > now:
            return
        gpus = planning.gpus_of(self.devices)
        if not planning.moving_gpus(self._holders.values(), gpus).isdisjoint(replica.held_mib):
            return  # looked at again when that is over
        level = level_to_leave_to(replica, self._left, at_least=asked or WEIGHTS_ON_HOST)
        if asked:
            replica.level_asked, slot.wanted_since = 0, None
            why, drain_s = "put to sleep by a person", limits.drain_timeout_s
            if level < STOP:
                yield from self._sleep(replica, level, why, drain_s, now)
            else:
                yield from self._stop(replica, f"{why}, and the host has no room", drain_s, now)
        elif self._stop_after(replica) <= now:
            yield from self._stop(replica, f"unused for {now - replica.last_used:.0f} s", None, now)
        elif level < STOP:
            yield from self._sleep(
                replica, level, f"unused for {limits.idle_sleep_s:g} s", None, now
            )

    def _unused_until(self, replica: ReplicaState) -> float:
        return min(self._stop_after(replica), self._sleep_after(replica))

    def _stop_after(self, replica: ReplicaState) -> float:
        slot = replica.model
        idle_stop_s = slot.spec.limits.idle_stop_s
        unused = replica.is_idle or (replica.state is State.ASLEEP and not slot.wanted)
        if not unused or slot.spec.pinned or replica.reservation is not None:
            return math.inf
        if autoscale.is_spare(replica):
            idle_stop_s = min(self.policy.scale_down_after_s, idle_stop_s or math.inf)
        elif slot.spec.replicas.min:
            return math.inf
        return math.inf if idle_stop_s is None else replica.last_used + idle_stop_s

    def _sleep_after(self, replica: ReplicaState) -> float:
        slot = replica.model
        idle_sleep_s = slot.spec.limits.idle_sleep_s
        may_sleep = replica.is_idle and slot.sleep_levels and not slot.spec.pinned
        if not may_sleep or idle_sleep_s is None or slot.spec.replicas.min:
            return math.inf
        return replica.last_used + idle_sleep_s

    # ----------------------------------------------------------------------------------- decisions

    def _decide(self, now: float) -> list[SchedulerAction]:
        actions = [*self._serve(now)]
        if self._wanted or self._changed or self._all_changed:
            if not self._closing:
                actions += self._plan(now)
            actions += self._serve(now)  # those behind a gate that opened again
        return actions

    def _serve(self, now: float) -> Iterator[SchedulerAction]:
        for slot in tuple(self._wanted.values()):
            if slot.queue and any(replica.has_room() for replica in slot.replicas):
                yield from self._grants(slot, now)
            if not slot.wanted:
                del self._wanted[slot.spec.id]
                self._changed.update(slot.held_mib)  # it may be idle now
                self._all_changed |= not slot.held_mib  # others may leave that were to stay

    def _grants(self, slot: ModelState, now: float) -> Iterator[SchedulerAction]:
        while slot.queue and (replica := choose(slot.replicas, None)) is not None:
            request = slot.queue.pop()
            slot.demand.begun(now)
            self.pace.waited(now - request.arrived)
            replica.in_flight += 1
            replica.last_used = now
            yield Grant(request.ticket, slot.spec.id, replica.life.run)

    def _plan(self, now: float) -> Iterator[SchedulerAction]:
        waiting = {}
        for slot in self._wanted.values():
            replica = planning.startable(slot, now)
            if replica is not None and replica.reservation is None:
                waiting[replica] = slot
        crowded = [slot for slot in self._wanted.values() if slot.replicas[1:]]
        more = [slot for slot in crowded if autoscale.wants_more(slot, self.policy, now)]
        changed = None if self._all_changed else self._changed
        is_due = any(slot.look_at <= now for slot in waiting.values())
        if not (is_due or more or changed is None or changed):
            self._look_again(waiting.values(), crowded, now)
            return
        planner = Planner(
            tuple(self._holders.values()), self._left, self.devices, self.policy, self.pace, now
        )
        for replica in sorted(self._reserved, key=_reserved_since):
            if not planner.keep(replica) and replica.model.wanted:
                waiting[replica] = replica.model
        replica_of = {slot.spec.id: replica for replica, slot in waiting.items()}
        for slot in planner.order(waiting.values()):
            if slot.look_at <= now or planner.is_starved(slot):
                planner.place(replica_of[slot.spec.id])
            elif changed is None or changed:
                planner.place(replica_of[slot.spec.id], changed)
        for slot in more:
            replica = planning.next_replica(slot, now)
            if replica is not None:
                planner.place_in_free_memory(replica)
        if not waiting and not self._reserved:
            planner.prefetch(self._evicted(now))
        self._all_changed = False
        self._changed = set()
        yield from self._carry_out(planner.plan, now)
        self._look_again(waiting.values(), crowded, now)

    def _look_again(
        self, waiting: Iterable[ModelState], crowded: Iterable[ModelState], now: float
    ) -> None:
        times = [slot.look_at for slot in waiting]
        times += [autoscale.wants_more_at(slot, self.policy) for slot in crowded]
        self._alarms.set(PLAN, min((at for at in times if at > now), default=math.inf))

    def _evicted(self, now: float) -> Iterator[ReplicaState]:
        """Who had to leave, and would still be here if nobody else had come."""
        for slot in self.models.values():
            for replica in slot.replicas:
                if not replica.evicted or replica.state not in (State.STOPPED, State.ASLEEP):
                    continue
                bounds = (slot.spec.limits.idle_sleep_s, slot.spec.limits.idle_stop_s)
                unused = now - replica.last_used
                if all(bound is None or unused < bound for bound in bounds) and not slot.serving:
                    yield replica

    def _carry_out(self, plan: planning.Plan, now: float) -> Iterator[SchedulerAction]:
        for model, passed_over in plan.passed_over.items():
            self.models[model].passed_over = passed_over
        for model, at in plan.look_at.items():
            self.models[model].look_at = at
        for step in plan.steps:
            match step:
                case Reserve(replica, reservation):
                    replica.reservation = reservation
                    self._reserved.append(replica)
                    for leaver, _ in reservation.leaving:
                        leaver.promised_to = replica.spec.id
                case Unreserve(replica):
                    self._unreserve(replica)
                case Leave(replica, level, why):
                    replica.evicted = True
                    if level == STOP:
                        yield from self._stop(replica, why, None, now)
                    else:
                        yield from self._sleep(replica, level, why, None, now)
                case Wake(replica):
                    self._unreserve(replica)
                    replica.started_at = now
                    replica.asleep_mib = {}
                    yield from self._apply(replica, WakeAsked(), now)
                case Start(replica, chosen):
                    self._unreserve(replica)
                    replica.placement = chosen
                    replica.started_at = now
                    yield from self._apply(replica, StartAsked(), now)

    # ------------------------------------------------------------------------------------- helpers

    def _apply(
        self, replica: ReplicaState, event: Event, now: float, drain_s: float | None = None
    ) -> Iterator[SchedulerAction]:
        action = replica.life.handle(event)
        if action in (Action.STOP_ENGINE, Action.SUSPEND_ENGINE):
            replica.changing_since = now
        model, run = replica.spec.id, replica.life.run
        if action is Action.START_ENGINE:
            assert replica.placement is not None, "a start without a placement"
            yield StartEngine(replica.spec, run, replica.placement, replica.number)
        elif action is Action.STOP_ENGINE:
            yield self._stop_action(replica, drain_s)
        elif action is Action.SUSPEND_ENGINE:
            yield SuspendEngine(model, run, replica.life.level, drain_s, replica.why_stopping)
        elif action is Action.WAKE_ENGINE:
            yield WakeEngine(model, run, replica.life.level)
        self._count(replica)
        yield Changed(model)

    def _stop(
        self, replica: ReplicaState, why: str, drain_s: float | None, now: float
    ) -> Iterator[SchedulerAction]:
        self._unreserve(replica)
        if replica.state is not State.STOPPED:
            replica.why_stopping = why
            yield from self._apply(replica, StopAsked(), now, drain_s)

    def _sleep(
        self, replica: ReplicaState, level: int, why: str, drain_s: float | None, now: float
    ) -> Iterator[SchedulerAction]:
        replica.why_stopping = why
        yield from self._apply(replica, SleepAsked(level), now, drain_s)

    def _stop_action(self, replica: ReplicaState, drain_s: float | None) -> StopEngine:
        model, grace_s = replica.spec.id, replica.spec.limits.stop_grace_s
        return StopEngine(model, replica.life.run, drain_s, grace_s, replica.why_stopping)

    def _refuse_all(self, slot: ModelState, error: ModelyardError) -> Iterator[SchedulerAction]:
        for ticket in slot.queue.clear():
            yield Refuse(ticket, error)

    def _unreserve(self, replica: ReplicaState) -> None:
        """Take the promise back: who was to leave and has not begun to stays."""
        reservation = replica.reservation
        if reservation is None:
            return
        replica.reservation = None
        self._reserved.remove(replica)
        self._changed.update(reservation.placement.claims_mib)
        for leaver, _ in reservation.leaving:
            self._changed.update(leaver.held_mib)
            if leaver.promised_to == replica.spec.id and leaver.state not in GOING:
                leaver.promised_to = ""

    def _count(self, replica: ReplicaState) -> None:
        """Note what a replica counts for now."""
        before, now = replica.held_mib, replica.counted()
        if before is not now:
            placement.give(self._left, before)
            placement.take(self._left, now)
            replica.held_mib = now
        if replica.placement is None:
            self._holders.pop(replica.key, None)
        else:
            self._holders[replica.key] = replica


def _reserved_since(replica: ReplicaState) -> float:
    return replica.reservation.since if replica.reservation else 0.0
