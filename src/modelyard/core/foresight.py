"""What is done while nobody waits, so that the next who comes waits less.

Laws of this file:
- Nobody leaves for a model that was not asked for. Who leaves ahead does so for what is asked of
  all who are away together: what they are expected to save counts against what it will be missed.
- Nobody comes but into memory that nobody needs, and only if that is worth a multiple of the
  memory free, so that what leaves ahead does not come back at once.
- Both sides are counted as everywhere: requests per second times seconds that they wait. Rates fade
  nearly alike, so by time alone hardly a decision changes; what changes one is that somebody asks.
- Requests are taken to come at their rate, at any moment: neither gaps that were seen before nor
  who asked last told more about who comes next, on any of the traces in `bench/traces`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import NamedTuple

from modelyard.core.leavers import Leavers
from modelyard.core.leaving import WEIGHTS_ON_HOST, gives, has_room_for, residue, return_s
from modelyard.core.lifecycle import State
from modelyard.core.planning import Planner, next_replica
from modelyard.core.policy import Policy
from modelyard.core.specs import HOST_DEVICE, Placement
from modelyard.core.state import ModelState, ReplicaState, is_serving
from modelyard.core.swap import Offer, weight

LOOKED_AT = 8
"""Models that are away and of which most is asked, for which room is made."""
RETURNS = 4
"""Models that are looked at for a return."""
WORTH = 4.0
"""How many times what others lose by it a return has to save."""
SURELY = 1.4
"""How many times what it is missed an early leaving has to save: rates are guesses."""
DEEP = 2
"""The level of sleep at which the host keeps nothing."""
LEAST_RATE = 1e-7
"""Requests per second that are none: one in four months."""


class _Away(NamedTuple):
    """A model that would have to come up if somebody asked for it."""

    asked: float
    """Requests per second, times their weight."""
    model: str
    replica: ReplicaState
    room: list[Placement]
    """Where it finds room when all who go are gone."""


class Foresight:
    """Looks ahead for one round of planning in which everybody who waits has been seen to."""

    def __init__(
        self,
        planner: Planner,
        policy: Policy,
        models: Collection[ModelState],
        left_mib: Mapping[str, int],
        leavers: Leavers,
        now: float,
    ) -> None:
        self._leavers = leavers
        planner.see_leavers(leavers)
        self._planner = planner
        self._policy = policy
        self._models = models
        self._left = left_mib
        self._now = now
        self._away = self._those_away()

    def look(self) -> float:
        """Make room, and bring back whom it pays to have. When to look again if nothing happens."""
        look_at = self._make_room() if self._policy.make_room else math.inf
        if self._policy.prefetch:
            self._bring_back()
        self._sink()
        return look_at

    def _those_away(self) -> list[_Away]:
        here = {replica.model for replica in self._planner.holders if is_serving(replica)}
        asked = [
            (weight(slot) * slot.demand.rate(self._now), slot.spec.id, slot)
            for slot in self._models
            if slot not in here
        ]
        asked = [each for each in asked if each[0] > LEAST_RATE]
        asked.sort(reverse=True)
        return [*islice(self._comers(asked), LOOKED_AT)]

    def _comers(self, asked: Iterable[tuple[float, str, ModelState]]) -> Iterator[_Away]:
        placed = self._planner.plan.placed
        for rate, model, slot in asked:
            if not slot.wanted and not slot.removed and model not in placed:
                replica = next_replica(slot, self._now)
                if replica is not None:
                    yield _Away(rate, model, replica, self._planner.room_for(replica))

    # ---------------------------------------------------------------------------------------- room

    def _make_room(self) -> float:
        """Let those leave by whose going the others save more than they are missed themselves.

        Returns when the first of them will have been unused for long enough.
        """
        saved: dict[str, float] = {}
        offers: dict[str, Offer] = {}
        look_at = math.inf
        for away in self._away:
            if away.room:
                continue
            for offer in self._planner.would_leave(away.replica, self._leavers):
                key = offer.replica.key
                saved[key] = saved.get(key, 0.0) + away.asked * offer.down_s
                offers[key] = offer
        for key in sorted(saved, key=lambda key: (_missed(offers[key]) - saved[key], key)):
            offer = offers[key]
            if saved[key] <= SURELY * _missed(offer) or not _may_go(offer):
                continue
            unused_at = offer.replica.last_used + self._policy.make_room_after_s
            if unused_at <= self._now:
                self._planner.leave_ahead(offer)
            else:
                look_at = min(look_at, unused_at)
        return look_at

    # ------------------------------------------------------------------------------------- returns

    def _bring_back(self) -> None:
        """Let the one come back, of those who had to leave, whom it pays most to have."""
        left = [away for away in self._away if self._had_to_leave(away.replica)]
        best = sorted((-self._saves(away), away.model, away) for away in left)[:RETURNS]
        for saves, _, away in best:
            place = self._planner.free_place(away.replica) if away.room else None
            if place is not None and -saves > WORTH * self._loses(away, place):
                self._planner.come(away.replica, place)
                return

    # ------------------------------------------------------------------------------ host memory

    def _sink(self) -> None:
        """Let the sleeper that is asked for least sleep deeper, if one in use needs its place on
        the host more: without that it could not sleep lightly itself when it has to leave."""
        holders = self._planner.holders
        homeless = [r for r in holders if r.state is State.READY and self._lacks_host(r)]
        if not homeless:
            return
        hottest = max(self._light_s(replica) for replica in homeless)
        sleepers = [
            (self._light_s(replica), replica.key, replica)
            for replica in holders
            if _sleeps_lightly(replica) and not replica.model.wanted and not replica.promised_to
        ]
        for saves, _, sleeper in sorted(sleepers)[:RETURNS]:
            if hottest > WORTH * saves and self._planner.deepen(sleeper, DEEP):
                return

    def _lacks_host(self, replica: ReplicaState) -> bool:
        """Whether only the host's memory keeps it from sleeping lightly."""
        levels = replica.sleep_levels
        if WEIGHTS_ON_HOST not in levels or DEEP not in levels or replica.spec.pinned:
            return False
        return not has_room_for(gives(replica, WEIGHTS_ON_HOST), self._left)

    def _light_s(self, replica: ReplicaState) -> float:
        """What a light sleep saves over a deep one, by the second, for each GiB on the host."""
        host_mib = residue(replica, WEIGHTS_ON_HOST).get(HOST_DEVICE, 0)
        saved_s = return_s(replica, DEEP) - return_s(replica, WEIGHTS_ON_HOST)
        rate = replica.model.demand.rate(self._now) * weight(replica.model)
        return rate * max(0.0, saved_s) * 1024 / max(1, host_mib)

    def _had_to_leave(self, replica: ReplicaState) -> bool:
        """Whether it would still be here if nobody else had come."""
        limits = replica.spec.limits
        unused = self._now - replica.last_used
        bounds = (limits.idle_sleep_s, limits.idle_stop_s)
        return replica.evicted and all(bound is None or unused < bound for bound in bounds)

    def _saves(self, away: _Away) -> float:
        return away.asked * self._planner.up_s(away.replica.model)

    def _loses(self, comer: _Away, place: Placement) -> float:
        """What those lose who have room now and would have none beside it: they wait until it is
        gone again."""
        down_s = self._planner.down_s(comer.replica.model)
        return down_s * sum(
            each.asked
            for each in self._away
            if each is not comer and each.room and not self._planner.fits_beside(each.room, place)
        )


def _missed(offer: Offer) -> float:
    """What it costs that it is away, by the second."""
    return offer.weight * offer.rate * offer.back_s


def _sleeps_lightly(replica: ReplicaState) -> bool:
    """Whether it sleeps with its weights on the host, and could sleep without."""
    light = replica.state is State.ASLEEP and replica.life.level == WEIGHTS_ON_HOST
    return light and DEEP in replica.sleep_levels


def _may_go(offer: Offer) -> bool:
    """Whether it is awake, idle, and nobody wants it kept running."""
    slot = offer.replica.model
    return offer.replica.is_idle and not slot.spec.replicas.min and slot.keep_s is None
