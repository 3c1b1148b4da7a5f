"""What models really took, and what to claim for them next time.

Laws of this file:
- Pure values and rules: no SQL, no clock. `now` comes in.
- A measurement says what one run held, in MiB, by *position*: the place of a device in the run's
  placement (`0`, `1`, …), or `cpu` for host memory. Positions, not devices: the same profile on
  another card of the same kind takes the same.
- A position that a measurement leaves out was not measured, and keeps what is known of it. One
  that holds nothing is measured as 0.
- A claim rests on the last few measurements only, so that one odd reading is forgotten in time.
- Claims follow what engines take, never the other way round: an engine told to fill its claim would
  be measured at it, and the margin would make the next claim larger, time after time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

RECENT: Final = 8
"""How many measurements of a position count for its claim."""

AVERAGE_WEIGHT: Final = 0.25
"""How much of the moving average a new measurement makes up."""

MARGIN_SHARE: Final = 64
LEAST_MARGIN_MIB: Final = 8
LARGEST_MARGIN_MIB: Final = 64
"""A claim exceeds what was measured by a 64th, within these bounds. It makes up for what differs
from one run to the next (allocator, driver), which does not grow with the model. A margin that
did grow would keep a model that fills its card from fitting a second time."""

STEP_MIB: Final = 16
"""Claims are multiples of this, so that small differences leave them as they are."""

LARGEST_MIB: Final = 2**30
"""A pebibyte. A larger number is a mistake in units."""


@dataclass(frozen=True, slots=True)
class FootprintKey:
    """What decides how much a run takes. All are compared exactly."""

    model: str
    profile: str
    engine: str
    engine_version: str
    options_digest: str
    """Stands for every option that changes memory, those of the profile included."""
    device_kind: str
    """What the devices are, such that two of a kind can be taken for each other."""
    state: str
    """`ready`, or how deep it sleeps."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured at one position, in MiB."""

    recent_mib: tuple[int, ...]
    """The last measurements, at least one and at most `RECENT`, oldest first."""
    max_mib: int
    """The largest of all times. For people; claims rest on the recent ones."""
    average_mib: float
    """Exponentially weighted moving average. For people as well."""
    seen: int
    """How often it was measured."""
    updated_at: float
    """When it was last measured, in seconds since the epoch."""

    @property
    def latest_mib(self) -> int:
        return self.recent_mib[-1]


@dataclass(frozen=True, slots=True)
class Footprint:
    """All that was measured for one key, by position."""

    key: FootprintKey
    devices: Mapping[str, Measured]


def claim_mib(footprint: Footprint) -> Mapping[str, int]:
    """What to claim for the next run, in MiB by position.

    The largest of the recent measurements, plus a margin of a 64th (8 to 64 MiB), rounded up to
    16 MiB; 0 where nothing was ever held. It is never less than any recent measurement, a larger
    measurement never lowers it, and measuring the same again leaves it as it is.
    """
    return {position: _claim(measured) for position, measured in footprint.devices.items()}


def observe(
    known: Footprint | None, key: FootprintKey, mib_by_device: Mapping[str, int], now: float
) -> Footprint:
    """`known`, with one more measurement of `key`.

    Raises ValueError for an empty measurement, for a position without a name, and for numbers
    that cannot be memory or a time.
    """
    if known is not None and known.key != key:
        raise ValueError(f"a measurement of {key} does not belong to {known.key}")
    if not mib_by_device or "" in mib_by_device:
        raise ValueError(f"a measurement names the positions it was taken at: {mib_by_device}")
    if not math.isfinite(now):
        raise ValueError(f"{now} is not a time")
    for position, mib in mib_by_device.items():
        if not is_memory(mib):
            raise ValueError(f"{mib!r} MiB at position {position!r} cannot be memory")
    devices = dict(known.devices) if known else {}
    for position, mib in mib_by_device.items():
        devices[position] = _with(devices.get(position), mib, now)
    return Footprint(key, devices)


def is_memory(mib: object) -> bool:
    """Whether this is a number of MiB that something can hold."""
    return type(mib) is int and 0 <= mib <= LARGEST_MIB


def _with(known: Measured | None, mib: int, now: float) -> Measured:
    if known is None:
        return Measured((mib,), mib, float(mib), 1, now)
    return Measured(
        recent_mib=(*known.recent_mib, mib)[-RECENT:],
        max_mib=max(known.max_mib, mib),
        average_mib=known.average_mib + AVERAGE_WEIGHT * (mib - known.average_mib),
        seen=known.seen + 1,
        updated_at=now,
    )


def _claim(measured: Measured) -> int:
    largest = max(measured.recent_mib)
    if largest == 0:
        return 0
    margin = min(max(-(-largest // MARGIN_SHARE), LEAST_MARGIN_MIB), LARGEST_MARGIN_MIB)
    return -(-(largest + margin) // STEP_MIB) * STEP_MIB
