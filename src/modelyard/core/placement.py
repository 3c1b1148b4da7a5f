"""Where a replica goes: which profile, and what it claims on which device.

Laws of this file:
- A profile is looked at in the order written; the first that fits is taken, and why each other one
  was passed over is returned.
- Claims are declared numbers where the profile declares them, otherwise the estimate; a replica on
  several devices without declared numbers shares the estimate equally.
- Nothing here decides who has to leave: that is `eviction`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from modelyard.core.specs import Device, ModelSpec, Need, Placement, Profile


@dataclass(frozen=True, slots=True)
class Shortage:
    """A device that lacks memory for a need."""

    device: str
    needed_mib: int
    free_mib: int

    def __str__(self) -> str:
        return f"{self.device} has {self.free_mib} MiB free of the {self.needed_mib} MiB needed"


def candidates(spec: ModelSpec, devices: Sequence[Device]) -> tuple[list[Placement], list[str]]:
    """Every profile whose devices are all present, as a placement, in order of preference.

    The second list says for each other profile what it lacks.
    """
    placements: list[Placement] = []
    passed_over: list[str] = []
    for profile in spec.profiles:
        found = [_match(name, devices) for name in profile.devices]
        missing = [name for name, device in zip(profile.devices, found, strict=True) if not device]
        if missing:
            present = ", ".join(device.name for device in devices) or "none"
            lacking = ", ".join(missing)
            passed_over.append(f"profile {profile.name!r} needs {lacking}; present: {present}")
            continue
        claims = _claims(spec, profile, [device for device in found if device])
        placements.append(Placement(profile.name, claims))
    return placements, passed_over


def free(devices: Iterable[Device], held: Iterable[Need]) -> dict[str, int]:
    """MiB of each device that no replica holds; negative where a device shrank meanwhile."""
    left = {device.id: device.capacity_mib for device in devices}
    for claims in held:
        take(left, claims)
    return left


def take(left: dict[str, int], claims: Need) -> None:
    """Subtract claims from what is left."""
    for device, mib in claims.items():
        left[device] = left.get(device, 0) - mib


def give(left: dict[str, int], claims: Need) -> None:
    """Add claims to what is left."""
    for device, mib in claims.items():
        left[device] = left.get(device, 0) + mib


def shortages(need: Need, left: Mapping[str, int]) -> list[Shortage]:
    """The devices on which `need` does not fit into what is left."""
    return [
        Shortage(device, mib, max(0, left.get(device, 0)))
        for device, mib in need.items()
        if mib > left.get(device, 0)
    ]


def fits(need: Need, left: Mapping[str, int]) -> bool:
    """Whether `need` fits into what is left on every device it names."""
    return all(mib <= left.get(device, 0) for device, mib in need.items())


def _match(name: str, devices: Sequence[Device]) -> Device | None:
    wanted = name.casefold()
    return next((d for d in devices if wanted in (d.id.casefold(), d.name.casefold())), None)


def _claims(spec: ModelSpec, profile: Profile, found: Sequence[Device]) -> Need:
    estimate = spec.estimate_mib or 0
    share = -(-estimate // len(found)) if found else 0
    return {
        device.id: profile.memory_mib.get(name, share)
        for name, device in zip(profile.devices, found, strict=True)
    }
