"""Host memory as a device.

Laws of this file:
- A container sees the memory of its machine, so the limits of the control groups above this
  process count too; the smallest of them is the memory there is.
- What is used is what cannot be had: the fullest of the machine and those groups decides.
- The physical memory always is a limit. Load is told from the second reading on, because it is a
  difference of two counts; a first guess would be a lie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from modelyard.core.specs import HOST_DEVICE, Device
from modelyard.devices import cgroups
from modelyard.devices.base import Reading

DEFAULT_RESERVE_MIB: Final = 512
_MIB: Final = 2**20
_PROCESSOR_SENSORS: Final = (
    "coretemp",
    "k10temp",
    "zenpower",
    "cpu_thermal",
    "cpu-thermal",
    "soc_thermal",
)
"""Drivers under /sys/class/hwmon that measure the processor, by the names they give themselves
(kernel documentation, hwmon/coretemp, hwmon/k10temp; thermal zones on ARM boards)."""


class CpuTime(NamedTuple):
    """Seconds that all processors together spent since the machine started."""

    busy: float
    all: float


def _physical_bytes() -> int:
    return int(psutil.virtual_memory().total)


def _available_bytes() -> int:
    return int(psutil.virtual_memory().available)


def _cpu_time() -> CpuTime:
    times = psutil.cpu_times()._asdict()
    # Linux counts the time of virtual machines twice, as `guest` and within `user` (proc_stat(5)).
    spent = sum(seconds for name, seconds in times.items() if not name.startswith("guest"))
    return CpuTime(spent - times["idle"] - times.get("iowait", 0.0), spent)


def _temperatures() -> Mapping[str, Sequence[float]]:
    """Degrees Celsius by sensor driver; none where psutil has no sensors on this platform."""
    read = getattr(psutil, "sensors_temperatures", None)
    if read is None:
        return {}
    return {name: [part.current for part in parts] for name, parts in read().items()}


class CpuProbe:
    """Finds the host's memory. It is always there, so every reading tells one device.

    `reserve_mib` is left to the rest of the machine; `budget_mib`, where given, replaces the
    reckoning and is what models may hold, but never more than there is. The other parameters are
    where the facts come from.
    """

    name = HOST_DEVICE
    kind = HOST_DEVICE

    def __init__(
        self,
        *,
        reserve_mib: int = DEFAULT_RESERVE_MIB,
        budget_mib: int | None = None,
        physical_bytes: Callable[[], int] = _physical_bytes,
        available_bytes: Callable[[], int] = _available_bytes,
        cpu_time: Callable[[], CpuTime] = _cpu_time,
        temperatures: Callable[[], Mapping[str, Sequence[float]]] = _temperatures,
        cgroup_root: Path = Path("/sys/fs/cgroup"),
        process_cgroups: Path = Path("/proc/self/cgroup"),
    ) -> None:
        if reserve_mib < 0 or (budget_mib is not None and budget_mib < 0):
            raise ValueError(f"memory cannot be negative: {reserve_mib=}, {budget_mib=}")
        self._reserve_mib = reserve_mib
        self._budget_mib = budget_mib
        self._physical_bytes = physical_bytes
        self._available_bytes = available_bytes
        self._cpu_time = cpu_time
        self._temperatures = temperatures
        self._cgroup_root = cgroup_root
        self._process_cgroups = process_cgroups
        self._last_time: CpuTime | None = None

    def read(self) -> tuple[Reading, ...]:
        """The host: its memory, its load since the last reading and the processor's heat."""
        total, used = self._memory()
        limited = total < self._physical_bytes() // _MIB
        return (
            Reading(
                id=HOST_DEVICE,
                kind=self.kind,
                index=0,
                name=HOST_DEVICE,
                total_mib=total,
                used_mib=used,
                utilisation=self._load(),
                temperature_c=self._temperature(),
                notes=("limited by a control group",) if limited else (),
            ),
        )

    def devices(self) -> tuple[Device, ...]:
        total = self.total_mib()
        if self._budget_mib is None:
            capacity = max(0, total - self._reserve_mib)
        else:
            capacity = min(self._budget_mib, total)
        return (Device(HOST_DEVICE, HOST_DEVICE, total_mib=total, capacity_mib=capacity),)

    def total_mib(self) -> int:
        """The machine's memory, or the smallest limit of a control group above this process."""
        return self._memory()[0]

    def used_mib(self) -> int:
        """What of `total_mib` cannot be had now. Caches that would give way are not counted."""
        return self._memory()[1]

    def _memory(self) -> tuple[int, int]:
        total = self._physical_bytes()
        free = min(self._available_bytes(), total)
        for group in cgroups.limits(self._cgroup_root, self._process_cgroups):
            total = min(total, group.limit)
            if group.used is not None:
                free = min(free, max(0, group.limit - group.used))
        return total // _MIB, max(0, total // _MIB - free // _MIB)

    def _load(self) -> float | None:
        now = self._cpu_time()
        before, self._last_time = self._last_time, now
        if before is None or now.all <= before.all:
            return None
        return min(1.0, max(0.0, (now.busy - before.busy) / (now.all - before.all)))

    def _temperature(self) -> float | None:
        told = self._temperatures()
        return max((t for name in _PROCESSOR_SENSORS for t in told.get(name, ())), default=None)
