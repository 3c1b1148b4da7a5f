"""Why a model waits, in words with numbers.

Laws of this file:
- Reads the scheduler's state and changes nothing.
- Names whoever holds what is missing; an explanation that does not say who is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modelyard.core import placement
from modelyard.core.lifecycle import State
from modelyard.core.specs import Device
from modelyard.core.state import ModelState


def why_waiting(
    models: Mapping[str, ModelState], devices: Sequence[Device], model: str, now: float
) -> str:
    """Why requests for the model wait at this moment, in one line."""
    slot = models[model]
    replica = slot.best
    match slot.state:
        case State.READY if replica.suspected:
            return "its engine broke an answer off and is being probed"
        case State.READY if replica.promised_to:
            left = replica.in_flight
            return f"its engine leaves for {replica.promised_to} after {left} more answers"
        case State.READY:
            places = slot.spec.limits.concurrency
            if places == 1:
                return "the only place of its engine is taken"
            return f"all {places} places of its engine are taken"
        case State.STARTING | State.RESTARTING:
            return f"its engine is starting (for {now - replica.started_at:.0f} s)"
        case State.WAKING:
            return f"its engine is waking up (for {now - replica.started_at:.1f} s)"
        case State.SUSPENDING:
            return (
                f"its engine is going to sleep ({replica.why_stopping}) and wakes again after that"
            )
        case State.STOPPING:
            return f"its engine is stopping ({replica.why_stopping}) and starts again after that"
        case State.BACKOFF if replica.retry_at > now:
            pause = replica.retry_at - now
            return f"it failed ({replica.life.reason}) and is tried again in {pause:.1f} s"
        case State.FAILED:
            return f"it failed: {replica.life.reason}"
        case _:
            return _who_holds_the_memory(models, devices, slot)


def _who_holds_the_memory(
    models: Mapping[str, ModelState], devices: Sequence[Device], slot: ModelState
) -> str:
    others = [
        each
        for other in models.values()
        for each in other.replicas
        if each.placement is not None and other is not slot
    ]
    ways = placement.ways(slot, devices)
    found = [choice for choices in ways.profiles for choice in choices]
    left = placement.free(devices, [other.held_mib for other in others])
    lacking = dict.fromkeys(
        str(short)
        for candidate in found
        for short in placement.shortages(candidate.claims_mib, left)
    )
    if not lacking and not ways.lacking:
        return "the memory is there, and its device is busy with another model's start or stop"
    holders = ", ".join(
        f"{other.key} ({other.state}, {other.in_flight} in flight"
        f"{', pinned' if other.spec.pinned else ''})"
        for other in others
    )
    strangers = ", ".join(
        f"{device.strangers_mib} MiB of {device.name} by other programs"
        for device in devices
        if device.strangers_mib and device.capacity_mib < device.most_mib
    )
    held = "; ".join(part for part in (holders, strangers) if part)
    return f"{'; '.join(lacking or ways.lacking)}; held by {held or 'nobody'}"
