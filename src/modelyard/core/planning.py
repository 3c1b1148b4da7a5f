"""The policy: who starts now, and who has to leave for it.

Laws of this file:
- A plan is a pure function of the state and `now`; `Scheduler` carries it out.
- Memory is promised before it is free: a reservation says where a model will go and who leaves for
  it. Those take no new requests, finish what they have, and leave when they are idle. What is
  promised to one is given to nobody else; a reservation whose reason is gone is dropped.
- A model gets the first of its profiles whose memory can be had, free or from idle models; only if
  none can, models in use are drained for it. Whether that is worth it is decided in `exchange`.
- On one GPU memory moves for one replica at a time: an engine that starts measures what is free
  there, and two that sleep or wake at once have hung each other (vLLM issue 37065).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import chain, takewhile

from modelyard.core import exchange, placement
from modelyard.core.costs import SLEEP, WAKE, Step
from modelyard.core.demand import Pace
from modelyard.core.exchange import Newcomer, Offer
from modelyard.core.leaving import STOP, gives, has_room_for
from modelyard.core.lifecycle import State
from modelyard.core.policy import Policy
from modelyard.core.specs import HOST_DEVICE, Device, Placement
from modelyard.core.state import COMING, GOING, ModelState, ReplicaState, Reservation

LOOKED_AT = 8
"""Waiting models that are looked at in one round, the most urgent first."""
LATER_S = 1.0
"""When the others are looked at again."""
LEAST_S = 0.5
"""What any change costs beside its duration: small models must not go first for ever."""


@dataclass(frozen=True, slots=True)
class Start:
    replica: ReplicaState
    placement: Placement


@dataclass(frozen=True, slots=True)
class Wake:
    replica: ReplicaState


@dataclass(frozen=True, slots=True)
class Leave:
    """Give memory back at once; no request is in flight. Sleep at `level`, or stop (3)."""

    replica: ReplicaState
    level: int
    why: str


@dataclass(frozen=True, slots=True)
class Reserve:
    """Promise memory to a replica and close the gates of those who leave for it."""

    replica: ReplicaState
    reservation: Reservation


@dataclass(frozen=True, slots=True)
class Unreserve:
    """The promise is off: who was to leave stays."""

    replica: ReplicaState


PlanStep = Start | Wake | Leave | Reserve | Unreserve


@dataclass(slots=True)
class Plan:
    """What to do, in order; and for those who get nothing now, why and when to look again."""

    steps: list[PlanStep] = field(default_factory=list)
    passed_over: dict[str, list[str]] = field(default_factory=dict)
    look_at: dict[str, float] = field(default_factory=dict)


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


def moving_gpus(replicas: Iterable[ReplicaState], gpus: frozenset[str]) -> set[str]:
    """The GPUs on which a replica is taking memory or giving it back."""
    moving: set[str] = set()
    for replica in replicas:
        if replica.placement and (replica.state in COMING or replica.state in GOING):
            moving |= gpus.intersection(replica.placement.claims_mib)
    return moving


def gpus_of(devices: Iterable[Device]) -> frozenset[str]:
    """The devices whose memory only one replica at a time may move."""
    return frozenset(device.id for device in devices if device.kind != HOST_DEVICE)


def aged_after_s(policy: Policy, pace: Pace) -> float:
    """The age bound: who has waited this long goes before all younger ones."""
    return max(policy.fair_after_s, policy.wait_factor * pace.usual_wait_s())


class Planner:
    """One round of planning: what is free, what will be, and on which GPUs memory moves."""

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
        self.plan = Plan()
        self._holders = holders
        self._devices = devices
        self._policy = policy
        self._now = now
        self._left = dict(left_mib)
        self._soon = dict(left_mib)  # what is left when all who are going are gone
        for replica in holders:
            if replica.state in GOING:
                placement.give(self._soon, _coming_back(replica))
        self._gpus = gpus_of(devices)
        self._moving = moving_gpus(holders, self._gpus)
        self._closed: set[str] = set()
        """Devices kept free of newcomers for the one who waits longest."""
        self._market = exchange.Market(holders, policy, pace, now, self._soon)
        self._aged_after_s = aged_after_s(policy, pace)

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

    def _reserve(
        self, replica: ReplicaState, chosen: Placement, leaving: Sequence[Offer] = ()
    ) -> None:
        self.plan.passed_over[replica.spec.id] = self._passed_over(replica, chosen)
        for offer in leaving:
            placement.give(self._soon, offer.gives_mib)
            self._market.take(offer.replica)
        placement.take(self._soon, chosen.claims_mib)
        pairs = tuple((offer.replica, offer.level) for offer in leaving)
        reservation = Reservation(chosen, self._now, pairs)
        self.plan.steps.append(Reserve(replica, reservation))
        self._pursue(replica, chosen, pairs)

    def _pursue(
        self,
        replica: ReplicaState,
        chosen: Placement,
        leaving: Iterable[tuple[ReplicaState, int]],
    ) -> None:
        """Begin what can begin now: the start itself, or else the leaving of those who are idle.

        `leaving` are those who have not begun to leave.
        """
        claims = chosen.claims_mib
        if placement.fits(claims, self._left):
            if self._moving.isdisjoint(claims):
                placement.take(self._left, claims)
                self._moving |= self._gpus.intersection(claims)
                asleep = replica.state is State.ASLEEP
                self.plan.steps.append(Wake(replica) if asleep else Start(replica, chosen))
            return
        for leaver, level in leaving:
            gpus = self._gpus.intersection(leaver.held_mib)
            if not leaver.in_flight and self._moving.isdisjoint(gpus):
                self._moving |= gpus
                why = f"to make room for {replica.spec.id}"
                level = self._possible(leaver, level)
                needs = {d: -mib for d, mib in gives(leaver, level).items() if mib < 0}
                placement.take(self._left, needs)
                self.plan.steps.append(Leave(leaver, level, why))

    def _possible(self, leaver: ReplicaState, level: int) -> int:
        """The level, or the next deeper one for which the host has room now."""
        levels = [each for each in leaver.sleep_levels if each >= level]
        if leaver.state is State.READY:
            for each in levels:
                if has_room_for(gives(leaver, each), self._left):
                    return each
        return STOP

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
        judged: list[list[exchange.Verdict]] = []
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
        self,
        slot: ModelState,
        replica: ReplicaState,
        choices: Sequence[Placement],
    ) -> list[exchange.Verdict]:
        found = []
        asked, waited_s, down_s = _asked(slot), self._waited_s(slot), self._down_s(slot)
        oldest_s = self._now - slot.waiting_since
        for choice in choices:
            gpus = self._gpus.intersection(choice.claims_mib)
            if not (self._moving.isdisjoint(gpus) and self._closed.isdisjoint(gpus)):
                continue
            newcomer = Newcomer(
                slot,
                replica,
                choice,
                asked,
                waited_s,
                oldest_s,
                self._up_s(slot, choice),
                down_s,
                self._aged_after_s,
            )
            verdict = self._market.judge(newcomer)
            if verdict is not None:
                found.append(verdict)
        return found

    def _agree(self, replica: ReplicaState, verdicts: Sequence[exchange.Verdict]) -> bool:
        """Take the cheapest exchange that is worth it, if there is one."""
        worth_it = [verdict for verdict in verdicts if verdict.is_worth_it]
        if not worth_it:
            return False
        best = min(worth_it, key=lambda verdict: verdict.cost)
        self._reserve(replica, best.choice, best.offers)
        return True

    def _put_off(self, slot: ModelState, judged: Sequence[exchange.Verdict], known: float) -> None:
        """Look at the model again when one of the exchanges may be worth it, or at what is known
        of those that were not weighed now; if there are none, when something changes."""
        self.plan.look_at[slot.spec.id] = min([known, *(each.look_at for each in judged)])
        if judged and not self._closed and self.is_starved(slot):
            cheapest = min(judged, key=lambda verdict: verdict.cost)
            self._closed |= self._gpus.intersection(cheapest.choice.claims_mib)

    # ------------------------------------------------------------------------------------ prefetch

    def prefetch(self, candidates: Iterable[ReplicaState]) -> None:
        """Bring back who had to leave, into memory that nobody needs; nobody leaves for it."""
        if not self._policy.prefetch:
            return
        best = max(candidates, key=self._return, default=None)
        if best is not None and self._return(best) > 0:
            self.place_in_free_memory(best)

    def _return(self, replica: ReplicaState) -> float:
        slot = replica.model
        return slot.demand.rate(self._now) * self._up_s(slot)

    # ------------------------------------------------------------------------------------- helpers

    def _profiles(self, replica: ReplicaState) -> Sequence[Sequence[Placement]]:
        if replica.state is State.ASLEEP and replica.placement is not None:
            return [[_waking(replica, replica.placement)]]
        return placement.ways(replica.model, self._devices).profiles

    def _passed_over(self, replica: ReplicaState, chosen: Placement) -> list[str]:
        """Why each profile before the chosen one was not taken."""
        if replica.state is State.ASLEEP:
            return replica.model.passed_over
        ways = placement.ways(replica.model, self._devices)
        before = takewhile(lambda each: each[0].profile != chosen.profile, ways.profiles)
        return [*ways.lacking, *(placement.shortage(each, self._soon) for each in before)]

    def _waited_s(self, slot: ModelState) -> float:
        waited = slot.queue.waited_s(self._now)
        if slot.wanted_since is not None:
            waited += self._now - slot.wanted_since
        return waited

    def _up_s(self, slot: ModelState, choice: Placement | None = None) -> float:
        replica = slot.best
        if replica.state is State.ASLEEP and replica.placement is not None:
            step = WAKE.get(replica.life.level, Step.START)
            return slot.costs.seconds(slot.spec, replica.placement, step)
        if choice is None:
            found = _first_choice(slot, self._devices)
            if found is None:
                return 0.0
            choice = found
        return slot.costs.seconds(slot.spec, choice, Step.START)

    def _down_s(self, slot: ModelState) -> float:
        """How long the model takes to leave again, where it was or would first be placed."""
        placed = slot.placement or _first_choice(slot, self._devices)
        step = SLEEP[slot.sleep_levels[0]] if slot.sleep_levels else Step.STOP
        return slot.costs.seconds(slot.spec, placed, step) if placed is not None else 0.0


def _asked(slot: ModelState) -> int:
    """How many wait for the model; a person counts as one."""
    return len(slot.queue) + (slot.wanted_since is not None)


def _first_choice(slot: ModelState, devices: Sequence[Device]) -> Placement | None:
    profiles = placement.ways(slot, devices).profiles
    return profiles[0][0] if profiles else None


def _coming_back(replica: ReplicaState) -> Mapping[str, int]:
    """What a replica that is going will have given back."""
    if replica.state is State.SUSPENDING:
        return gives(replica, replica.life.level)
    return replica.held_mib


def _waking(replica: ReplicaState, placed: Placement) -> Placement:
    """What a sleeping replica needs beside what it keeps."""
    missing = {
        device: mib - replica.asleep_mib.get(device, 0) for device, mib in replica.awake_mib.items()
    }
    claims = {device: mib for device, mib in missing.items() if mib > 0}
    return Placement(placed.profile, claims, placed.devices, placed.kinds)
