"""Whose memory it is that a GPU calls used.

Laws of this file:
- A driver tells of processes by their numbers. One outside of our container has numbers of its own,
  so silence about a replica proves nothing, unless the driver has told of it before: then a replica
  that is not named holds nothing, provided that what nobody is named for has not grown instead.
- A replica without a living process holds nothing. What it held is on its way back until what
  nobody is named for is no more than it was while the replica was seen.
- Only memory without a name can be on its way back. What is held in the name of a living process is
  that process's, whenever it came.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelyard.devices.base import Reading

UNNAMED_ABOVE = 0.5
"""Share of what a replica held by which the memory without a name may grow before the driver is
taken to have stopped naming the replica's processes."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A replica on a device, when the driver last named a process of it."""

    family: frozenset[int]
    """All its processes."""
    holding: frozenset[int]
    """Those that were named."""
    mib: int
    unnamed_mib: int
    """What was used of the device in nobody's name."""


@dataclass(frozen=True, slots=True)
class Share:
    """A replica's part of a device, by one reading."""

    mib: int | None
    """What it holds; None where the driver does not tell."""
    seen: Seen | None
    """To be given with the next reading."""
    returning_mib: int | None = None
    """What is not back of a replica that has no process any more; None where it has one, or where
    the driver never told what it held."""
    emptied: frozenset[int] = frozenset()
    """Processes that held memory there and, if they live, have lost it."""


def share(reading: Reading, pids: frozenset[int], must_hold: bool, seen: Seen | None) -> Share:
    """The part of a replica with these processes; `must_hold` if its engine is ready and claims.

    `seen` is what the share of the last reading gave. It is forgotten when the replica has other
    processes: then it is another run of the model.
    """
    if seen is not None and pids and pids.isdisjoint(seen.family):
        seen = None
    by_process = reading.by_process_mib
    if by_process is None:
        return Share(None, seen)
    unnamed = (reading.used_mib or 0) - sum(by_process.values())
    told = {pid: by_process[pid] for pid in pids & by_process.keys()}
    if told:
        held = sum(told.values())
        return Share(held, Seen(pids, frozenset(told), held, unnamed) if held else seen)
    if seen is None:
        return Share(None if pids and must_hold else 0, None)
    grown = unnamed - seen.unnamed_mib
    if not pids:
        kept = sum(mib for pid, mib in by_process.items() if pid in seen.family)
        return Share(0, seen, returning_mib=max(0, grown) + kept)
    emptied = seen.holding & pids
    if emptied and grown > seen.mib * UNNAMED_ABOVE:
        return Share(None if must_hold else 0, seen)
    return Share(0, seen, emptied=emptied)
