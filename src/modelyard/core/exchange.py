"""Is it worth it that these leave for that one?

Laws of this file:
- Both sides are counted in the same unit: seconds that requests wait, times their weight. One step
  of priority counts twice.
- Idle models leave at once unless more is asked of them than of the newcomer. Models in use are
  drained once those who wait have waited as long as the users of the leaving would lose (a balanced
  cost, as in ski rental), or one of them has waited for the age bound.
- Nobody in use leaves before it has been there for a multiple of the time that the change takes: so
  changes never eat more than a fixed share of the time.
- Pinned models, models that leave already, and those whose memory does not help stay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from modelyard.core.costs import SLEEP, Step
from modelyard.core.demand import Pace
from modelyard.core.leaving import STOP, down_s, gives, level_to_leave_to, return_s
from modelyard.core.lifecycle import State
from modelyard.core.policy import Policy
from modelyard.core.specs import Placement
from modelyard.core.state import ModelState, ReplicaState

DRAIN = 0.7
"""Share of the mean time of service that is expected to be left of the requests in flight."""
FULL = 0.9
"""Utilisation above which the formula of waiting times is not believed."""
SOONEST_S, LATEST_S = 0.25, 5.0
"""Bounds of the time until an exchange is weighed again: what it depends on changes meanwhile."""
DEEPER = (1, 2, STOP)
"""How deep everybody has to leave at least: deeper where less does not give enough."""
FEW = 4
"""Of the least missed, so many are tried in every combination."""
MOST_LEAVING = 3
"""Models in such a combination."""
STAYS_S = 60.0
"""How long an idle model usually stays until somebody needs its memory."""
MOST_STEPS = 8
"""Steps of priority that count; 2 to this power is the largest weight."""


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A model that waits, and where it could go."""

    slot: ModelState
    replica: ReplicaState
    choice: Placement
    asked: int
    """Requests that wait for it."""
    waited_s: float
    """Seconds that they have waited together."""
    oldest_s: float
    up_s: float
    aged_after_s: float


@dataclass(frozen=True, slots=True)
class Offer:
    """A replica that may leave, how, and what that gives."""

    replica: ReplicaState
    level: int
    gives_mib: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Verdict:
    """An exchange, weighed."""

    choice: Placement
    offers: Sequence[Offer]
    cost: float
    """Weighted seconds of waiting that it costs both sides."""
    is_worth_it: bool
    look_at: float
    """When it may have become worth it, if it is not."""


def weight(slot: ModelState) -> float:
    """How much a second of waiting for the model counts."""
    return float(2.0 ** max(-MOST_STEPS, min(MOST_STEPS, slot.spec.priority)))


