"""What models really took, remembered across runs and restarts.

Laws of this file:
- The store is used from one thread of its own; nobody waits for a disk but whoever opens it.
- A store that cannot be opened or written costs the memory of this run only, and says so once.
- What is written is the most a run was seen to hold so far, when that has grown noticeably.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from modelyard.core.events import FootprintLearned
from modelyard.core.footprints import AWAKE, by_position
from modelyard.core.specs import ModelSpec, Need, Placement
from modelyard.store import Footprint, FootprintKey, Store, StoreError, claim_mib

log = logging.getLogger("modelyard")

T = TypeVar("T")

GROWN_MIB = 8
"""A run is recorded again when it holds this much more than when it was last recorded."""


class Learning:
    """Opens the store, tells what it knows of each model, and writes what is measured."""

    def __init__(self, path: Path, versions: Mapping[str, str]) -> None:
        self._path = path
        self._versions = versions
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._store: Store | None = None
        self._known: dict[FootprintKey, Footprint] = {}
        self._recorded: dict[tuple[str, int, int], Need] = {}
        self._complained = False

    async def open(self) -> None:
        """Read what is known. A store that cannot be used is replaced by one in memory."""
        self._store, self._known = await self._aside(self._open)

    def of(self, spec: ModelSpec) -> list[FootprintLearned]:
        """What is known of the model as it is defined now."""
        digest, version = options_digest(spec), self._versions.get(spec.engine, "")
        return [
            _learned(key, footprint)
            for key, footprint in self._known.items()
            if key.model == spec.id
            and (key.engine, key.engine_version, key.options_digest)
            == (spec.engine, version, digest)
        ]

    async def measured(
        self, spec: ModelSpec, run: int, placed: Placement, level: int, used: Need
    ) -> FootprintLearned | None:
        """Note what a run holds; what is known by it, or None if that is no news."""
        before = self._recorded.get((spec.id, run, level), {})
        if not _has_grown(before, used):
            return None
        most = {d: max(mib, before.get(d, 0)) for d, mib in used.items()}
        self._recorded[spec.id, run, level] = most
        key = FootprintKey(
            model=spec.id,
            profile=placed.profile,
            engine=spec.engine,
            engine_version=self._versions.get(spec.engine, ""),
            options_digest=options_digest(spec),
            device_kind=placed.kinds,
            state=str(level),
        )
        footprint = await self._aside(lambda: self._record(key, by_position(placed, most)))
        if footprint is None:
            return None
        self._known[key] = footprint
        return _learned(key, footprint)

    async def close(self) -> None:
        if self._store is not None:
            await self._aside(self._store.close)
        self._thread.shutdown()

    # In the store's thread.

    def _open(self) -> tuple[Store, dict[FootprintKey, Footprint]]:
        try:
            store = Store.open(self._path)
            return store, dict(store.footprints.load_all())
        except StoreError as error:
            log.warning("%s; what is measured is forgotten at the end of this run", error)
            return Store.in_memory(), {}

    def _record(self, key: FootprintKey, seen: Mapping[str, int]) -> Footprint | None:
        assert self._store is not None, "opened before anything is measured"
        try:
            return self._store.footprints.record(key, seen, time.time())
        except StoreError as error:
            if not self._complained:
                log.warning("measurements are not kept: %s", error)
                self._complained = True
            return None

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
