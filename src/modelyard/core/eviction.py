"""Who leaves when memory is short.

Laws of this file:
- Only what the caller offers may leave; the caller offers idle models, least recently used first.
- As few as possible leave: whoever turns out to be superfluous stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modelyard.core.placement import fits, give
from modelyard.core.specs import Need


@dataclass(frozen=True, slots=True)
class Resident:
    """A model that may be stopped, and what it holds."""

    model: str
    claims_mib: Need


def victims(need: Need, left: Mapping[str, int], offered: Sequence[Resident]) -> list[str] | None:
    """The models to stop so that `need` fits into `left`, or None if stopping all is not enough.

    `offered` is in the order in which models should leave. Models that hold nothing on a short
    device are never taken.
    """
    after = dict(left)
    taken: list[Resident] = []
    for resident in offered:
        if fits(need, after):
            break
        short = {device for device, mib in need.items() if mib > after.get(device, 0)}
        if any(resident.claims_mib.get(device, 0) > 0 for device in short):
            give(after, resident.claims_mib)
            taken.append(resident)
    if not fits(need, after):
        return None
    for resident in tuple(taken):
        without = dict(after)
        for device, mib in resident.claims_mib.items():
            without[device] -= mib
        if fits(need, without):
            after = without
            taken.remove(resident)
    return [resident.model for resident in taken]
