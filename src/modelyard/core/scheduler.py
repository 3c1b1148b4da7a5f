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

import itertools
from collections.abc import Iterable, Iterator

from modelyard.core import admission, autoscale, moves, placement
from modelyard.core.costs import SLEEP, WAKE, Step
from modelyard.core.demand import Demand
from modelyard.core.errors import (
    EngineStartFailed,
    ModelNotFound,
    ModelStopped,
    ModelyardError,
    QueueFull,
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
    KeepWanted,
    MemoryMeasured,
    ModelEvent,
    ModelsChanged,
    PressureRead,
    Refuse,
    RequestLeft,
    RequestWaits,
    RestartWanted,
    SchedulerAction,
    SchedulerEvent,
    ShutdownAsked,
    SleepWanted,
    StartWanted,
    StopWanted,
)
from modelyard.core.lifecycle import (
    ALIVE,
    HOLDING,
    EngineAsleep,
    EngineEvent,
    EngineExited,
    EngineReady,
    Replica,
    RestartAsked,
    RestartPutOff,
    SleepFailed,
    State,
    WakeFailed,
)
from modelyard.core.queueing import Waiting
from modelyard.core.routing import choose
from modelyard.core.specs import Device, ModelSpec
from modelyard.core.state import GOING, ModelState, ReplicaState
from modelyard.core.upkeep import Upkeep


