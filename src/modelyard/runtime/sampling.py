"""What the devices really hold: read again and again, off the event loop.

Laws of this file:
- A probe that hangs in its driver hangs a thread of its own and nothing else: its devices stay as
  they were last seen, and it is asked again once it has come back.
- Our use is counted by process; what else is used belongs to strangers. Where a driver does not
  tell processes apart, the engine's own report stands for our use, else our claim.
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
    is_ready: bool
    """Whether it must hold memory by now; an engine that starts may not yet."""
    pids: Callable[[], Iterable[int]]
    """Its processes now; may block."""
    reported_mib: Callable[[], Need]
    """What the engine itself says that it holds."""


@dataclass(frozen=True, slots=True)
class Sample:
    """All devices at one moment, and what each replica really holds there."""

    devices: tuple[Device, ...]
    readings: Mapping[str, Reading] = field(default_factory=dict)
    used_mib: Mapping[str, Need] = field(default_factory=dict)
    """By model: MiB on each device where that can be told."""
    stale: frozenset[str] = frozenset()
    """Devices taken as last seen, since their driver did not answer."""


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
        self._turn = asyncio.Lock()

    async def sample(self, holders: Sequence[Holder]) -> Sample:
        """The devices and the replicas' use now; takes at most a little over HUNG_AFTER_S."""
        # One at a time, so that no reading is older than the question, and none is told too late.
        async with self._turn:
            said = await asyncio.gather(*(self._ask(asked) for asked in self._asked))
            readings = [reading for each in said for reading in each]
            sample = await asyncio.to_thread(self._reckon, readings, holders)
        stale = (asked.said for asked in self._asked if asked.trouble)
        return replace(sample, stale=frozenset(each.id for said in stale for each in said))

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
        measured = [_Measured(holder, frozenset(holder.pids())) for holder in holders]
        used = {each.holder.model: self._use(readings, each) for each in measured}
        devices = tuple(
            _device(reading, self._settings, _ours(reading, measured))
            for reading in readings
            if reading.failure is None
        )
        devices = _with_budgets(devices, self._settings)
        return Sample(devices, {reading.id: reading for reading in readings}, used)

    def _use(self, readings: Sequence[Reading], measured: _Measured) -> dict[str, int]:
        use: dict[str, int] = {}
        for reading in readings:
            if reading.kind == HOST_DEVICE:
                use[reading.id] = self._host_mib(measured.pids)
            elif (mib := measured.on(reading)) is not None:
                use[reading.id] = mib
            elif (said := measured.holder.reported_mib().get(reading.id)) is not None:
                use[reading.id] = said
        return {d: mib for d, mib in use.items() if mib or d in measured.holder.claims_mib}


@dataclass(frozen=True, slots=True)
class _Measured:
    """A replica and its processes at the moment of the sample."""

    holder: Holder
    pids: frozenset[int]

    def on(self, reading: Reading) -> int | None:
        """What it holds on a GPU; None where the driver does not tell.

        A driver outside of our container tells of processes by numbers that we do not know.
        """
        if reading.by_process_mib is None:
            return None
        told = [mib for pid, mib in reading.by_process_mib.items() if pid in self.pids]
        if not told and self.holder.is_ready and self.holder.claims_mib.get(reading.id):
            return None
        return sum(told)


def _ours(reading: Reading, measured: Sequence[_Measured]) -> int:
    """What all replicas together keep from others on a device."""
    if reading.kind == HOST_DEVICE:
        return private_mib(frozenset[int]().union(*(each.pids for each in measured)))
    return sum(_held(reading, each) for each in measured)


def _held(reading: Reading, measured: _Measured) -> int:
    """What a replica holds on a GPU, by the best source there is."""
    mib = measured.on(reading)
    if mib is not None:
        return mib
    claim = measured.holder.claims_mib.get(reading.id, 0)
    return measured.holder.reported_mib().get(reading.id, claim)


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
