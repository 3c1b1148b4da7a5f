"""How a replica leaves, and what that gives.

Laws of this file:
- What a sleeping engine keeps is what it was seen to keep, else a rule of thumb.
- Level 1 keeps the weights in host memory, so it needs room there; level 2 drops them; 3 is a stop.
"""

from __future__ import annotations

from collections.abc import Mapping

from modelyard.core.costs import SLEEP, WAKE, Step
from modelyard.core.lifecycle import State
from modelyard.core.specs import HOST_DEVICE
from modelyard.core.state import ReplicaState

STOP = 3
"""The level of leaving at which no process is left."""
WEIGHTS_ON_HOST = 1
RESIDUE_MIB = 1024
"""What an engine is expected to keep on a GPU asleep until it was seen to: its context, NCCL and
graphs. Measured residues: 0.77 GB with one GPU, 1.14 GB (vLLM issues)."""


def residue(replica: ReplicaState, level: int) -> dict[str, int]:
    """What a replica is expected to keep on each device and the host at a level of sleep.

    Level 1 keeps the weights in host memory: at most what it holds on its devices.
    """
    placed = replica.placement
    held = placed.claims_mib if placed else {}
    seen = replica.model.footprints.residue(placed, level) if placed else {}
    if seen:
        return seen
    kept = {device: min(mib, RESIDUE_MIB) for device, mib in held.items() if device != HOST_DEVICE}
    kept[HOST_DEVICE] = held.get(HOST_DEVICE, 0)
    if level == WEIGHTS_ON_HOST:
        kept[HOST_DEVICE] += sum(mib for device, mib in held.items() if device != HOST_DEVICE)
    return kept


def gives(replica: ReplicaState, level: int) -> Mapping[str, int]:
    """What falls free when the replica leaves; negative where it then needs more."""
    if level == STOP:
        return replica.held_mib
    after = residue(replica, level)
    held = replica.held_mib
    change = {d: held.get(d, 0) - after.get(d, 0) for d in {*held, *after}}
    return {device: mib for device, mib in change.items() if mib}


def has_room_for(given: Mapping[str, int], left: Mapping[str, int]) -> bool:
    """Whether there is room for what a change needs more."""
    return all(left.get(device, 0) >= -mib for device, mib in given.items() if mib < 0)


def down_s(replica: ReplicaState, level: int) -> float:
    """How long it takes to leave to a level."""
    return _seconds(replica, SLEEP[level])


def return_s(replica: ReplicaState, level: int) -> float:
    """How long it takes to come back from a level."""
    return _seconds(replica, WAKE.get(level, Step.START))


def level_to_leave_to(
    replica: ReplicaState, left: Mapping[str, int], *, at_least: int = WEIGHTS_ON_HOST
) -> int:
    """How a replica leaves: the quickest there and back for which the host has room."""
    return min(
        _levels(replica, left, at_least),
        key=lambda level: (down_s(replica, level) + return_s(replica, level), level),
        default=STOP,
    )


def level_asked_for(replica: ReplicaState, left: Mapping[str, int], asked: int) -> int:
    """How a replica leaves that is told to sleep at this level: so, or as little deeper as can be
    if the host has no room."""
    return min(_levels(replica, left, asked), default=STOP)


def _levels(replica: ReplicaState, left: Mapping[str, int], at_least: int) -> list[int]:
    """The levels at which it can sleep and for which the host has room."""
    if replica.state is not State.READY:
        return []
    return [
        level
        for level in replica.sleep_levels
        if level >= at_least and has_room_for(gives(replica, level), left)
    ]


def _seconds(replica: ReplicaState, step: Step) -> float:
    assert replica.placement is not None, "only what is placed can leave"
    return replica.model.costs.seconds(replica.spec, replica.placement, step)
