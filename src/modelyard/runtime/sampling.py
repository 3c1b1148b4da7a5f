"""What the devices really hold: read again and again, off the event loop.

Laws of this file:
- A probe that hangs in its driver hangs a thread of its own and nothing else: its devices stay as
  they were last seen, and it is asked again once it has come back.
- Our use is counted by process; what else is used belongs to strangers. Where a driver does not
  tell processes apart, the engine's own report stands for our use, else our claim.
- The processes of a replica are those it had when the devices began to be read: one that ends
  meanwhile still held what the driver told of it. `attribution` says whose what is.
- Where the processes themselves cannot be looked at, everything is as in the last sample.
- On the host, mapped model files are page cache, which gives way: strangers are reckoned without
  it, from what nobody can take back.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import psutil

from modelyard.config import Devices
from modelyard.core.devices import matching
from modelyard.core.specs import HOST_DEVICE, Device, Need
from modelyard.devices.base import Probe, ProbeFailed, Reading
from modelyard.runtime.attribution import Seen, Share, share

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
    """By model: MiB on each device where that can be told. Nothing of a ready replica that holds
    nothing where it must: its engine is dying or has lost it, and that is no measure of a model."""
    returning_mib: Mapping[str, Need] = field(default_factory=dict)
    """By model whose processes are gone: MiB on each device that are not free again, where the
    driver told what it held there."""
    lost: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By ready model: devices where its living processes no longer hold what they held, as after
    a card was reset, or vanished and came back between two samples."""
    stale: frozenset[str] = frozenset()
    """Devices taken as last seen, since their driver did not answer."""


@dataclass(slots=True)
class _Asked:
    """One probe, what it said last, and what it is being asked."""

    probe: Probe
    said: Sequence[Reading] = ()
    answer: asyncio.Future[Sequence[Reading] | ProbeFailed] | None = None
    """Of the last question; not done while its thread is in the driver."""
    trouble: str = ""

    def complain(self, trouble: str) -> None:
        """Log a trouble when it begins, changes or ends."""
        if trouble != self.trouble:
            if trouble:
                log.warning("%s devices: %s; taken as last seen", self.probe.kind, trouble)
            else:
                log.info("%s devices: read again", self.probe.kind)
            self.trouble = trouble

    async def ask(self) -> Sequence[Reading] | ProbeFailed:
        """Have the probe read in a thread of its own."""
        loop = asyncio.get_running_loop()
        answer = self.answer = loop.create_future()

        def ask() -> None:
            said: Sequence[Reading] | ProbeFailed
            try:
                said = self.probe.read()
            except ProbeFailed as failed:
                said = failed
            except Exception as bug:
                said = ProbeFailed(f"the probe broke: {bug!r}")
            if not loop.is_closed():
                loop.call_soon_threadsafe(answer.set_result, said)

        thread = threading.Thread(target=ask, name=f"probe {self.probe.kind}", daemon=True)
        await asyncio.to_thread(thread.start)  # which waits until it runs
        return await asyncio.shield(answer)


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
        self._known = _Known()
        self._last: Sample | None = None
        self._trouble = ""

    async def sample(self, holders: Sequence[Holder]) -> Sample:
        """The devices and the replicas' use now; takes at most a little over HUNG_AFTER_S.

        Where processes cannot be looked at (no descriptor is left), all is as in the last sample;
        raises OSError if there was none.
        """
        # One at a time, so that no reading is older than the question, and none is told too late.
        async with self._turn:
            try:
                before = await asyncio.to_thread(_processes, holders)
                said = await asyncio.gather(*(self._ask(asked) for asked in self._asked))
                readings = [reading for each in said for reading in each]
                sample, known = await asyncio.to_thread(self._reckon, readings, before)
            except OSError as error:
                return self._as_last(error)
            if self._trouble:
                log.info("processes: read again")
            self._trouble = ""
            stale = (asked.said for asked in self._asked if asked.trouble)
            sample = replace(sample, stale=frozenset(each.id for said in stale for each in said))
            self._last, self._known = sample, known
            return sample

    def _as_last(self, error: OSError) -> Sample:
        if self._last is None:
            raise error
        if str(error) != self._trouble:
            log.warning("processes cannot be looked at: %s; memory is taken as last seen", error)
            self._trouble = str(error)
        devices, readings = self._last.devices, self._last.readings
        return Sample(devices, readings, stale=frozenset(readings))

    async def _ask(self, asked: _Asked) -> Sequence[Reading]:
        pending = asked.answer is not None and not asked.answer.done()
        if pending and asked.trouble:
            return asked.said
        try:
            async with asyncio.timeout(HUNG_AFTER_S):
                if pending:  # its asker was cancelled; it may tell of a moment before our question
                    await asyncio.shield(cast("asyncio.Future[object]", asked.answer))
                said = await asked.ask()
        except TimeoutError:
            asked.complain(f"the driver has not answered for {HUNG_AFTER_S:g} s")
            return asked.said
        if isinstance(said, ProbeFailed):
            asked.complain(str(said))
            return asked.said
        asked.complain("")
        asked.said = said
        return said

    def _reckon(
        self, readings: Sequence[Reading], before: Sequence[_Measured]
    ) -> tuple[Sample, _Known]:
        named = frozenset(pid for each in readings for pid in each.by_process_mib or ())
        measured = before
        if not named <= _all_pids(before) | self._known.others:
            # Somebody new: perhaps ours. The process table is not read again for less, it costs.
            after = _processes(each.holder for each in before)
            measured = [
                replace(one, pids=one.pids | other.pids)
                for one, other in zip(before, after, strict=True)
            ]
        shares = {
            (each.holder.model, reading.id): each.share(reading, self._known.seen)
            for each in measured
            for reading in readings
            if reading.kind != HOST_DEVICE
        }
        devices = tuple(
            _device(reading, self._settings, _ours(reading, measured, shares))
            for reading in readings
            if reading.failure is None
        )
        sample = Sample(
            _with_budgets(devices, self._settings),
            {reading.id: reading for reading in readings},
            {each.holder.model: self._use(readings, each, shares) for each in measured},
            {each.holder.model: _returning(each, shares) for each in measured},
            {each.holder.model: lost for each in measured if (lost := _lost(each, shares))},
        )
        # A card that is gone for now keeps what was seen on it.
        models = {each.holder.model for each in measured}
        kept = {key: seen for key, seen in self._known.seen.items() if key[0] in models}
        seen = kept | {key: each.seen for key, each in shares.items()}
        return sample, _Known(seen, named - _all_pids(measured))

    def _use(
        self, readings: Sequence[Reading], measured: _Measured, shares: _Shares
    ) -> dict[str, int]:
        use: dict[str, int] = {}
        for reading in readings:
            if reading.kind == HOST_DEVICE:
                use[reading.id] = self._host_mib(measured.pids)
            elif (mib := shares[measured.holder.model, reading.id].mib) is not None:
                if mib or not measured.must_hold(reading):
                    use[reading.id] = mib
            elif (said := measured.holder.reported_mib().get(reading.id)) is not None:
                use[reading.id] = said
        return {d: mib for d, mib in use.items() if mib or d in measured.holder.claims_mib}


