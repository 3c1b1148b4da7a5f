"""The models, their replicas and their memory, and how a plan for them is carried out.

Laws of this file:
- Every claim, queue and reservation is changed here or in the classes built upon this one, and
  nowhere else.
- Who starts and who leaves is decided in `planning`; here it is carried out, step by step.
- Nobody is cut by a decision: models in use leave when they are idle.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from modelyard.core import autoscale, leaving, placement, planning
from modelyard.core.alarms import Alarms
from modelyard.core.demand import Pace
from modelyard.core.errors import (
    ModelyardError,
)
from modelyard.core.events import (
    Changed,
    Grant,
    Refuse,
    SchedulerAction,
    StartEngine,
    StopEngine,
    SuspendEngine,
    WakeEngine,
)
from modelyard.core.foresight import Foresight
from modelyard.core.leavers import Leavers
from modelyard.core.leaving import STOP
from modelyard.core.lifecycle import (
    Action,
    Event,
    SleepAsked,
    StartAsked,
    State,
    StopAsked,
    WakeAsked,
)
from modelyard.core.outlook import Forecasts, Outlook, outlook
from modelyard.core.plan import Deepen, Leave, Plan, Reserve, Start, Unreserve, Wake
from modelyard.core.planning import Planner
from modelyard.core.policy import Policy
from modelyard.core.routing import choose
from modelyard.core.specs import Device
from modelyard.core.state import GOING, ModelState, ReplicaState

PLAN = ""
"""The alarm that is no model's: somebody who waits has to be looked at again."""
LOOK_EVERY_S = 2.0
"""How often it is looked ahead at most: it costs more than other decisions, and can wait."""
ROUNDS = 3
"""Plans made at one moment: what one of them opens may let others go on."""


