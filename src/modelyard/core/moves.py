"""What is free, what will be, and on which GPUs memory moves, during one round of planning.

Laws of this file:
- What is promised to one is given to nobody else: every step that a plan gets is taken off here.
- On one GPU memory moves for one replica at a time: an engine that starts measures what is free
  there, and two that sleep or wake at once have hung each other (vLLM issue 37065).
- Nobody leaves with a request in flight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile

from modelyard.core import placement
from modelyard.core.costs import SLEEP, WAKE, Step
from modelyard.core.demand import Pace
from modelyard.core.leaving import STOP, down_s, gives, has_room_for, return_s
from modelyard.core.lifecycle import State
from modelyard.core.plan import Leave, Plan, Reserve, Start, Wake
from modelyard.core.policy import Policy
from modelyard.core.specs import HOST_DEVICE, Device, Placement
from modelyard.core.state import COMING, GOING, ModelState, ReplicaState, Reservation
from modelyard.core.swap import SOONEST_S, Market, Offer


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


class Moves:
    """The memory of one round, and the steps that take and give it."""

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
        self._market = Market(holders, policy, pace, now, self._soon)

    @property
    def holders(self) -> Sequence[ReplicaState]:
        """The replicas that have a place."""
        return self._holders

    def _reserve(
        self, replica: ReplicaState, chosen: Placement, leaving: Sequence[Offer] = ()
    ) -> None:
        self.plan.passed_over[replica.spec.id] = self._passed_over(replica, chosen)
        self.plan.placed.add(replica.spec.id)
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
                self._leave(leaver, level, f"to make room for {replica.spec.id}")

    def _leave(self, leaver: ReplicaState, level: int, why: str) -> None:
        """Begin a leaving. What it needs more meanwhile, room on the host, is taken."""
        self._moving |= self._gpus.intersection(leaver.held_mib)
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

    def _rest_s(self, gpus: frozenset[str]) -> float | None:
        """How long memory moves yet on these GPUs; 0 if it does not, None if nobody knows."""
        rest_s = 0.0
        begun: set[str] = set()
        for mover in self._holders:
            moves = mover.state in COMING or mover.state in GOING
            if moves and not gpus.isdisjoint(mover.held_mib):
                if mover.state in GOING and mover.in_flight:
                    return None
                begun |= gpus.intersection(mover.held_mib)
                rest_s = max(rest_s, SOONEST_S, _ends_at(mover) - self._now)
        return None if self._moving & gpus - begun else rest_s

    # ------------------------------------------------------------------------------------ durations

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


def _ends_at(mover: ReplicaState) -> float:
    """When a replica is expected to have come, or to have gone."""
    if mover.state in GOING:
        level = mover.life.level if mover.state is State.SUSPENDING else STOP
        return mover.changing_since + down_s(mover, level)
    level = mover.life.level if mover.state is State.WAKING else STOP
    return mover.started_at + return_s(mover, level)


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
