"""How many replicas of a model run.

Laws of this file:
- One more is asked for when requests have waited for a place in those that run, and only into
  memory that nobody uses: a hot model never drives out another model for its second replica.
- One less when it was idle for long, much longer than it takes to ask for one more; so the number
  does not swing.
"""

from __future__ import annotations

import math

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
    return bool(slot.queue) and now - slot.queue.oldest.arrived >= policy.scale_up_after_s


def wants_more_at(slot: ModelState, policy: Policy) -> float:
    """When a model may begin to want another replica, if nothing changes; infinity for never."""
    return slot.queue.oldest.arrived + policy.scale_up_after_s if slot.queue else math.inf


def is_spare(replica: ReplicaState) -> bool:
    """Whether the model keeps enough replicas without this one."""
    if replica.number == 1:
        return False
    slot = replica.model
    before = sum(1 for each in slot.serving if each.number < replica.number)
    return before >= max(1, slot.spec.replicas.min)
