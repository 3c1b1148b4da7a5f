"""How many replicas of a model run.

Laws of this file:
- One more is asked for when requests have waited for a place in those that run, or when the
  engines of all that run have said for as long that they are full: what is in an engine's own
  queue, or preempted for want of cache, waits too. It comes only into memory that nobody uses: a
  hot model never drives out another model for its second replica.
- One less when it was idle for long, much longer than it takes to ask for one more; so the number
  does not swing.
"""

from __future__ import annotations

import math

from modelyard.core.events import PressureRead
from modelyard.core.lifecycle import State
from modelyard.core.policy import Policy
from modelyard.core.state import ModelState, ReplicaState


def wants_more(slot: ModelState, policy: Policy, now: float) -> bool:
    """Whether another replica of a model that runs already should be brought up."""
    serving, bounds = slot.serving, slot.spec.replicas
    if slot.removed or len(serving) >= max(1, bounds.max):
        return False
    if len(serving) < bounds.min:
        return True
    if not serving or any(replica.state is not State.READY for replica in serving):
        return False  # one is on its way
    return wants_more_at(slot, policy) <= now


def wants_more_at(slot: ModelState, policy: Policy) -> float:
    """When a model may begin to want another replica, if nothing changes; infinity for never."""
    crowded_since = slot.queue.oldest.arrived if slot.queue else math.inf
    return min(crowded_since, _pressed_since(slot)) + policy.scale_up_after_s


def is_full(read: PressureRead, policy: Policy) -> bool:
    """Whether an engine's gauges say that another request would have to wait in it."""
    return read.waiting > 0 or (read.kv_share or 0.0) >= policy.scale_up_kv


def _pressed_since(slot: ModelState) -> float:
    """Since when the engines of all its replicas are full; infinity if one is not."""
    times = [replica.pressed_since for replica in slot.serving]
    return max((math.inf if at is None else at for at in times), default=math.inf)


def is_spare(replica: ReplicaState) -> bool:
    """Whether the model keeps enough replicas without this one."""
    if replica.number == 1:
        return False
    slot = replica.model
    before = sum(1 for each in slot.serving if each.number < replica.number)
    return before >= max(1, slot.spec.replicas.min)
