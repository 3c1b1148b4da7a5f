"""From what a run was measured to hold to what the next one claims.

Laws of this file:
- Knowledge goes by position, the place of a device in its placement (`0`, `1`, …) or `cpu`, and by
  the kinds of the devices: the same profile on another card of the same kind takes the same.
- On GPUs a measurement wins over what was declared, and that over the estimate. On the host the
  larger counts: an engine touches its memory there little by little (mapped weights, KV cache), so
  an early measurement is too low.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from modelyard.core.devices import short_name
from modelyard.core.specs import HOST_DEVICE, Device, Need, Placement

AWAKE = 0

ByPosition: TypeAlias = Mapping[str, int]


def kinds_of(devices: Sequence[Device]) -> str:
    """What the devices are, such that the same words mean devices that can be swapped."""
    return "+".join(short_name(device.name) for device in devices)


def by_position(placed: Placement, used: Need) -> dict[str, int]:
    """A need by device as one by position; devices that are not of the placement are left out."""
    found = {
        str(at): used[device]
        for at, device in enumerate(placed.devices)
        if device in used and device != HOST_DEVICE
    }
    if HOST_DEVICE in used:
        found[HOST_DEVICE] = used[HOST_DEVICE]
    return found


@dataclass(slots=True)
class Footprints:
    """What is known of one model: by profile, kinds of devices and sleep level."""

    known: dict[tuple[str, str, int], ByPosition] = field(default_factory=dict)

    def claims(
        self, profile: str, chosen: Sequence[Device], expected: Need, *, is_budget: bool = False
    ) -> dict[str, int]:
        """What to claim on each device, given what is declared or estimated.

        `is_budget` says that the engine is told to take what is expected, and does not start where
        less is free, even if it was measured to take less.
        """
        known = self.known.get((profile, kinds_of(chosen), AWAKE), {})
        claims = dict(expected)
        for at, device in enumerate(chosen):
            if device.kind == HOST_DEVICE:
                claims[device.id] = max(expected.get(device.id, 0), known.get(HOST_DEVICE, 0))
            elif str(at) in known:
                least = expected.get(device.id, 0) if is_budget else 0
                claims[device.id] = min(max(known[str(at)], least), device.most_mib)
        return claims

    def residue(self, placed: Placement, level: int) -> dict[str, int]:
        """What a sleeping replica was seen to keep on its devices; empty if it never slept."""
        known = self.known.get((placed.profile, placed.kinds, level), {})
        kept = {
            device: known[str(at)] for at, device in enumerate(placed.devices) if str(at) in known
        }
        if kept and HOST_DEVICE in known:
            kept[HOST_DEVICE] = known[HOST_DEVICE]
        return kept
