"""Swaps: who would leave for a newcomer, what that costs, and whether it is worth it.

Laws of this file:
- Both sides are counted in the same unit: seconds that requests wait, times their weight. One step
  of priority counts twice.
- What a swap costs is worked out in one place, whoever asks and whether those who leave are in use.
- Idle models leave at once unless more is asked of them than of the newcomer. Models in use are
  drained once those who wait have waited as long as the users of the leaving would lose (a balanced
  cost, as in ski rental), or one of them has waited for the age bound.
- Nobody in use leaves before it has been there for a multiple of the time that the change takes: so
  changes never eat more than a fixed share of the time.
- Pinned models, models that leave already, and those whose memory does not help stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from modelyard.core.demand import Pace
from modelyard.core.leaving import STOP, down_s, gives, level_to_leave_to, return_s
from modelyard.core.lifecycle import State
from modelyard.core.policy import Policy
from modelyard.core.specs import Placement
from modelyard.core.state import ModelState, ReplicaState

DRAIN = 0.7
"""Expected drain in mean times of service, for each natural logarithm of the requests in flight and
one: the longest of n random times grows like that."""
PLACES = 16
"""Requests that an engine without a bound is taken to serve well at once."""
SURPLUS = 0.3
"""What a MiB beyond the need counts for beside one that is needed: somebody else will need it."""
FULL = 0.9
"""Utilisation above which the formula of waiting times is not believed."""
SOONEST_S, LATEST_S = 0.25, 5.0
"""Bounds of the time until a swap is weighed again: what it depends on changes meanwhile."""
DEEPER = (1, 2, STOP)
"""How deep everybody has to leave at least: deeper where less does not give enough."""
MOST_STEPS = 8
"""Steps of priority that count; 2 to this power is the largest weight."""

Times = Callable[[ModelState, Placement], tuple[float, float]]
"""Seconds that a model takes to come up there, and to leave again."""


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A model that waits, and where it could go."""

    slot: ModelState
    choice: Placement
    asked: int
    """Requests that wait for it."""
    waited_s: float
    """Seconds that they have waited together."""
    oldest_s: float
    up_s: float
    down_s: float
    """How long it would itself take to leave again."""
    aged_after_s: float


@dataclass(slots=True, eq=False)
class Offer:
    """A replica that may leave, how, what that gives, and what it costs."""

    replica: ReplicaState
    is_busy: bool
    level: int
    gives_mib: Mapping[str, int]
    down_s: float
    back_s: float
    """How long it takes to come back from there."""
    weight: float
    queued: int
    rate: float
    """Requests per second that it serves of late."""
    full: float
    """Its utilisation of late."""
    missed: float
    """What its absence costs: requests per second times seconds, weighted."""


class Swap(NamedTuple):
    """Some leave and a newcomer comes up: who leaves, and what that costs both sides."""

    offers: Sequence[Offer]
    cost: float
    """Weighted seconds of waiting, of both sides."""
    loss: float
    """Those of the users of the leaving alone."""
    arriving_s: float
    """How long it takes until the newcomer is up."""
    absent_s: float
    """How long it takes until it has served and left again, and those who left can come back."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A swap at one place, weighed."""

    choice: Placement
    swap: Swap
    drains: bool
    """Whether one of those who leave is in use."""
    is_worth_it: bool
    look_at: float
    """When it may have become worth it, if it is not."""


def weight(slot: ModelState) -> float:
    """How much a second of waiting for the model counts."""
    steps = slot.spec.priority
    return float(2.0 ** max(-MOST_STEPS, min(MOST_STEPS, steps))) if steps else 1.0


