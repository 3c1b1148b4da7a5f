"""What will happen to those who wait, and when: an estimate, and how good such estimates were.

Laws of this file:
- Reads the scheduler's state and changes nothing.
- An estimate is made of what is known: durations that were seen, who is ahead, who has to leave.
  It is no promise; `Forecasts` says how far off the last ones were.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median

from modelyard.core.costs import WAKE, Step
from modelyard.core.leaving import down_s
from modelyard.core.lifecycle import State
from modelyard.core.state import COMING, ModelState, ReplicaState
from modelyard.core.swap import DRAIN

REMEMBERED = 100
"""Estimates whose quality is told."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is next for one model that is waited for."""

    position: int
    """Its place among the models that wait for memory, 1 for the next; 0 if it does not."""
    next_step: str
    """What happens next, in words."""
    expected_s: float
    """Seconds until its first waiting request is served."""


@dataclass(frozen=True, slots=True)
class Forecasts:
    """Estimates that were made, and what became of them."""

    kept: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    """Seconds expected and seconds waited."""

    def error_s(self) -> float | None:
        """Half of the last estimates were off by at most this; None if there were none."""
        if not self.kept:
            return None
        return median(abs(expected - waited) for expected, waited in self.kept)


def outlook(slot: ModelState, order: Iterable[ModelState], now: float) -> Outlook:
    """What is next for a model. `order` are the models that wait for memory, the next one first."""
    service_s = slot.demand.service_s
    replica = next((each for each in slot.replicas if each.reservation is not None), slot.best)
    reservation = replica.reservation
    if replica.state in COMING:
        left = max(0.0, up_s(replica) - (now - replica.started_at))
        return Outlook(0, "its engine comes up", left)
    if replica.state is State.READY and not replica.promised_to:
        return Outlook(0, "a place in its engine falls free", service_s / max(1, slot.in_flight))
    if reservation is not None:
        leaving = [leaver for leaver, _ in reservation.leaving if leaver.promised_to]
        names = ", ".join(leaver.key for leaver in leaving)
        then = _until_gone(reservation.leaving) + up_s(replica)
        return Outlook(0, f"{names} leaves for it" if names else "it starts", then)
    if replica.state is State.BACKOFF and replica.retry_at > now:
        return Outlook(0, "its start is tried again", replica.retry_at - now + up_s(replica))
    return _behind(slot, list(order), replica)


def _behind(slot: ModelState, order: list[ModelState], replica: ReplicaState) -> Outlook:
    """One that waits for memory: those before it come and go first."""
    position = order.index(slot) + 1 if slot in order else len(order) + 1
    ahead = sum(other.change_s or 0.0 for other in order[: position - 1])
    own = slot.change_s if slot.change_s is not None else up_s(replica)
    names = ", ".join(other.spec.id for other in order[: position - 1])
    drain = DRAIN * slot.demand.service_s
    what = f"{names} before it" if names else "it is next when somebody leaves"
    return Outlook(position, what, ahead + drain + own)


def up_s(replica: ReplicaState) -> float:
    """How long the replica takes to come up where it is, will be, or was last known to go."""
    slot = replica.model
    placed = replica.placement
    if placed is None and replica.reservation is not None:
        placed = replica.reservation.placement
    if placed is None:
        ways = slot.ways.profiles if slot.ways else ()
        placed = ways[0][0] if ways else None
    if placed is None:
        return 0.0
    woken = replica.state in (State.ASLEEP, State.WAKING)
    step = WAKE.get(replica.life.level, Step.START) if woken else Step.START
    return slot.costs.seconds(slot.spec, placed, step)


def _until_gone(leaving: Iterable[tuple[ReplicaState, int]]) -> float:
    """How long it takes until all who leave have left, one after another."""
    total = drain = 0.0
    for leaver, level in leaving:
        if leaver.placement is None or not leaver.promised_to:
            continue
        total += down_s(leaver, level)
        if leaver.in_flight:
            drain = max(drain, leaver.model.demand.service_s * DRAIN * math.log1p(leaver.in_flight))
    return total + drain


def told_s(seconds: float) -> str:
    """A span as people say it: an estimate is not known to a tenth of a second."""
    if seconds < 1.0:
        return "a moment"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
