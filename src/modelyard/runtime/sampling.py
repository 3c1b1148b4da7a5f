"""What the devices really hold: read again and again, off the event loop.

Laws of this file:
- A probe that hangs in its driver hangs a thread of its own and nothing else: its devices stay as
  they were last seen, and it is asked again once it has come back.
- Our use is counted by process; what else is used belongs to strangers. Where a driver does not
  tell processes apart, our claims stand for our use.
- On the host, mapped model files are page cache, which gives way: strangers are reckoned without
  it, from what nobody can take back.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import psutil

from modelyard.config import Devices
from modelyard.core.devices import matching
from modelyard.core.specs import HOST_DEVICE, Device, Need
from modelyard.devices.base import Probe, ProbeFailed, Reading

log = logging.getLogger("modelyard")

HUNG_AFTER_S = 5.0
"""How long a probe may take before its devices are reported as last seen."""
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Holder:
    """A running replica, as far as its memory is concerned."""

    model: str
    claims_mib: Need
    pids: Callable[[], Iterable[int]]
    """Its processes now; may block."""


@dataclass(frozen=True, slots=True)
class Sample:
    """All devices at one moment, and what each replica really holds there."""

    devices: tuple[Device, ...]
    readings: Mapping[str, Reading] = field(default_factory=dict)
    used_mib: Mapping[str, Need] = field(default_factory=dict)
    """By model: MiB on each device where that can be told."""


@dataclass(slots=True)
class _Asked:
    """One probe, what it said last, and the thread that asks it."""

    probe: Probe
    said: Sequence[Reading] = ()
    thread: threading.Thread | None = None
    trouble: str = ""

    def complain(self, trouble: str) -> None:
        """Log a trouble when it begins, changes or ends."""
        if trouble != self.trouble:
            if trouble:
                log.warning("%s devices: %s; taken as last seen", self.probe.kind, trouble)
            else:
                log.info("%s devices: read again", self.probe.kind)
            self.trouble = trouble


class Sampler:
    """Reads every probe and measures every replica."""

    def __init__(
        self,
        probes: Iterable[Probe],
        settings: Devices,
        host_mib: Callable[[Iterable[int]], int],
    ) -> None:
        self._asked = [_Asked(probe) for probe in probes]
        self._settings = settings
        self._host_mib = host_mib

    async def sample(self, holders: Sequence[Holder]) -> Sample:
        """The devices and the replicas' use now; takes at most a little over HUNG_AFTER_S."""
        said = await asyncio.gather(*(self._ask(asked) for asked in self._asked))
        readings = [reading for each in said for reading in each]
        return await asyncio.to_thread(self._reckon, readings, holders)

    async def _ask(self, asked: _Asked) -> Sequence[Reading]:
        if asked.thread is not None and asked.thread.is_alive():
            return asked.said
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Sequence[Reading] | ProbeFailed] = loop.create_future()

        def tell(said: Sequence[Reading] | ProbeFailed) -> None:
            if not answer.done():
                answer.set_result(said)

        def ask() -> None:
            said: Sequence[Reading] | ProbeFailed
            try:
                said = asked.probe.read()
            except ProbeFailed as failed:
                said = failed
            except Exception as bug:
                said = ProbeFailed(f"the probe broke: {bug!r}")
            if not loop.is_closed():
                loop.call_soon_threadsafe(tell, said)

        asked.thread = threading.Thread(target=ask, name=f"probe {asked.probe.kind}", daemon=True)
        asked.thread.start()
        try:
            async with asyncio.timeout(HUNG_AFTER_S):
                said = await answer
        except TimeoutError:
            asked.complain(f"the driver has not answered for {HUNG_AFTER_S:g} s")
            return asked.said
        if isinstance(said, ProbeFailed):
            asked.complain(str(said))
            return asked.said
        asked.complain("")
        asked.said = said
        return said

    def _reckon(self, readings: Sequence[Reading], holders: Sequence[Holder]) -> Sample:
        pids = {holder.model: frozenset(holder.pids()) for holder in holders}
        used = {
            holder.model: {
                device: mib
                for device, mib in self._use(readings, pids[holder.model]).items()
                if device in holder.claims_mib or mib
            }
            for holder in holders
        }
        ours = {reading.id: _ours(reading, holders, pids) for reading in readings}
        devices = tuple(_device(reading, self._settings, ours[reading.id]) for reading in readings)
        devices = _with_budgets(devices, self._settings)
        return Sample(devices, {reading.id: reading for reading in readings}, used)

    def _use(self, readings: Sequence[Reading], pids: frozenset[int]) -> dict[str, int]:
        use: dict[str, int] = {}
        for reading in readings:
            if reading.kind == HOST_DEVICE:
                use[reading.id] = self._host_mib(pids)
            elif reading.by_process_mib is not None:
                by_process = reading.by_process_mib
                use[reading.id] = sum(by_process.get(pid, 0) for pid in pids)
        return use


def _ours(reading: Reading, holders: Sequence[Holder], pids: Mapping[str, frozenset[int]]) -> int:
    """What all replicas together keep from others on a device."""
    everybody = frozenset[int]().union(*pids.values())
    if reading.kind == HOST_DEVICE:
        return private_mib(everybody)
    if reading.by_process_mib is not None:
        return sum(mib for pid, mib in reading.by_process_mib.items() if pid in everybody)
    return sum(holder.claims_mib.get(reading.id, 0) for holder in holders)


def _device(reading: Reading, settings: Devices, ours_mib: int) -> Device:
    strangers = max(0, (reading.used_mib or 0) - ours_mib)
    ceiling = max(0, reading.total_mib - settings.reserve_mib)
    return Device(
        reading.id,
        reading.name,
        reading.total_mib,
        max(0, ceiling - strangers),
        reading.kind,
        reading.index,
        strangers,
        ceiling,
    )


def _with_budgets(devices: tuple[Device, ...], settings: Devices) -> tuple[Device, ...]:
    """A budget bounds what replicas hold in place of the reserve; strangers still count."""
    budgets = {
        device.id: mib
        for name, mib in settings.budget_mib.items()
        for device in matching(name, devices)
    }
    return tuple(
        replace(
            device,
            capacity_mib=max(0, min(budgets[device.id], device.total_mib - device.strangers_mib)),
            ceiling_mib=min(budgets[device.id], device.total_mib),
        )
        if device.id in budgets
        else device
        for device in devices
    )


def private_mib(pids: Iterable[int]) -> int:
    """Resident memory of processes that is not backed by files, and so cannot give way."""
    total = 0
    for pid in pids:
        try:
            memory = psutil.Process(pid).memory_info()
        except psutil.Error:
            continue
        total += memory.rss - getattr(memory, "shared", 0)
    return total // _MIB