class Market:
    """Who may leave, and at which price, at one moment."""

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
        self._by_device: dict[str, list[ReplicaState]] | None = None
        self._taken: set[int] = set()

    def take(self, replica: ReplicaState) -> None:
        """It leaves for somebody: it is no longer on offer."""
        self._taken.add(id(replica))

    def judge(self, newcomer: Newcomer, *, busy_too: bool) -> Verdict | None:
        """Who would leave for the newcomer, and whether it is worth it; None if it cannot be."""
        offers = self._cheapest(newcomer, busy_too)
        if offers is None:
            return None
        busy = [each.replica for each in offers if _is_busy(each.replica)]
        if busy_too and not busy:
            return None  # weighed before, as idle ones
        return self._weigh(newcomer, offers, busy)

    # ----------------------------------------------------------------------------------- who leaves

    def _cheapest(self, newcomer: Newcomer, busy_too: bool) -> list[Offer] | None:
        """As few as possible, the least missed first; None if all together are not enough."""
        need = newcomer.choice.claims_mib
        missing = {d: mib - self._soon.get(d, 0) for d, mib in need.items()}
        missing = {device: mib for device, mib in missing.items() if mib > 0}
        ranked = sorted(
            (_is_busy(each), self._missed(each, missing), each.last_used, each.key, each)
            for each in self._candidates(newcomer, missing)
            if busy_too or not _is_busy(each)
        )
        order = [each[-1] for each in ranked]
        for deep in DEEPER:
            offers = self._best_few(newcomer, order[:FEW], missing, deep)
            offers = offers or self._enough(order, missing, deep)
            if offers is not None:
                return offers
        return None

    def _best_few(
        self,
        new: Newcomer,
        ranked: Sequence[ReplicaState],
        missing: Mapping[str, int],
        deep: int,
    ) -> list[Offer] | None:
        """The cheapest among all small sets of the least missed."""
        priced = []
        for replica in ranked:
            level = level_to_leave_to(replica, self._soon, at_least=deep)
            offer = Offer(replica, level, gives(replica, level))
            lost = self._absence(new, offer) + weight(new.slot) * new.asked * down_s(replica, level)
            priced.append((lost, offer))
        best: list[Offer] | None = None
        least = math.inf
        for size in range(1, min(MOST_LEAVING, len(priced)) + 1):
            for several in combinations(priced, size):
                offers = [offer for _, offer in several]
                busy = [offer.replica for offer in offers if _is_busy(offer.replica)]
                drain = weight(new.slot) * new.asked * self._drain_s(busy)
                cost = drain + sum(lost for lost, _ in several)
                if cost < least and _is_enough(offers, missing):
                    least, best = cost, offers
        return best

    def _absence(self, new: Newcomer, offer: Offer) -> float:
        """Weighted seconds that requests will wait because a replica has left.

        Those that wait for it already and those that come while it is away wait for its return;
        and if anybody asks for it within the time for which an idle model usually stays, somebody
        pays for bringing it back.
        """
        slot = offer.replica.model
        back, down = return_s(offer.replica, offer.level), down_s(offer.replica, offer.level)
        away = self._pace.service_s + _down_again_s(new) + back + new.up_s
        rate, full = self._share(offer.replica)
        waits = len(slot.queue) * away + rate * away * away / (2.0 * (1.0 - full))
        returns = rate / (rate + 1.0 / STAYS_S) * (back + down / 2.0)
        return weight(slot) * (waits + returns)

    def _enough(
        self, ranked: Sequence[ReplicaState], missing: Mapping[str, int], deep: int
    ) -> list[Offer] | None:
        open_mib = dict(missing)
        chosen: list[Offer] = []
        for replica in ranked:
            if not open_mib:
                break
            level = level_to_leave_to(replica, self._soon, at_least=deep)
            given = gives(replica, level)
            if not any(given.get(device, 0) > 0 for device in open_mib):
                continue
            chosen.append(Offer(replica, level, given))
            open_mib = _still_missing(open_mib, given)
        if open_mib:
            return None
        return _without_superfluous(chosen, missing)

    def _candidates(self, newcomer: Newcomer, missing: Mapping[str, int]) -> list[ReplicaState]:
        if self._by_device is None:
            self._by_device = {}
            for replica in self._holders:
                if _may_leave(replica):
                    for device in replica.held_mib:
                        self._by_device.setdefault(device, []).append(replica)
        found: dict[int, ReplicaState] = {}
        for device in missing:
            for replica in self._by_device.get(device, ()):
                if replica.model is not newcomer.slot and id(replica) not in self._taken:
                    found[id(replica)] = replica
        return list(found.values())

    def _missed(self, replica: ReplicaState, missing: Mapping[str, int]) -> float:
        """What its absence costs for each MiB that helps: requests per second times seconds."""
        slot = replica.model
        helps = sum(min(mib, missing.get(d, 0)) for d, mib in replica.held_mib.items())
        others = max(1, len(slot.serving))
        asked = (len(slot.queue) + slot.demand.rate(self._now)) / others
        if replica.state is State.ASLEEP:
            away = return_s(replica, STOP) - return_s(replica, replica.life.level)
            away = max(0.0, away) + down_s(replica, STOP)
        else:
            level = level_to_leave_to(replica, self._soon)
            away = return_s(replica, level) + down_s(replica, level)
        return weight(slot) * asked * away / max(1, helps)

    # ----------------------------------------------------------------------------------- the price

    def _weigh(
        self, new: Newcomer, offers: Sequence[Offer], busy: Sequence[ReplicaState]
    ) -> Verdict:
        policy, now = self._policy, self._now
        drain = self._drain_s(busy)
        down = sum(down_s(each.replica, each.level) for each in offers)
        arriving = drain + down + new.up_s
        back_down = _down_again_s(new)
        loss = longest = fullest = asked = 0.0
        for each in offers:
            slot = each.replica.model
            back = return_s(each.replica, each.level)
            away = arriving + self._pace.service_s + back_down + back
            rate, full = self._share(each.replica)
            lost = len(slot.queue) * away + rate * away * away / (2.0 * (1.0 - full))
            loss += weight(slot) * lost
            longest, fullest = max(longest, away), max(fullest, full)
            asked += weight(slot) * rate * (back + down_s(each.replica, each.level))
        ours = weight(new.slot)
        bound = max(new.aged_after_s, policy.away_factor * longest / (1.0 - fullest))
        enough = policy.loss_factor * loss
        is_balanced = ours * new.waited_s >= enough
        rested_at = -1.0
        if busy:
            stay = policy.residency_factor * arriving - policy.residency_factor * drain
            rested_at = max(each.ready_since for each in busy) + stay
            is_aged = new.oldest_s + arriving >= bound
            is_worth_it = now >= rested_at and (is_balanced or is_aged)
        else:
            is_aged = new.oldest_s >= bound
            is_worth_it = asked < ours * new.asked or is_balanced or is_aged
        cost = sum(self._absence(new, each) for each in offers) + ours * new.asked * arriving
        until = 0.5 if is_balanced else (enough / ours - new.waited_s) / max(1, new.asked)
        aged_in = bound - new.oldest_s - (arriving if busy else 0.0)
        until = max(min(until, aged_in), rested_at - now)
        look_at = now + min(LATEST_S, max(SOONEST_S, until))
        return Verdict(new.choice, offers, cost, is_worth_it, look_at)

    def _drain_s(self, busy: Sequence[ReplicaState]) -> float:
        return DRAIN * self._pace.service_s if busy else 0.0

    def _share(self, replica: ReplicaState) -> tuple[float, float]:
        """What of its model's requests a replica serves, and how full it is."""
        slot = replica.model
        others = max(1, len(slot.serving))
        places = slot.spec.limits.concurrency or 16
        full = slot.demand.load(self._now) / others / places
        return slot.demand.rate(self._now) / others, min(FULL, full)


