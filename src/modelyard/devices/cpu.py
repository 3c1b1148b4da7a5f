"""Host memory as a device.

Laws of this file:
- A container sees the memory of its machine, so the limits of the control groups above this
  process count too; the smallest of them is the memory there is.
- A limit that cannot be read is no limit; the physical memory always is one.

Files and formats: the kernel's admin-guide, cgroup-v2 ("memory.max" holds bytes or "max") and
cgroup-v1/memory ("memory.limit_in_bytes", a huge number where there is no limit);
/proc/[pid]/cgroup is described in cgroups(7).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Final

import psutil

from modelyard.core.specs import HOST_DEVICE, Device

DEFAULT_RESERVE_MIB: Final = 512
_MIB: Final = 2**20


def _physical_bytes() -> int:
    return int(psutil.virtual_memory().total)


class CpuProbe:
    """Finds the host's memory. It is always there, so `devices` always returns one device.

    `reserve_mib` is left to the rest of the machine; `budget_mib`, where given, replaces the
    reckoning and is what models may hold, but never more than there is.
    """

    name = HOST_DEVICE

    def __init__(
        self,
        *,
        reserve_mib: int = DEFAULT_RESERVE_MIB,
        budget_mib: int | None = None,
        physical_bytes: Callable[[], int] = _physical_bytes,
        cgroup_root: Path = Path("/sys/fs/cgroup"),
        process_cgroups: Path = Path("/proc/self/cgroup"),
    ) -> None:
        if reserve_mib < 0 or (budget_mib is not None and budget_mib < 0):
            raise ValueError(f"memory cannot be negative: {reserve_mib=}, {budget_mib=}")
        self._reserve_mib = reserve_mib
        self._budget_mib = budget_mib
        self._physical_bytes = physical_bytes
        self._cgroup_root = cgroup_root
        self._process_cgroups = process_cgroups

    def devices(self) -> tuple[Device, ...]:
        total = self.total_mib()
        if self._budget_mib is None:
            capacity = max(0, total - self._reserve_mib)
        else:
            capacity = min(self._budget_mib, total)
        return (Device(HOST_DEVICE, HOST_DEVICE, total_mib=total, capacity_mib=capacity),)

    def total_mib(self) -> int:
        """The machine's memory, or the smallest limit of a control group above this process."""
        limits = (limit for file in self._limit_files() if (limit := _limit_in(file)) is not None)
        return min(self._physical_bytes(), *limits, self._physical_bytes()) // _MIB

    def used_mib(self) -> int:
        """What the whole machine uses now, without caches that would give way. For display."""
        memory = psutil.virtual_memory()
        return int(memory.total - memory.available) // _MIB

    def _limit_files(self) -> Iterator[Path]:
        """The files that may limit this process: those of its groups and of all above them."""
        for line in _text_of(self._process_cgroups).splitlines():
            number, _, rest = line.partition(":")
            controllers, _, group = rest.partition(":")
            if number == "0" and not controllers:
                folder, file = self._cgroup_root, "memory.max"
            elif "memory" in controllers.split(","):
                folder, file = self._cgroup_root / "memory", "memory.limit_in_bytes"
            else:
                continue
            # A container may see the group's path as its host names it; then only the folder at
            # the root exists here, and it holds the container's own limit.
            inside = PurePosixPath(group.lstrip("/"))
            if ".." not in inside.parts:
                yield from (folder / part / file for part in (inside, *inside.parents))
            yield folder / file


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError:
        # No control groups of this version here: nothing limits the process this way.
        return ""


def _limit_in(file: Path) -> int | None:
    text = _text_of(file).strip()
    return int(text) if text.isascii() and text.isdecimal() else None