_Shares = Mapping[tuple[str, str], Share]
"""By model and GPU."""
_Sightings = Mapping[tuple[str, str], Seen | None]


@dataclass(frozen=True, slots=True)
class _Known:
    """What one sample leaves to the next."""

    seen: _Sightings = field(default_factory=dict)
    others: frozenset[int] = frozenset()
    """Processes that GPUs name and that belong to no replica."""


@dataclass(frozen=True, slots=True)
class _Measured:
    """A replica and its processes at the moment of the sample."""

    holder: Holder
    pids: frozenset[int]

    def must_hold(self, reading: Reading) -> bool:
        return self.holder.is_ready and bool(self.holder.claims_mib.get(reading.id))

    def share(self, reading: Reading, sightings: _Sightings) -> Share:
        seen = sightings.get((self.holder.model, reading.id))
        return share(reading, self.pids, self.must_hold(reading), seen)


def _processes(holders: Iterable[Holder]) -> list[_Measured]:
    return [_Measured(holder, frozenset(holder.pids())) for holder in holders]


def _all_pids(measured: Iterable[_Measured]) -> frozenset[int]:
    return frozenset[int]().union(*(each.pids for each in measured))


def _ours(reading: Reading, measured: Sequence[_Measured], shares: _Shares) -> int:
    """What all replicas together keep from others on a device."""
    if reading.kind == HOST_DEVICE:
        return private_mib(_all_pids(measured))
    return sum(_held(reading, each.holder, shares) for each in measured)


def _held(reading: Reading, holder: Holder, shares: _Shares) -> int:
    """What a replica holds on a GPU, by the best source there is."""
    mib = shares[holder.model, reading.id].mib
    if mib is not None:
        return mib
    claim = holder.claims_mib.get(reading.id, 0)
    return holder.reported_mib().get(reading.id, claim)


def _returning(measured: _Measured, shares: _Shares) -> dict[str, int]:
    return {
        device: each.returning_mib
        for (model, device), each in shares.items()
        if model == measured.holder.model and each.returning_mib is not None
    }


def _lost(measured: _Measured, shares: _Shares) -> list[str]:
    """Devices where a ready replica's living processes lost what they held."""
    holder = measured.holder
    emptied = {
        device: each.emptied
        for (model, device), each in shares.items()
        if model == holder.model and each.emptied and holder.claims_mib.get(device)
    }
    if not emptied or not holder.is_ready:
        return []
    living = frozenset(holder.pids())
    return sorted(device for device, pids in emptied.items() if pids & living)


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
