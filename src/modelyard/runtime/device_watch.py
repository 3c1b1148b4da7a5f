"""The devices, read again and again: what the scheduler is told of them and of those who run there.

Laws of this file:
- The scheduler hears only of what may change a decision: a device that came, went or has more or
  less to give, and what a ready replica really holds.
- What was measured of a replica counts only if it was ready before the devices were read: else it
  may be of an earlier moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence, Set

from modelyard.core.events import DevicesChanged, MemoryMeasured, SchedulerEvent
from modelyard.core.leaving import residue
from modelyard.core.lifecycle import State
from modelyard.core.scheduler import Scheduler
from modelyard.core.specs import Device, Need
from modelyard.core.state import ReplicaState
from modelyard.devices.base import Reading
from modelyard.runtime.advisor import Advisor
from modelyard.runtime.remote_run import Run
from modelyard.runtime.sampling import Holder, Sample, Sampler

NOISE_MIB = 16
"""A change of a device's capacity by less than this is no news."""


class DeviceWatch:
    """Reads the devices, now and at a period."""

    def __init__(
        self,
        scheduler: Scheduler,
        runs: Mapping[tuple[str, int], Run],
        sampler: Sampler,
        advisor: Advisor,
        *,
        post: Callable[[SchedulerEvent], None],
        on_use: Callable[[Run, Need], None],
    ) -> None:
        """`runs` are the engines that run now. `on_use` hears what one holds awake, if that has
        changed. The scheduler is only read."""
        self.readings: Mapping[str, Reading] = {}
        """What the probes said last, by device."""
        self._scheduler = scheduler
        self._runs = runs
        self._sampler = sampler
        self._advisor = advisor
        self._post = post
        self._on_use = on_use

    async def sample(self) -> Sample:
        """Read the devices now, and decide by what they hold."""
        ready = set()
        holders = []
        for run in self._runs.values():
            if (replica := self._replica(run)) is not None:
                claims, is_ready = run.placement.claims_mib, replica.state is State.READY
                holders.append(Holder(run.key, claims, is_ready, run.pids, run.reported_mib))
                if is_ready:
                    ready.add(run)
        sample = await self._sampler.sample(holders)
        self._sampled(sample, ready)
        return sample

    async def watch(self, every_s: float | None) -> None:
        """Read the devices at this period, for ever; None never does."""
        while every_s is not None:
            await asyncio.sleep(every_s)
            await self.sample()

    def strangers(self) -> Need:
        """What strangers hold on each device, as last read."""
        return {device.id: device.strangers_mib for device in self._scheduler.devices}

    def residue(self, key: str, level: int) -> Need:
        """What the replica of this name is expected to keep when it sleeps at a level."""
        replicas = (self._replica(run) for run in self._runs.values())
        return next((residue(each, level) for each in replicas if each and each.key == key), {})

    def _sampled(self, sample: Sample, ready: Set[Run]) -> None:
        self.readings = sample.readings
        if _differ(self._scheduler.devices, sample.devices):
            known = {device.id for device in self._scheduler.devices}
            self._post(DevicesChanged(sample.devices))
            if known != {device.id for device in sample.devices}:
                self._advisor.devices_changed()
        for run in tuple(self._runs.values()):  # what is told may start another
            replica = self._replica(run)
            used = sample.used_mib.get(replica.key) if replica is not None else None
            if replica is None or used is None or replica.state is not State.READY:
                continue
            lost = tuple(sample.lost.get(replica.key, ()))
            if run in ready and (used != replica.used_mib or lost):
                self._post(MemoryMeasured(run.spec.id, run.run, used, lost))
                self._on_use(run, used)

    def _replica(self, run: Run) -> ReplicaState | None:
        return self._scheduler.replica_of(run.spec.id, run.run)


def _differ(before: Sequence[Device], now: Sequence[Device]) -> bool:
    """Whether decisions could come out differently; a few MiB of noise do not count."""
    if [device.id for device in before] != [device.id for device in now]:
        return True
    pairs = zip(before, now, strict=True)
    return any(
        abs(a.capacity_mib - b.capacity_mib) >= NOISE_MIB or a.most_mib != b.most_mib
        for a, b in pairs
    )
