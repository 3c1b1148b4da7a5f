"""Where a replica goes: which profile, and what it claims on which device.

Laws of this file:
- A profile is looked at in the order written; the first that fits is taken, and why each other one
  was passed over is returned.
- Claims are what was measured, else what is declared, else the estimate, which a replica on
  several devices shares equally.
- Nothing here decides who has to leave: that is `eviction`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

from modelyard.core.devices import matching, short_name
from modelyard.core.footprints import Footprints, kinds_of
from modelyard.core.specs import Device, ModelSpec, Need, Placement, Profile
from modelyard.core.state import ModelState, Ways

BUDGETED = frozenset({"vllm"})
"""Engines that are given a budget and look whether it is free before they take it."""
MAX_CHOICES = 256
"""Choices of devices looked at for one profile; eight cards in pairs make 56."""


@dataclass(frozen=True, slots=True)
class Shortage:
    """A device that lacks memory for a need."""

    device: str
    needed_mib: int
    free_mib: int

    def __str__(self) -> str:
        return f"{self.device} has {self.free_mib} MiB free of the {self.needed_mib} MiB needed"


def candidates(
    spec: ModelSpec, devices: Sequence[Device], footprints: Footprints
) -> tuple[list[Placement], list[str]]:
    """Every way to run the model on the devices there are, profiles in order of preference.

    A profile whose names mean several devices gives a placement for each choice. The second list
    says for every profile that gives none what it lacks.
    """
    placements: list[Placement] = []
    passed_over: list[str] = []
    for profile in spec.profiles:
        meant = [matching(name, devices) for name in profile.devices]
        choices = list(islice(_choices(profile.devices, meant), MAX_CHOICES))
        if not choices:
            passed_over.append(_lacks(profile, meant, devices))
        placements += [_placement(spec, profile, each, footprints) for each in choices]
    return placements, passed_over


def ways(slot: ModelState, devices: Sequence[Device]) -> Ways:
    """Every way to run a model; worked out once until devices or what is known of it change."""
    if slot.ways is None:
        found, lacking = candidates(slot.spec, devices, slot.footprints)
        profiles = [list(group) for _, group in groupby(found, key=lambda each: each.profile)]
        slot.ways = Ways(profiles, lacking)
    return slot.ways


def is_way(slot: ModelState, devices: Sequence[Device], placed: Placement) -> bool:
    """Whether the model may still be run like this.

    Its profile and its devices are there, and it would claim no more than it holds.
    """
    return any(
        (choice.profile, choice.devices) == (placed.profile, placed.devices)
        and fits(choice.claims_mib, placed.claims_mib)
        for choices in ways(slot, devices).profiles
        for choice in choices
    )


def roomiest(choices: Sequence[Placement], *lefts: Mapping[str, int]) -> Placement | None:
    """The choice that fits everywhere and leaves most room, or None.

    So models spread over identical cards and can compute at the same time.
    """
    fitting = [choice for choice in choices if all(fits(choice.claims_mib, at) for at in lefts)]
    return max(fitting, key=lambda c: min(_room_after(c, lefts[0]), default=0), default=None)


def shortage(choices: Sequence[Placement], left: Mapping[str, int]) -> str:
    """What a profile lacks on each choice of its devices."""
    lacking = {str(short) for choice in choices for short in shortages(choice.claims_mib, left)}
    return f"profile {choices[0].profile!r}: {'; '.join(sorted(lacking))}"


def _room_after(chosen: Placement, left: Mapping[str, int]) -> list[int]:
    return [left[device] - mib for device, mib in chosen.claims_mib.items()]


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
    for device, mib in need.items():  # noqa: SIM110  # asked most: thrice as quick as `all`
        if mib > left.get(device, 0):
            return False
    return True


def _choices(
    names: Sequence[str], meant: Sequence[Sequence[Device]], taken: tuple[Device, ...] = ()
) -> Iterator[tuple[Device, ...]]:
    """Every way to give each name a device of its own; like names in one order only."""
    at = len(taken)
    if at == len(names):
        yield taken
        return
    allowed = meant[at]
    if at and names[at] == names[at - 1]:
        allowed = allowed[allowed.index(taken[-1]) + 1 :]
    for device in allowed:
        if device not in taken:
            yield from _choices(names, meant, (*taken, device))


def _lacks(profile: Profile, meant: Sequence[Sequence[Device]], devices: Sequence[Device]) -> str:
    present = ", ".join(short_name(device.name) for device in devices) or "none"
    missing = [name for name, found in zip(profile.devices, meant, strict=True) if not found]
    wanted = ", ".join(missing) if missing else f"{len(profile.devices)} different devices"
    return f"profile {profile.name!r} needs {wanted}; present: {present}"


def _placement(
    spec: ModelSpec, profile: Profile, chosen: Sequence[Device], footprints: Footprints
) -> Placement:
    estimate = spec.estimate_mib or 0
    share = -(-estimate // len(chosen)) if chosen else 0
    expected = {
        device.id: profile.memory_mib.get(name, share)
        for name, device in zip(profile.devices, chosen, strict=True)
    }
    return Placement(
        profile.name,
        footprints.claims(profile.name, chosen, expected, is_budget=spec.engine in BUDGETED),
        tuple(device.id for device in chosen),
        kinds_of(chosen),
    )
