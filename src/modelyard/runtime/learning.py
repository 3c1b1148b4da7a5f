"""What models really took, in memory and in time, remembered across runs and restarts.

Laws of this file:
- The store is used from one thread of its own; nobody waits for a disk but whoever opens it.
- A store that cannot be opened or written costs the memory of this run only, and says so once.
- What is written is the most a run was seen to hold so far, when that has grown noticeably.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from modelyard.core.demand import Demand
from modelyard.core.events import CostKnown, CostLearned, DemandKnown, FootprintLearned
from modelyard.core.footprints import AWAKE, by_position
from modelyard.core.specs import ModelSpec, Need, Placement
from modelyard.store import (
    Footprint,
    FootprintKey,
    RememberedDemand,
    Store,
    StoreError,
    claim_mib,
)

log = logging.getLogger("modelyard")

T = TypeVar("T")

GROWN_MIB = 8
"""A run is recorded again when it holds this much more than when it was last recorded."""


class Learning:
    """Opens the store, tells what it knows of each model, and writes what is measured."""

    def __init__(self, path: Path, versions: Mapping[str, str], rate_memory_s: float) -> None:
        self._path = path
        self._rate_memory_s = rate_memory_s
        self._versions = versions
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._store: Store | None = None
        self._known: dict[FootprintKey, Footprint] = {}
        self._durations: dict[FootprintKey, float] = {}
        self._demands: dict[str, RememberedDemand] = {}
        self._recorded: dict[tuple[str, int, int], Need] = {}
        self._complained = False

    async def open(self) -> None:
        """Read what is known. A store that cannot be used is replaced by one in memory."""
        await self._aside(self._open)

    def of(self, spec: ModelSpec) -> list[FootprintLearned | CostKnown | DemandKnown]:
        """What is known of the model as it is defined now."""
        events: list[FootprintLearned | CostKnown | DemandKnown] = [
            _learned(key, footprint)
            for key, footprint in self._known.items()
            if self._is_of(key, spec)
        ]
        events += [
            CostKnown(key.model, key.profile, key.device_kind, key.state, seconds)
            for key, seconds in self._durations.items()
            if self._is_of(key, spec)
        ]
        if (seen := self._demands.get(spec.id)) is not None:
            worn = math.exp(min(0.0, (seen.updated_at - time.time()) / self._rate_memory_s))
            events.append(DemandKnown(spec.id, seen.rate * worn, seen.service_s, seen.ended))
        return events

    def _is_of(self, key: FootprintKey, spec: ModelSpec) -> bool:
        return key == self._key(spec, key.profile, key.device_kind, key.state)

    def _key(self, spec: ModelSpec, profile: str, kinds: str, state: str) -> FootprintKey:
        return FootprintKey(
            model=spec.id,
            profile=profile,
            engine=spec.engine,
            engine_version=self._versions.get(spec.engine, ""),
            options_digest=options_digest(spec),
            device_kind=kinds,
            state=state,
        )

    async def took(self, spec: ModelSpec, cost: CostLearned) -> None:
        """Note what a step of a model is expected to take from now on."""
        key = self._key(spec, cost.profile, cost.kinds, cost.step)
        self._durations[key] = cost.seconds
        await self._write(
            lambda store: store.experience.record_duration(key, cost.seconds, time.time())
        )

    async def asked(self, model: str, demand: Demand, now: float) -> None:
        """Note how much a model is asked, for the time after a restart."""
        rate = demand.rate(now)
        seen = RememberedDemand(model, rate, demand.service_s, demand.ended, time.time())
        self._demands[model] = seen
        await self._write(lambda store: store.experience.record_demand(seen))

    async def measured(
        self, spec: ModelSpec, run: int, placed: Placement, level: int, used: Need
    ) -> FootprintLearned | None:
        """Note what a run holds; what is known by it, or None if that is no news."""
        before = self._recorded.get((spec.id, run, level), {})
        if not _has_grown(before, used):
            return None
        most = {d: max(mib, before.get(d, 0)) for d, mib in used.items()}
        self._recorded[spec.id, run, level] = most
        key = self._key(spec, placed.profile, placed.kinds, str(level))
        position = by_position(placed, most)
        footprint = await self._write(
            lambda store: store.footprints.record(key, position, time.time())
        )
        if footprint is None:
            return None
        self._known[key] = footprint
        return _learned(key, footprint)

    async def close(self) -> None:
        if self._store is not None:
            await self._aside(self._store.close)
        self._thread.shutdown()

    # In the store's thread.

    def _open(self) -> None:
        try:
            self._store = Store.open(self._path)
            self._known = dict(self._store.footprints.load_all())
            self._durations = dict(self._store.experience.durations())
            self._demands = {each.model: each for each in self._store.experience.demands()}
        except StoreError as error:
            log.warning("%s; what is measured is forgotten at the end of this run", error)
            self._store = Store.in_memory()

    async def _write(self, work: Callable[[Store], T]) -> T | None:
        """Have the store's thread write; None if the store fails, which is said once."""

        def write() -> T | None:
            assert self._store is not None, "opened before anything is learned"
            try:
                return work(self._store)
            except StoreError as error:
                if not self._complained:
                    log.warning("what is learned is not kept: %s", error)
                    self._complained = True
                return None

        return await self._aside(write)

    async def _aside(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def options_digest(spec: ModelSpec) -> str:
    """Stands for everything of a definition that changes what an engine takes."""
    parts: Iterable[object] = (
        spec.source,
        spec.revision,
        dict(spec.options),
        spec.command,
        dict(spec.env),
        [(p.name, p.devices, dict(p.options), p.command) for p in spec.profiles],
    )
    return hashlib.sha256(msgspec.json.encode(list(parts))).hexdigest()[:32]


def _learned(key: FootprintKey, footprint: Footprint) -> FootprintLearned:
    claims = claim_mib(footprint)
    return FootprintLearned(key.model, key.profile, key.device_kind, _level(key.state), claims)


def _level(state: str) -> int:
    return int(state) if state.isdecimal() else AWAKE


def _has_grown(before: Need, used: Need) -> bool:
    return any(mib >= before.get(device, -GROWN_MIB) + GROWN_MIB for device, mib in used.items())