def _may_leave(replica: ReplicaState) -> bool:
    if replica.promised_to or replica.spec.pinned or replica.reservation is not None:
        return False
    if replica.state is State.ASLEEP:
        return not replica.model.wanted
    return replica.state is State.READY


def _is_busy(replica: ReplicaState) -> bool:
    return replica.state is State.READY and bool(replica.in_flight or replica.model.queue)


def _down_again_s(new: Newcomer) -> float:
    """How long the newcomer itself would take to leave again."""
    slot, levels = new.slot, new.slot.sleep_levels
    step = SLEEP[levels[0]] if levels else Step.STOP
    return slot.costs.seconds(slot.spec, new.choice, step)


def _still_missing(missing: Mapping[str, int], given: Mapping[str, int]) -> dict[str, int]:
    after = {device: mib - given.get(device, 0) for device, mib in missing.items()}
    return {device: mib for device, mib in after.items() if mib > 0}


def _is_enough(offers: Sequence[Offer], missing: Mapping[str, int]) -> bool:
    return all(
        sum(offer.gives_mib.get(device, 0) for offer in offers) >= mib
        for device, mib in missing.items()
    )


def _without_superfluous(chosen: list[Offer], missing: Mapping[str, int]) -> list[Offer]:
    """Leave out, the most missed first, whoever is not needed after all."""
    spare = {d: sum(o.gives_mib.get(d, 0) for o in chosen) - mib for d, mib in missing.items()}
    for offer in reversed(chosen[:]):
        if all(offer.gives_mib.get(device, 0) <= mib for device, mib in spare.items()):
            chosen.remove(offer)
            for device in spare:
                spare[device] -= offer.gives_mib.get(device, 0)
    return chosen