class Scheduler(Upkeep):
    """Takes events and answers with actions."""

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
        slot.demand.served_at_once(now)
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
            granted = list(self._grants(slot, now)) if slot.queue else []
            if granted and not slot.queue and self._reserved:
                granted += self._decide(now)  # somebody may leave for it in vain
            return granted
        self._alarms.set(model, self._unused_until(replica))
        if replica.state in GOING:
            replica.changing_since = now
        self._look_ahead(now + self.policy.make_room_after_s)
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
            case StartWanted() | RestartWanted() | SleepWanted() if slot.removed:
                return []
            case KeepWanted(_, keep_s):
                slot.keep_s = keep_s
                return self._look_at(slot, now)
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
            case MemoryMeasured():
                return self._measured(slot, event, now)
            case PressureRead():
                self._pressure(slot, event, now)
            case _:
                self._learn(slot, event, now)
        return []

    def _measured(
        self, slot: ModelState, event: MemoryMeasured, now: float
    ) -> Iterator[SchedulerAction]:
        if (replica := slot.replica_of(event.run)) is None:
            return
        replica.used_mib = event.used_mib
        self._count(replica)
        if event.lost and replica.state is State.READY:
            gone = ", ".join(event.lost)
            yield from self._stop(replica, f"its memory on {gone} was lost", 0.0, now)

    def _pressure(self, slot: ModelState, read: PressureRead, now: float) -> None:
        replica = slot.replica_of(read.run)
        if replica is None or replica.state is not State.READY:
            return
        if not autoscale.is_full(read, self.policy):
            replica.pressed_since = None
        elif replica.pressed_since is None:
            replica.pressed_since = now
        self._note_pressure(slot)

    def _note_pressure(self, slot: ModelState) -> None:
        if any(replica.pressed_since is not None for replica in slot.replicas):
            self._pressed[slot.spec.id] = slot
        else:
            self._pressed.pop(slot.spec.id, None)

    def _learn(self, slot: ModelState, event: SchedulerEvent, now: float) -> None:
        match event:
            case EngineSuspected(_, run) | EngineCleared(_, run):
                if (replica := slot.replica_of(run)) is not None:
                    replica.suspected = isinstance(event, EngineSuspected)
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
        if slot.removed:
            yield Refuse(request.ticket, ModelNotFound(slot.spec.id))
            return
        slot.demand.arrived(now)
        if state is State.FAILED:
            failed = slot.best
            if now < failed.retry_at:
                reason = failed.life.reason
                error = EngineStartFailed(slot.spec.id, reason, hint=self._revival(slot.spec))
                yield Refuse(request.ticket, error)
                return
            yield from self._revive(failed, now)
        obstacle: ModelyardError | None = None
        if state not in HOLDING:
            obstacle = admission.obstacle(self.models, self.devices, slot)
        if obstacle is None and len(slot.queue) >= slot.spec.limits.max_queue:
            obstacle = QueueFull(slot.spec.id, len(slot.queue), self._next_place_s(slot))
        if obstacle is not None:
            yield Refuse(request.ticket, obstacle)
            return
        self._keep_running(slot)
        is_first = not slot.queue
        slot.queue.add(request)
        slot.look_at = now
        if is_first:
            slot.forecast = (now, self.outlook(slot.spec.id, now).expected_s)
        self._wanted[slot.spec.id] = slot
        self._alarms.set(slot.spec.id, slot.queue.oldest.arrived + slot.spec.limits.max_wait_s)

    def _next_place_s(self, slot: ModelState) -> float:
        """When a place in a full queue is likely to be free again."""
        at_once = sum(each.in_flight for each in slot.serving)
        return max(1.0, slot.demand.service_s / at_once if at_once else slot.demand.service_s)

    def _keep_running(self, slot: ModelState) -> None:
        if slot.spec.replicas.min:
            self._kept[slot.spec.id] = slot

    def _want(self, slot: ModelState, now: float) -> Iterator[SchedulerAction]:
        self._keep_running(slot)
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
        self._kept.pop(slot.spec.id, None)  # until it is asked for again
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
            moving = moves.moving_gpus(others, moves.gpus_of(self.devices))
            placed = replica.placement
            has_place = placed is not None and placement.is_way(slot, self.devices, placed)
            if not has_place or not moving.isdisjoint(replica.held_mib):
                slot.wanted_since = now
                self._wanted[slot.spec.id] = slot
                yield from self._apply(replica, RestartPutOff(), now)
        before = replica.state
        self._changed.update(replica.held_mib)
        yield from self._apply(replica, news, now)
        if replica.state is not State.READY and replica.pressed_since is not None:
            replica.pressed_since = None
            self._note_pressure(slot)
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
        self._unreserve(replica)
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
                failed = EngineStartFailed(slot.spec.id, reason, hint=self._revival(slot.spec))
                yield from self._refuse_all(slot, failed)
                slot.wanted_since = None
        wanted_always = slot.spec.preload or slot.spec.replicas.min
        if wanted_always and replica.state in (State.BACKOFF, State.FAILED):
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
                runs = self._runs.setdefault(model, itertools.count(1))
                demand = Demand(self.pace, self.policy.rate_memory_s)
                slot = ModelState(spec, demand, runs=runs)
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
                for replica in known.replicas:
                    self._unreserve(replica)
                known.spec = spec
                known.ways = known.change_s = None
                known.look_at = 0.0
                self._resize(known, now)
                yield Changed(model)

    def _resize(self, slot: ModelState, now: float) -> None:
        """Have as many replicas as the model may have; those too many go when they have stopped."""
        self._kept.pop(slot.spec.id, None)
        if slot.spec.replicas.min:
            self._kept[slot.spec.id] = slot
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
        for replica in slot.replicas:
            self._unreserve(replica)
        del self.models[slot.spec.id]
        self._wanted.pop(slot.spec.id, None)
        self._kept.pop(slot.spec.id, None)
        self._pressed.pop(slot.spec.id, None)

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
            obstacle = admission.obstacle(self.models, devices, slot)
            if obstacle is not None:
                yield from self._refuse_all(slot, obstacle)

    def _shut_down(self, now: float) -> Iterator[SchedulerAction]:
        self._closing = True
        for slot in self.models.values():
            slot.wanted_since = None
            yield from self._refuse_all(slot, ModelStopped("the server is shutting down"))
            for replica in slot.replicas:
                yield from self._stop(replica, "the server is shutting down", None, now)
