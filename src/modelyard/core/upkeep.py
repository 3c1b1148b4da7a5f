"""What becomes due by itself: waits that are too long, retries, and models that nobody uses.

Laws of this file:
- A model is looked at when its alarm rings or an engine has news; what is due and cannot be done
  then, because memory moves on its GPU, is looked at again at the next news of an engine.
- Somebody who waits is told why when the wait ends without an answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from modelyard.core import autoscale, moves
from modelyard.core.errors import (
    WaitTimeout,
)
from modelyard.core.events import (
    Refuse,
    SchedulerAction,
)
from modelyard.core.explain import why_waiting
from modelyard.core.fleet import Fleet
from modelyard.core.leaving import STOP, level_asked_for, level_to_leave_to
from modelyard.core.lifecycle import (
    State,
    StopAsked,
)
from modelyard.core.outlook import told_s
from modelyard.core.specs import ModelSpec
from modelyard.core.state import ModelState, ReplicaState


class Upkeep(Fleet):
    """Time-outs, retries, sleep and stop of the unused."""

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
            ahead = self.outlook(slot.spec.id, now)
            slot.queue.remove(request.ticket)
            waited = f"waited {now - request.arrived:.0f} s for model {slot.spec.id!r}"
            told = f"{waited}: {why}; next: {ahead.next_step}, in about {told_s(ahead.expected_s)}"
            yield Refuse(request.ticket, WaitTimeout(told))

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
        if replica.deepen_to and replica.state is not State.WAKING:
            yield from self._deepen(replica, now)
        asked = replica.level_asked
        if not asked and self._unused_until(replica) > now:
            return
        gpus = moves.gpus_of(self.devices)
        if not moves.moving_gpus(self._holders.values(), gpus).isdisjoint(replica.held_mib):
            return  # looked at again when that is over
        if asked:
            level = level_asked_for(replica, self._left, asked)
            replica.level_asked, slot.wanted_since = 0, None
            why, drain_s = "put to sleep by a person", limits.drain_timeout_s
            if level < STOP:
                yield from self._sleep(replica, level, why, drain_s, now)
            else:
                but = "the host has no room" if replica.sleep_levels else "it cannot sleep there"
                yield from self._stop(replica, f"{why}, and {but}", drain_s, now)
            return
        level = level_to_leave_to(replica, self._left)
        if self._stop_after(replica) <= now:
            yield from self._stop(replica, f"unused for {now - replica.last_used:.0f} s", None, now)
        elif level < STOP:
            yield from self._sleep(
                replica, level, f"unused for {limits.idle_sleep_s:g} s", None, now
            )

    def _deepen(self, replica: ReplicaState, now: float) -> Iterator[SchedulerAction]:
        """It woke to sleep deeper: so it does, unless somebody has come for it meanwhile."""
        level, replica.deepen_to = replica.deepen_to, 0
        if replica.is_idle and level in replica.sleep_levels:
            why = "to leave memory of the host to others"
            yield from self._sleep(replica, level, why, None, now)

    def _unused_until(self, replica: ReplicaState) -> float:
        return min(self._stop_after(replica), self._sleep_after(replica))

    def _stop_after(self, replica: ReplicaState) -> float:
        slot = replica.model
        idle_stop_s = slot.spec.limits.idle_stop_s if slot.keep_s is None else slot.keep_s
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
        may_sleep = replica.is_idle and replica.sleep_levels and not slot.spec.pinned
        is_kept = slot.keep_s is not None or slot.spec.replicas.min
        if not may_sleep or idle_sleep_s is None or is_kept:
            return math.inf
        return replica.last_used + idle_sleep_s

    def _revival(self, spec: ModelSpec) -> str:
        """When a model that was given up is tried again."""
        if spec.remote.upstreams:
            return "asked again once one of its upstreams answers, or by `modelyard start`"
        return f"tried again after {self.policy.failed_cooldown_s:g} s, or by `modelyard start`"

    def _revive(self, replica: ReplicaState, now: float) -> Iterator[SchedulerAction]:
        replica.life.forgive()
        yield from self._apply(replica, StopAsked(), now)
