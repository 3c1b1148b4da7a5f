"""The policy: who starts now and who has to leave for it.

Laws of this file:
- A plan is a pure function of the state and `now`; `Scheduler` carries it out.
- Among waiting models the higher priority goes first, then the longer wait. Memory that is being
  freed for one is promised to it and not given to a later one.
- A model gets the first of its profiles whose memory can be had, if need be by idle models leaving,
  least recently used first. Only if none can, and it has waited for `fair_after_s`, models in use
  leave by a drain, if they have been ready for as long. Pinned ones stay.
- On one GPU memory moves for one replica at a time: an engine that starts measures what is free
  there, and two that sleep or wake at once have hung each other (vLLM issue 37065).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from modelyard.core import eviction, placement
from modelyard.core.eviction import Resident
from modelyard.core.lifecycle import State
from modelyard.core.policy import Policy
from modelyard.core.specs import HOST_DEVICE, Device, Placement
from modelyard.core.state import ModelState


@dataclass(frozen=True, slots=True)
class Start:
    model: str
    placement: Placement


@dataclass(frozen=True, slots=True)
class Wake:
    model: str


@dataclass(frozen=True, slots=True)
class Leave:
    """Give memory back once the requests in flight are done: sleep at `level`, or stop (3)."""

    model: str
    level: int
    why: str


STOP = 3
"""The level of leaving at which no process is left."""
WEIGHTS_ON_HOST = 1
RESIDUE_MIB = 1024
"""What an engine is expected to keep on a GPU asleep until it was seen to: its context, NCCL and
graphs. Measured residues: 0.77 GB with one GPU, 1.14 GB (vLLM issues)."""


@dataclass(frozen=True, slots=True)
class _Offer:
    """A model that may leave, how, and what that gives."""

    resident: Resident
    level: int


@dataclass(slots=True)
class Plan:
    """What to do, in order, and why each waiting model did not get the profiles it prefers."""

    steps: list[Start | Wake | Leave] = field(default_factory=list)
    passed_over: dict[str, list[str]] = field(default_factory=dict)


def is_startable(slot: ModelState, now: float) -> bool:
    """Whether nothing but memory keeps the model from starting."""
    if slot.state is State.BACKOFF:
        return slot.retry_at <= now
    return slot.state in (State.STOPPED, State.ASLEEP)


def plan(
    models: Mapping[str, ModelState], devices: Sequence[Device], policy: Policy, now: float
) -> Plan:
    """Place the waiting models as well as memory allows at this moment."""
    waiting = [slot for slot in models.values() if slot.wanted and is_startable(slot, now)]
    if not waiting:
        return Plan()
    waiting.sort(key=lambda slot: (-slot.spec.priority, slot.waiting_since))
    planner = _Planner(models, devices, policy, now)
    for slot in waiting:
        planner.place(slot)
    return planner.plan


MOVING = frozenset(
    {State.STARTING, State.RESTARTING, State.WAKING, State.SUSPENDING, State.STOPPING}
)


def moving_gpus(slots: Iterable[ModelState], devices: Sequence[Device]) -> set[str]:
    """The GPUs on which a replica is taking memory or giving it back."""
    gpus = {device.id for device in devices if device.kind != HOST_DEVICE}
    moving = (slot.placement for slot in slots if slot.state in MOVING and slot.placement)
    return gpus.intersection(chain.from_iterable(each.claims_mib for each in moving))


def lightest_level(
    slot: ModelState,
    models: Mapping[str, ModelState],
    devices: Sequence[Device],
    *,
    at_least: int,
) -> int:
    """How a model sleeps while nobody needs its memory: as lightly as the host can hold."""
    left = placement.free(devices, [other.held_mib for other in models.values()])
    for level in (each for each in slot.sleep_levels if each >= at_least):
        if _has_room_for(_gives(slot, level), left):
            return level
    return STOP


class _Planner:
    """One round of planning: what is free, what will be, and on which GPUs memory moves."""

    def __init__(
        self,
        models: Mapping[str, ModelState],
        devices: Sequence[Device],
        policy: Policy,
        now: float,
    ) -> None:
        self.plan = Plan()
        self._devices = devices
        self._policy = policy
        self._now = now
        self._holders = [slot for slot in models.values() if slot.placement is not None]
        self._leaving: set[str] = set()
        self._left = placement.free(devices, [slot.held_mib for slot in self._holders])
        self._soon = dict(self._left)  # what is left when all who are stopping have stopped
        for slot in self._in(State.STOPPING):
            placement.give(self._soon, slot.held_mib)
        for slot in self._in(State.SUSPENDING):
            placement.give(self._soon, _gives(slot, slot.replica.level))
        self._gpus = {device.id for device in devices if device.kind != HOST_DEVICE}
        self._moving = moving_gpus(self._holders, devices)

    def place(self, slot: ModelState) -> None:
        if slot.state is State.ASLEEP and slot.placement is not None:
            self._place(slot, [[_waking(slot, slot.placement)]], [])
        else:
            found, passed_over = placement.candidates(slot.spec, self._devices, slot.footprints)
            self._place(slot, placement.by_profile(found), passed_over)

    def _place(
        self, slot: ModelState, profiles: Sequence[Sequence[Placement]], passed_over: list[str]
    ) -> None:
        self.plan.passed_over[slot.spec.id] = passed_over
        for choices in profiles:
            if self._begin_or_promise(slot, choices):
                return
            if any(self._make_room(slot, choices, offer) for offer in self._idle_offers(slot)):
                return
            passed_over.append(placement.shortage(choices, self._soon))
        if self._now - slot.waiting_since >= self._policy.fair_after_s:
            for choices in profiles:
                if self._make_room(slot, choices, self._offers_with_their_share(slot)):
                    return

    def _begin_or_promise(self, slot: ModelState, choices: Sequence[Placement]) -> bool:
        chosen = placement.roomiest(choices, self._left, self._soon)
        if chosen is not None and self._moving.isdisjoint(chosen.claims_mib):
            placement.take(self._left, chosen.claims_mib)
            placement.take(self._soon, chosen.claims_mib)
            self._moving |= self._gpus.intersection(chosen.claims_mib)
            asleep = slot.state is State.ASLEEP
            self.plan.steps.append(Wake(slot.spec.id) if asleep else Start(slot.spec.id, chosen))
            return True
        promised = placement.roomiest(choices, self._soon)
        if promised is not None:
            placement.take(self._soon, promised.claims_mib)
        return promised is not None

    def _make_room(
        self, slot: ModelState, choices: Sequence[Placement], offered: Sequence[_Offer]
    ) -> bool:
        """Have as few of the offered leave as possible so that one of the choices fits soon."""
        residents = [offer.resident for offer in offered]
        for choice in choices:
            leaving = eviction.victims(choice.claims_mib, self._soon, residents)
            if leaving is None:
                continue
            for offer in offered:
                if offer.resident.model in leaving:
                    self._leave(offer, f"to make room for {slot.spec.id}")
            placement.take(self._soon, choice.claims_mib)
            return True
        return False

    def _leave(self, offer: _Offer, why: str) -> None:
        """Have a model leave, now or when its turn on its GPUs comes; either way it is promised."""
        resident = offer.resident
        gpus = self._gpus.intersection(resident.claims_mib)
        placement.give(self._soon, resident.claims_mib)
        self._leaving.add(resident.model)
        if self._moving.isdisjoint(gpus):
            self._moving |= gpus
            self.plan.steps.append(Leave(resident.model, offer.level, why))

    def _idle_offers(self, for_whom: ModelState) -> list[list[_Offer]]:
        """What idle models offer: first to sleep where they can, then to stop altogether."""
        idle = [slot for slot in self._holders if self._may_leave(slot, True)]
        asleep = [
            slot
            for slot in self._in(State.ASLEEP)
            if slot is not for_whom and not slot.wanted and slot.spec.id not in self._leaving
        ]
        if not asleep and not any(slot.sleep_levels for slot in idle):
            return [_stopping(idle)]
        sleeping = [self._sleeping(slot) for slot in _least_recently_used(idle)]
        return [sleeping, _stopping([*asleep, *idle])]

    def _sleeping(self, slot: ModelState) -> _Offer:
        """Sleep as deep as it can, since others want its memory; level 1 needs room on the host."""
        for level in reversed(slot.sleep_levels):
            gives = _gives(slot, level)
            if _has_room_for(gives, self._soon):
                return _Offer(Resident(slot.spec.id, gives), level)
        return _Offer(Resident(slot.spec.id, slot.held_mib), STOP)

    def _offers_with_their_share(self, for_whom: ModelState) -> list[_Offer]:
        """Idle models, then models in use that have been ready for as long as anybody must wait."""
        enough = self._now - self._policy.fair_after_s
        busy = (
            slot
            for slot in self._holders
            if self._may_leave(slot, False) and slot.ready_since <= enough
        )
        last = self._idle_offers(for_whom)[-1]
        return [*last, *(self._sleeping(slot) for slot in _least_recently_used(busy))]

    def _may_leave(self, slot: ModelState, idle: bool) -> bool:
        return (
            slot.state is State.READY
            and slot.idle is idle
            and not slot.spec.pinned
            and slot.spec.id not in self._leaving
        )

    def _in(self, *states: State) -> list[ModelState]:
        return [slot for slot in self._holders if slot.state in states]


def _waking(slot: ModelState, placed: Placement) -> Placement:
    """What a sleeping replica needs beside what it keeps."""
    missing = {
        device: mib - slot.asleep_mib.get(device, 0) for device, mib in slot.awake_mib.items()
    }
    return replace(placed, claims_mib={d: mib for d, mib in missing.items() if mib > 0})


def residue(slot: ModelState, level: int) -> dict[str, int]:
    """What a replica is expected to keep asleep: what it was seen to keep, else a rule of thumb.

    Level 1 keeps the weights in host memory: at most what it holds on its devices.
    """
    held = slot.placement.claims_mib if slot.placement else {}
    seen = slot.footprints.residue(slot.placement, level) if slot.placement else {}
    if seen:
        return seen
    kept = {device: min(mib, RESIDUE_MIB) for device, mib in held.items() if device != HOST_DEVICE}
    kept[HOST_DEVICE] = held.get(HOST_DEVICE, 0)
    if level == WEIGHTS_ON_HOST:
        kept[HOST_DEVICE] += sum(mib for device, mib in held.items() if device != HOST_DEVICE)
    return kept


def _gives(slot: ModelState, level: int) -> dict[str, int]:
    """What falls free when the replica goes to sleep; negative where it then needs more."""
    after = residue(slot, level)
    devices = {*slot.held_mib, *after}
    change = {d: slot.held_mib.get(d, 0) - after.get(d, 0) for d in devices}
    return {device: mib for device, mib in change.items() if mib}


def _has_room_for(gives: Mapping[str, int], left: Mapping[str, int]) -> bool:
    return all(left.get(device, 0) >= -mib for device, mib in gives.items() if mib < 0)


def _stopping(slots: Iterable[ModelState]) -> list[_Offer]:
    return [
        _Offer(Resident(slot.spec.id, slot.held_mib), STOP) for slot in _least_recently_used(slots)
    ]


def _least_recently_used(slots: Iterable[ModelState]) -> list[ModelState]:
    return sorted(slots, key=lambda slot: slot.last_used)