class Fleet:
    """The state of all models and devices, and the decisions over it."""

    def __init__(self, policy: Policy, devices: Sequence[Device]) -> None:
        self.policy = policy
        self.devices = tuple(devices)
        self.models: dict[str, ModelState] = {}
        self.pace = Pace()
        self.forecasts = Forecasts()
        """How good the estimates of waits were."""
        self._alarms = Alarms()
        self._runs: dict[str, Iterator[int]] = {}
        """Numbers for the runs of each model there ever was: late news names no later run."""
        self._left = placement.free(devices, ())
        """MiB on each device that no replica counts for."""
        self._holders: dict[str, ReplicaState] = {}
        """The replicas that have a place, by key."""
        self._wanted: dict[str, ModelState] = {}
        """The models that somebody waits for."""
        self._kept: dict[str, ModelState] = {}
        """The models of which some replicas are kept running."""
        self._pressed: dict[str, ModelState] = {}
        """The models of which an engine says that it is full."""
        self._reserved: list[ReplicaState] = []
        """The replicas that memory is promised to."""
        self._changed: set[str] = set()
        """The devices on which something is new since the last plan."""
        self._all_changed = True
        """Whether more is new than can be told by device."""
        self._looked_ahead = -math.inf
        self._look_ahead_at = math.inf
        """When there may be something to do for those who have not come yet."""
        self._leavers = Leavers()
        """Who would leave for those who are away, as it was at the last look ahead."""
        self._closing = False

    def outlook(self, model: str, now: float) -> Outlook:
        """What is next for a model that is waited for, and when."""
        slot = self.models[model]
        waiting = [
            each
            for each in self._wanted.values()
            if each.wanted and planning.startable(each, now) is not None
        ]
        return outlook(slot, self._planner(now).order(waiting, len(waiting)), now)

    def replica_of(self, model: str, run: int) -> ReplicaState | None:
        """The replica whose present run this is; None if that is over or the model is gone."""
        slot = self.models.get(model)
        return slot.replica_of(run) if slot is not None else None

    def _planner(self, now: float) -> Planner:
        holders = tuple(self._holders.values())
        return Planner(holders, self._left, self.devices, self.policy, self.pace, now)

    # ----------------------------------------------------------------------------------- decisions

    def _decide(self, now: float) -> list[SchedulerAction]:
        actions = [*self._serve(now)]
        for _ in range(ROUNDS):
            if self._closing or not self._is_due(now):
                break
            actions += self._plan(now)
            served = [*self._serve(now)]  # those behind a gate that opened again
            actions += served
            if not served:
                break
        return actions

    def _is_due(self, now: float) -> bool:
        """Whether anything has happened since the last plan."""
        is_new = bool(self._wanted or self._changed or self._pressed) or self._all_changed
        return is_new or self._look_ahead_at <= now

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
            request = slot.queue.pop(now - planning.aged_after_s(self.policy, self.pace))
            if slot.forecast is not None:
                since, expected_s = slot.forecast
                self.forecasts.kept.append((expected_s, now - since))
                slot.forecast = None
            slot.demand.begun(now)
            self.pace.waited(now - request.arrived)
            replica.in_flight += 1
            replica.last_used = now
            yield Grant(request.ticket, slot.spec.id, replica.life.run)

    def _plan(self, now: float) -> Iterator[SchedulerAction]:
        waiting = {}
        for slot in self._wanted.values():
            replica = planning.startable(slot, now)
            if replica is not None:
                waiting[replica] = slot
        busy = {**self._wanted, **self._pressed}
        crowded = [slot for slot in busy.values() if slot.replicas[1:]]
        comes_up = {slot.spec.id for slot in waiting.values()}
        more = [
            slot
            for model, slot in {**busy, **self._kept}.items()
            if model not in comes_up and autoscale.wants_more(slot, self.policy, now)
        ]
        changed = None if self._all_changed else self._changed
        is_due = any(slot.look_at <= now for slot in waiting.values())
        look_ahead = self._look_ahead_at <= now
        if not (is_due or more or changed is None or changed or look_ahead):
            self._look_again(waiting.values(), crowded, now)
            return
        planner = self._planner(now)
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
        if not more and all(slot.spec.id in planner.plan.placed for slot in waiting.values()):
            self._foresee(planner, now)
        self._all_changed = False
        self._changed = set()
        yield from self._carry_out(planner.plan, now)
        self._look_again(waiting.values(), crowded, now)

    def _foresee(self, planner: Planner, now: float) -> None:
        """Everybody who waits has been seen to: see to those who have not come yet."""
        if now < self._looked_ahead + LOOK_EVERY_S:
            self._look_ahead_at = self._looked_ahead + LOOK_EVERY_S
            return
        models = self.models.values()
        ahead = Foresight(planner, self.policy, models, self._left, self._leavers, now)
        self._looked_ahead, self._look_ahead_at = now, ahead.look()

    def _look_ahead(self, at: float) -> None:
        """Look then whether there is something to do for those who have not come yet."""
        if at < self._look_ahead_at:
            self._look_ahead_at = at
            self._alarms.set(PLAN, at)

    def _look_again(
        self, waiting: Iterable[ModelState], crowded: Iterable[ModelState], now: float
    ) -> None:
        times = [slot.look_at for slot in waiting]
        times += [autoscale.wants_more_at(slot, self.policy) for slot in crowded]
        times.append(self._look_ahead_at)
        self._alarms.set(PLAN, min((at for at in times if at > now), default=math.inf))

    def _carry_out(self, plan: Plan, now: float) -> Iterator[SchedulerAction]:
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
                case Deepen(replica, level):
                    replica.deepen_to = level
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
            if not autoscale.is_spare(replica):
                replica.model.keep_s = None
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
        if replica.state is State.SUSPENDING:  # it needs both, until it is seen to sleep
            kept = leaving.residue(replica, replica.life.level)
            more = {d: mib for d, mib in kept.items() if mib > now.get(d, 0)}
            now = {**now, **more}
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