class Market:
    """Who may leave, and what that costs, at one moment."""

    def __init__(
        self,
        holders: Sequence[ReplicaState],
        policy: Policy,
        pace: Pace,
        now: float,
        soon: Mapping[str, int],
    ) -> None:
        """`soon` is what will be left on each device; it is read again for every verdict."""
        self._holders = holders
        self._policy = policy
        self._pace = pace
        self._now = now
        self._soon = soon
        self._by_device: dict[str, list[Offer]] = {}
        self._looked: set[str] = set()
        self._taken: set[int] = set()

    def take(self, replica: ReplicaState) -> None:
        """It leaves for somebody: it is no longer on offer."""
        self._taken.add(id(replica))

    def judge(self, newcomer: Newcomer) -> Verdict | None:
        """Who would leave for the newcomer, and whether it is worth it; None if it cannot be."""
        offers = self._cheapest(newcomer)
        return None if offers is None else self._weigh(newcomer, offers)

    def swap_with_idle(self, slot: ModelState, choice: Placement, times: Times) -> Swap | None:
        """The least missed of those who are idle there would leave for one request for the model;
        None if all together are not enough."""
        missing = self._missing(choice)
        idle = [offer for offer in self._offers(slot, missing) if not offer.is_busy]
        offers = self._fewest(idle, missing)
        if offers is None:
            return None
        up_s, down_s = times(slot, choice)
        return self._swap(offers, weight(slot), up_s, down_s)

    # ----------------------------------------------------------------------------------- who leaves

    def _cheapest(self, newcomer: Newcomer) -> list[Offer] | None:
        """As few as possible, idle ones before others and the least missed before those.

        None if all together are not enough.
        """
        missing = self._missing(newcomer.choice)
        return self._fewest(self._offers(newcomer.slot, missing), missing)

    def _missing(self, choice: Placement) -> dict[str, int]:
        return _still_missing(choice.claims_mib, self._soon)

    def _fewest(self, offers: Sequence[Offer], missing: Mapping[str, int]) -> list[Offer] | None:
        ranked = sorted(offers, key=lambda offer: _rank(offer, missing))
        for deep in DEEPER:
            if deep > 1:
                ranked = [self._deeper(offer, deep) for offer in ranked]
            chosen = _enough(ranked, missing)
            if chosen is not None:
                return chosen
            if all(offer.level == STOP for offer in ranked):
                return None
        return None

    def _offers(self, slot: ModelState, missing: Mapping[str, int]) -> list[Offer]:
        found: dict[int, Offer] = {}
        for device in missing:
            for offer in self._on(device):
                replica = offer.replica
                if replica.model is not slot and id(replica) not in self._taken:
                    found[id(replica)] = offer
        return list(found.values())

    def _on(self, device: str) -> list[Offer]:
        """What is on offer on a device; worked out when it is asked for."""
        if device not in self._looked:
            self._looked.add(device)
            known = {id(o.replica): o for offers in self._by_device.values() for o in offers}
            self._by_device[device] = [
                known.get(id(replica)) or self._offer(replica)
                for replica in self._holders
                if device in replica.held_mib and _may_leave(replica)
            ]
        return self._by_device[device]

    def _offer(self, replica: ReplicaState, at_least: int = 1) -> Offer:
        slot = replica.model
        level = level_to_leave_to(replica, self._soon, at_least=at_least)
        down, back = down_s(replica, level), return_s(replica, level)
        away = down + back
        if replica.state is State.ASLEEP:
            away = down + max(0.0, back - return_s(replica, replica.life.level))
        others = max(1, len(slot.serving)) if len(slot.replicas) > 1 else 1
        queued = len(slot.queue)
        rate = slot.demand.rate(self._now) / others
        places = slot.spec.limits.concurrency or PLACES
        weighs = weight(slot)
        return Offer(
            replica,
            replica.state is State.READY and bool(replica.in_flight or queued),
            level,
            gives(replica, level),
            down,
            back,
            weighs,
            queued,
            rate,
            min(FULL, slot.demand.load(self._now) / others / places),
            weighs * (queued / others + rate) * away,
        )

    def _deeper(self, offer: Offer, level: int) -> Offer:
        return offer if offer.level >= level else self._offer(offer.replica, level)

    # ------------------------------------------------------------------------------- what it costs

    def _swap(
        self, offers: Sequence[Offer], asked: float, up_s: float, down_s: float, drain_s: float = 0
    ) -> Swap:
        """What it costs that these leave for a newcomer, which takes `up_s` to come up there and
        `down_s` to leave again; `asked` are the requests for it, times their weight.

        Those who leave stay away until the newcomer has served, has left, and they are back. Who
        asks for one at a steady rate waits half of that on average; the more it is in use, the
        longer it takes until its queue is empty again.
        """
        arriving_s = drain_s + sum([offer.down_s for offer in offers]) + up_s
        absent_s = arriving_s + self._pace.service_s + down_s
        loss = 0.0
        for offer in offers:
            away = absent_s + offer.back_s
            lost = offer.queued * away + offer.rate * away * away / (2.0 * (1.0 - offer.full))
            loss += offer.weight * lost
        return Swap(offers, loss + asked * arriving_s, loss, arriving_s, absent_s)

    def _drain_s(self, busy: Sequence[Offer]) -> float:
        """How long it takes until all requests in flight have ended: the longest of that many."""
        if not busy:
            return 0.0
        most = max([offer.replica.in_flight for offer in busy])
        return DRAIN * self._pace.service_s * math.log1p(most)

    # ------------------------------------------------------------------------------ is it worth it

    def _weigh(self, new: Newcomer, offers: Sequence[Offer]) -> Verdict:
        policy, now = self._policy, self._now
        busy = [offer for offer in offers if offer.is_busy]
        drain = self._drain_s(busy)
        ours = weight(new.slot)
        swap = self._swap(offers, ours * new.asked, new.up_s, new.down_s, drain)
        longest = max([swap.absent_s + offer.back_s for offer in offers], default=0.0)
        fullest = max([offer.full for offer in offers], default=0.0)
        bound = max(new.aged_after_s, policy.away_factor * longest / (1.0 - fullest))
        enough = policy.loss_factor * swap.loss
        is_balanced = ours * new.waited_s >= enough
        rested_at = -1.0
        if busy:
            stay = policy.residency_factor * (swap.arriving_s - drain)
            rested_at = max(offer.replica.ready_since for offer in busy) + stay
            is_aged = new.oldest_s + swap.arriving_s >= bound
            is_worth_it = now >= rested_at and (is_balanced or is_aged)
        else:
            asked = sum([o.weight * o.rate * (o.back_s + o.down_s) for o in offers])
            is_aged = new.oldest_s >= bound
            is_worth_it = asked < ours * new.asked or is_balanced or is_aged
        until = 0.5 if is_balanced else (enough / ours - new.waited_s) / max(1, new.asked)
        aged_in = bound - new.oldest_s - (swap.arriving_s if busy else 0.0)
        until = max(min(until, aged_in), rested_at - now)
        look_at = now + min(LATEST_S, max(SOONEST_S, until))
        return Verdict(new.choice, swap, bool(busy), is_worth_it, look_at)


