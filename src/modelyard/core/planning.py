"""The policy: who starts now, and who has to leave for it.

Laws of this file:
- A plan is a pure function of the state and `now`; `Scheduler` carries it out.
- Memory is promised before it is free: a reservation says where a model will go and who leaves for
  it. Those take no new requests, finish what they have, and leave when they are idle. What is
  promised to one is given to nobody else; a reservation whose reason is gone is dropped.
- A model gets the first of its profiles whose memory can be had, free or from idle models; only if
  none can, models in use are drained for it. Whether that is worth it is decided in `swap`.
- Where memory moves for a while yet is worth waiting for if it is the cheaper place.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain

from modelyard.core import placement
from modelyard.core.demand import Pace
from modelyard.core.leavers import Leavers
from modelyard.core.leaving import gives
from modelyard.core.lifecycle import State
from modelyard.core.moves import Moves
from modelyard.core.plan import Deepen, Unreserve
from modelyard.core.policy import Policy
from modelyard.core.specs import HOST_DEVICE, Device, Placement
from modelyard.core.state import GOING, ModelState, ReplicaState
from modelyard.core.swap import LATEST_S, Newcomer, Offer, Swap, Verdict, weight

LOOKED_AT = 8
"""Waiting models that are looked at in one round, the most urgent first."""
LATER_S = 1.0
"""When the others are looked at again."""
LEAST_S = 0.5
"""What any change costs beside its duration: small models must not go first for ever."""


def startable(slot: ModelState, now: float) -> ReplicaState | None:
    """The replica that would serve who waits, if nothing but memory keeps it from starting.

    None if one serves already, or none can start now.
    """
    if slot.serving:
        return None
    return next_replica(slot, now)


def next_replica(slot: ModelState, now: float) -> ReplicaState | None:
    """The replica that would be brought up next: one that sleeps before one that is stopped.

    None while one of them has a place already.
    """
    if any(replica.reservation is not None for replica in slot.replicas):
        return None
    stopped: ReplicaState | None = None
    for replica in slot.replicas:
        state = replica.state
        if state is State.ASLEEP and not replica.promised_to:
            return replica
        if stopped is None and (
            state is State.STOPPED or (state is State.BACKOFF and replica.retry_at <= now)
        ):
            stopped = replica
    return stopped


def aged_after_s(policy: Policy, pace: Pace) -> float:
    """The age bound: who has waited this long goes before all younger ones."""
    return max(policy.fair_after_s, policy.wait_factor * pace.usual_wait_s())


class Planner(Moves):
    """One round of planning."""

    def __init__(
        self,
        holders: Sequence[ReplicaState],
        left_mib: Mapping[str, int],
        devices: Sequence[Device],
        policy: Policy,
        pace: Pace,
        now: float,
    ) -> None:
        """`left_mib` is what no replica counts for, by device."""
        super().__init__(holders, left_mib, devices, policy, pace, now)
        self._aged_after_s = aged_after_s(policy, pace)
        self._pace = pace

    # ------------------------------------------------------------------------------- reservations

    def keep(self, replica: ReplicaState) -> bool:
        """Go on with a reservation, or drop it; whether it stands."""
        reservation = replica.reservation
        assert reservation is not None, "only for a replica with a reservation"
        claims = reservation.placement.claims_mib
        soon = dict(self._soon)
        leaving = [
            (leaver, level)
            for leaver, level in reservation.leaving
            if leaver.promised_to == replica.spec.id and leaver.state not in GOING
        ]
        for leaver, level in leaving:
            placement.give(soon, gives(leaver, level))
        present = replica.model.wanted and self._gpus.issuperset(claims.keys() - {HOST_DEVICE})
        # Nobody leaves for another replica of a model that is served meanwhile.
        served = bool(leaving) and bool(replica.model.serving)
        if served or not present or not placement.fits(claims, soon):
            self.plan.steps.append(Unreserve(replica))
            return False
        self._soon.clear()
        self._soon.update(soon)
        placement.take(self._soon, claims)
        self._pursue(replica, reservation.placement, leaving)
        return True

    # ------------------------------------------------------------------------------------- waiting

    def order(self, waiting: Iterable[ModelState], most: int = LOOKED_AT) -> list[ModelState]:
        """Aged ones first, the oldest before; then by priority, then by the time waited for each
        second of the change (the larger batch for the cheaper change). At most so many."""
        waiting = list(waiting)
        first = heapq.nsmallest(most, waiting, key=self._rank)
        if len(waiting) > most:
            later = self._now + LATER_S
            self.plan.look_at = {slot.spec.id: later for slot in waiting if slot not in first}
        return first

    def _rank(self, slot: ModelState) -> tuple[float, float, float]:
        since = slot.waiting_since
        if self._now - since >= self._aged_after_s:
            return (0.0, since, 0.0)
        if slot.change_s is None:
            slot.change_s = self._up_s(slot) + self._down_s(slot) + LEAST_S
        return (1.0, -slot.spec.priority, -self._waited_s(slot) / slot.change_s)

    def is_starved(self, slot: ModelState) -> bool:
        """Whether it has waited so long that a place is kept free of newcomers for it."""
        waited = self._now - slot.waiting_since
        return waited >= self._policy.reserve_factor * self._aged_after_s

    def place(self, replica: ReplicaState, changed: Set[str] | None = None) -> None:
        """Find memory for a model that waits, now or by a promise.

        `changed` are the devices on which anything is new since the model was last looked at; None
        looks at all of them.
        """
        slot = replica.model
        profiles = self._profiles(replica)
        if changed is not None:
            profiles = [
                [choice for choice in choices if not changed.isdisjoint(choice.claims_mib)]
                for choices in profiles
            ]
        judged: list[list[Verdict]] = []
        for choices in profiles:
            if self._settle(replica, choices):
                return
            judged.append(self._weigh(slot, replica, choices))
            if self._agree(replica, [each for each in judged[-1] if not each.drains]):
                return
        for verdicts in judged:
            if self._agree(replica, verdicts):
                return
        known = math.inf if changed is None else slot.look_at
        self._put_off(slot, [*chain.from_iterable(judged)], known)

    def place_in_free_memory(self, replica: ReplicaState) -> bool:
        """Bring a replica up if nobody has to leave for it and no GPU is busy with another."""
        for choices in self._profiles(replica):
            idle = [c for c in choices if self._moving.isdisjoint(c.claims_mib)]
            if self._settle(replica, idle, self._left):
                return True
        return False

    def _settle(
        self,
        replica: ReplicaState,
        choices: Sequence[Placement],
        *lefts: Mapping[str, int],
    ) -> bool:
        """Take a choice for which nobody has to leave, if there is one."""
        open_ones = [each for each in choices if self._closed.isdisjoint(each.claims_mib)]
        if not open_ones:
            return False
        chosen = placement.roomiest(open_ones, self._soon, self._left, *lefts)
        chosen = chosen or placement.roomiest(open_ones, self._soon, *lefts)
        if chosen is None:
            return False
        self._reserve(replica, chosen)
        return True

    def _weigh(
        self, slot: ModelState, replica: ReplicaState, choices: Sequence[Placement]
    ) -> list[Verdict]:
        asks = _Asks(_asked(slot), self._waited_s(slot), self._now - slot.waiting_since)
        return [*self._judged(replica, choices, asks)]

    def _judged(
        self, replica: ReplicaState, choices: Iterable[Placement], asks: _Asks
    ) -> Iterator[Verdict]:
        """What a swap would cost on each of the places where no memory moves."""
        for choice in choices:
            gpus = self._gpus.intersection(choice.claims_mib)
            if self._moving.isdisjoint(gpus) and self._closed.isdisjoint(gpus):
                verdict = self._judge(replica, choice, asks)
                if verdict is not None:
                    yield verdict

    def _judge(self, replica: ReplicaState, choice: Placement, asks: _Asks) -> Verdict | None:
        slot = replica.model
        newcomer = Newcomer(
            slot,
            choice,
            asks.asked,
            asks.waited_s,
            asks.oldest_s,
            self._up_s(slot, choice),
            self._down_s(slot),
            self._aged_after_s,
        )
        return self._market.judge(newcomer)

    def _agree(self, replica: ReplicaState, verdicts: Sequence[Verdict]) -> bool:
        """Take the cheapest swap that is worth it, or wait a little for a cheaper one."""
        worth_it = [verdict for verdict in verdicts if verdict.is_worth_it]
        if not worth_it:
            return False
        best = min(worth_it, key=lambda verdict: verdict.swap.cost)
        better_in_s = self._better_in_s(replica, best)
        if better_in_s is None:
            self._reserve(replica, best.choice, best.swap.offers)
        else:
            self.plan.look_at[replica.spec.id] = self._now + better_in_s
        return True

    def _better_in_s(self, replica: ReplicaState, best: Verdict) -> float | None:
        """How long until a cheaper place is there: on a GPU where memory moves a while yet.

        None if there is none. Who has waited for the age bound takes what there is.
        """
        slot = replica.model
        asks = _Asks(_asked(slot), self._waited_s(slot), self._now - slot.waiting_since)
        if asks.oldest_s >= self._aged_after_s or not self._moving:
            return None
        for choice in chain.from_iterable(self._profiles(replica)):
            gpus = self._gpus.intersection(choice.claims_mib)
            if choice.profile != best.choice.profile or not self._closed.isdisjoint(gpus):
                continue
            rest_s = self._rest_s(gpus)
            if not rest_s:
                continue
            verdict = self._judge(replica, choice, asks)
            if verdict is None or verdict.drains:
                continue
            if verdict.swap.cost + weight(slot) * asks.asked * rest_s < best.swap.cost:
                return min(rest_s, LATEST_S)
        return None

    def _put_off(self, slot: ModelState, judged: Sequence[Verdict], known: float) -> None:
        """Look at the model again when one of the swaps may be worth it, or at what is known
        of those that were not weighed now; if there are none, when something changes."""
        self.plan.look_at[slot.spec.id] = min([known, *(each.look_at for each in judged)])
        if judged and not self._closed and self.is_starved(slot):
            cheapest = min(judged, key=lambda verdict: verdict.swap.cost)
            self._closed |= self._gpus.intersection(cheapest.choice.claims_mib)

    # --------------------------------------------------------------------------- while nobody waits

    def room_for(self, replica: ReplicaState) -> list[Placement]:
        """The places where it finds room when all who go are gone."""
        return [
            choice
            for choices in self._profiles(replica)
            for choice in choices
            if placement.fits(choice.claims_mib, self._soon)
        ]

    def fits_beside(self, choices: Iterable[Placement], other: Placement) -> bool:
        """Whether one of the places, which are free, still is when the other one is taken."""
        soon = dict(self._soon)
        placement.take(soon, other.claims_mib)
        return any(placement.fits(choice.claims_mib, soon) for choice in choices)

    def free_place(self, replica: ReplicaState) -> Placement | None:
        """Where it could come up now: nobody leaves for it, and memory moves for nobody there."""
        for choices in self._profiles(replica):
            idle = [
                choice
                for choice in choices
                if self._moving.isdisjoint(choice.claims_mib)
                and self._closed.isdisjoint(choice.claims_mib)
            ]
            found = placement.roomiest(idle, self._soon, self._left)
            if found is not None:
                return found
        return None

    def come(self, replica: ReplicaState, chosen: Placement) -> None:
        """Bring it up into memory that is free."""
        self._reserve(replica, chosen)

    def see_leavers(self, leavers: Leavers) -> None:
        """Have the leavers look at this round."""
        leavers.see(self._market, self._holders, self._soon, self._times, self._now)

    def would_leave(self, replica: ReplicaState, leavers: Leavers) -> Sequence[Offer]:
        """Who would leave if somebody asked for it now; nobody if that needs models in use."""
        slot, moving, closed = replica.model, self._moving, self._closed
        for choices in self._profiles(replica):
            best: Swap | None = None
            for choice in choices:
                claims = choice.claims_mib
                if moving.isdisjoint(claims) and closed.isdisjoint(claims):
                    swap = leavers.swap(slot, choice)
                    if swap is not None and (best is None or swap.cost < best.cost):
                        best = swap
            if best is not None:
                return best.offers
        return ()

    def _times(self, slot: ModelState, choice: Placement) -> tuple[float, float]:
        return self._up_s(slot, choice), self._down_s(slot)

    def leave_ahead(self, offer: Offer) -> bool:
        """Have an idle one give its memory back before it is needed, unless memory moves there."""
        leaver = offer.replica
        gpus = self._gpus.intersection(leaver.held_mib)
        if leaver.in_flight or not self._moving.isdisjoint(gpus):
            return False
        self._leave(leaver, offer.level, "to make room before it is needed")
        return True

    def deepen(self, sleeper: ReplicaState, level: int) -> bool:
        """Have a sleeper wake where memory is free, to sleep deeper; whether there is the room."""
        place = self.free_place(sleeper)
        if place is None:
            return False
        self.plan.steps.append(Deepen(sleeper, level))
        self.come(sleeper, place)
        return True

    def up_s(self, slot: ModelState) -> float:
        """How long the model takes to come up from where it is."""
        return self._up_s(slot)

    def down_s(self, slot: ModelState) -> float:
        """How long it takes to leave again."""
        return self._down_s(slot)

    # ------------------------------------------------------------------------------------- helpers

    def _waited_s(self, slot: ModelState) -> float:
        waited = slot.queue.waited_s(self._now)
        if slot.wanted_since is not None:
            waited += self._now - slot.wanted_since
        return waited


@dataclass(frozen=True, slots=True)
class _Asks:
    """Who waits for a model."""

    asked: int
    waited_s: float
    oldest_s: float


def _asked(slot: ModelState) -> int:
    """How many wait for the model; a person counts as one."""
    return len(slot.queue) + (slot.wanted_since is not None)
