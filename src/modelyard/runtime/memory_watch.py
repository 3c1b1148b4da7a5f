"""Seeing is believing: memory counts as free when the device says so.

Laws of this file:
- After a sleep the engine's memory is read until it has settled; an engine that kept most of it
  has not slept, whatever it answered.
- After an exit the devices are read until the run's memory is back or a bound has passed. What is
  not back by then is reported, and counts as a stranger's from then on. Where the driver tells
  processes apart, what others take meanwhile in their own names is not waited for.
- Where a driver does not tell what a process holds, or does not answer, the expectation stands in.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from modelyard.core.specs import HOST_DEVICE, Need
from modelyard.runtime.sampling import Sample

log = logging.getLogger("modelyard")

SETTLE_S = 5.0
"""Longest wait for memory to come back. Drivers take 0.5 to 1.5 s (Ollama's experience)."""
LOOK_S = 0.1
STILL_MIB = 16
"""Readings that differ by less have settled."""
LIES_ABOVE = 0.5
"""Share of its memory that an engine may at most keep asleep on a GPU."""
SMALL_MIB = 256
"""Below this nobody is called a liar: it is a context, not a model."""


class MemoryKept(Exception):
    """An engine says that it sleeps and holds its memory."""


class MemoryWatch:
    """Reads what runs hold, for those who wait for it to change."""

    def __init__(
        self,
        sample: Callable[[], Awaitable[Sample]],
        strangers: Callable[[], Need],
        residue: Callable[[str, int], Need],
    ) -> None:
        self._sample = sample
        self.strangers = strangers
        """What strangers hold on each device, as last read."""
        self._residue = residue
        self._last_kept: dict[tuple[str, int], Need] = {}

    async def measure(self, model: str) -> Need:
        """What the model's replica holds now, on each device that tells."""
        sample = await self._sample()
        used = sample.used_mib.get(model, {})
        return {device: mib for device, mib in used.items() if device not in sample.stale}

    async def after_sleep(self, model: str, claims: Need, before: Need, level: int) -> Need:
        """What the replica keeps once it has settled. Raises MemoryKept."""
        kept = await self._settled(model)
        for device, held in before.items():
            still = kept.get(device, 0)
            if device != HOST_DEVICE and still > max(SMALL_MIB, held * LIES_ABOVE):
                raise MemoryKept(
                    f"it says that it sleeps and still holds {still} of {held} MiB on {device}"
                )
        expected = self._residue(model, level)
        seen = {
            device: kept[device] if device in kept else expected.get(device, 0)
            for device in {*claims, HOST_DEVICE}
        }
        self._report_growth(model, level, seen)
        self._last_kept[model, level] = seen
        return seen

    async def until_back(self, model: str, claims: Need, before: Need) -> None:
        """Return once the GPUs hold nothing more of a run that has ended, or after a bound.

        Its memory counted as ours while it lived; what is not back is a stranger's now. `before` is
        what strangers held while it lived: the measure where the driver never told what the run
        itself held.
        """
        gpus = [device for device in claims if device != HOST_DEVICE]
        if not gpus:
            return
        deadline = asyncio.get_running_loop().time() + SETTLE_S
        while True:
            sample = await self._sample()
            grown = {d.id: d.strangers_mib - before.get(d.id, 0) for d in sample.devices}
            missing = {**grown, **sample.returning_mib.get(model, {})}
            missing = {
                device: mib
                for device, mib in missing.items()
                if mib >= STILL_MIB and device in gpus and device not in sample.stale
            }
            if not missing:
                return
            if asyncio.get_running_loop().time() >= deadline:
                listed = ", ".join(f"{mib} MiB on {device}" for device, mib in missing.items())
                log.warning(
                    "model %s: not given back %g s after its end: %s", model, SETTLE_S, listed
                )
                return
            await asyncio.sleep(LOOK_S)

    async def _settled(self, model: str) -> Need:
        last: Need | None = None
        deadline = asyncio.get_running_loop().time() + SETTLE_S
        while True:
            kept = await self.measure(model)
            late = asyncio.get_running_loop().time() >= deadline
            if late or (last is not None and _still(last, kept)):
                return kept
            last = kept
            await asyncio.sleep(LOOK_S)

    def _report_growth(self, model: str, level: int, seen: Need) -> None:
        before = self._last_kept.get((model, level), {})
        for device, mib in seen.items():
            grown = mib - before.get(device, mib)
            if grown > SMALL_MIB // 2:
                log.warning(
                    "model %s keeps %d MiB more on %s asleep than last time (%d MiB)",
                    model,
                    grown,
                    device,
                    mib,
                )


def _still(last: Need, now: Need) -> bool:
    return all(abs(last.get(device, 0) - mib) < STILL_MIB for device, mib in now.items())