def _rank(offer: Offer, missing: Mapping[str, int]) -> tuple[bool, float, float, str]:
    """Idle ones first, then by what each MiB that helps costs; then the longest unused."""
    replica = offer.replica
    helps = 0.0
    for device, mib in missing.items():
        held = replica.held_mib.get(device, 0)
        helps += min(held, mib) + SURPLUS * max(0, held - mib)
    return (offer.is_busy, offer.missed / max(1, helps), replica.last_used, replica.key)


def _enough(ranked: Sequence[Offer], missing: Mapping[str, int]) -> list[Offer] | None:
    open_mib = dict(missing)
    chosen: list[Offer] = []
    for offer in ranked:
        if not open_mib:
            break
        given = offer.gives_mib
        if any(given.get(device, 0) > 0 for device in open_mib):
            chosen.append(offer)
            open_mib = _still_missing(open_mib, given)
    return None if open_mib else _without_superfluous(chosen, missing)


def _may_leave(replica: ReplicaState) -> bool:
    if replica.promised_to or replica.spec.pinned or replica.reservation is not None:
        return False
    if replica.state is State.ASLEEP:
        return not replica.model.wanted
    return replica.state is State.READY


def _still_missing(missing: Mapping[str, int], given: Mapping[str, int]) -> dict[str, int]:
    return {d: lack for d, mib in missing.items() if (lack := mib - given.get(d, 0)) > 0}


def _without_superfluous(chosen: list[Offer], missing: Mapping[str, int]) -> list[Offer]:
    """Leave out, the most missed first, whoever is not needed after all."""
    spare = {d: sum(o.gives_mib.get(d, 0) for o in chosen) - mib for d, mib in missing.items()}
    for offer in reversed(chosen[:]):
        if all(offer.gives_mib.get(device, 0) <= mib for device, mib in spare.items()):
            chosen.remove(offer)
            for device in spare:
                spare[device] -= offer.gives_mib.get(device, 0)
    return chosen
