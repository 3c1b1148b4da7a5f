"""What others do when models do not fit, on the same mechanism.

Laws of this file:
- Each class follows the code of its model, read in 2025 and 2026: llama-swap's
  `internal/router/scheduler/fifo.go`, Ollama's `server/sched.go`, vllama's victim order.
- They get what they lack for nothing: exact knowledge of memory, ideal evictions (`fifo`), no
  bound on the queue, no rejected request, models that span devices, priorities, pinned models.
- Nobody in use is ever cut.
- The priority of a single request counts where there is one queue; llama-swap has one for each
  model, which goes by the model's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import combinations

from modelyard.simulation.values import Job
from modelyard.simulation.yard import Slot, Tier, Yard

Devices = tuple[int, ...]


class Fifo:
    """llama-swap's `fifo` scheduler with a matrix that knows every combination that fits.

    Models that are up serve at once, whoever else waits. Who waits longest may evict, as few as
    possible; it does so when all of these are idle, however long that takes.
    """

    def arrive(self, yard: Yard, job: Job) -> None:
        """Nothing to remember."""

    def step(self, yard: Yard) -> None:
        yard.serve_all()
        for slot in yard.waiting():
            best: tuple[Devices, list[Slot]] | None = None
            for devices in device_sets(yard, slot):
                victims = self._fewest(yard, slot, devices)
                if victims is None:
                    continue
                if best is None or len(victims) < len(best[1]):
                    best = devices, victims
                if not victims:
                    break
            if best and not any(victim.in_flight for victim in best[1]):
                yard.swap(slot, *best)

    @staticmethod
    def _fewest(yard: Yard, slot: Slot, devices: Devices) -> list[Slot] | None:
        """The fewest victims by a greedy choice; None if all of them would not do."""
        need = needs(yard, slot, devices)
        if not need:
            return []
        offered = evictable(yard, devices)
        for victim in offered:  # in the order of names
            if all(d in victim.devices and victim.mib >= lack for d, lack in need.items()):
                return [victim]
        return enough(sorted(offered, key=lambda s: -s.mib), need)


class Single:
    """llama-swap's default: one model at a time, whatever the memory."""

    def arrive(self, yard: Yard, job: Job) -> None:
        """Nothing to remember."""

    def step(self, yard: Yard) -> None:
        yard.serve_all()
        if yard.moving:
            return
        waiting = yard.waiting()
        if not waiting:
            return
        slot = waiting[0]
        residents = [yard.up[name] for name in sorted(yard.up) if not yard.up[name].model.pinned]
        if any(resident.in_flight for resident in residents):
            return
        for devices in device_sets(yard, slot):
            need = needs(yard, slot, devices)
            if enough(residents, need) is not None:
                yard.swap(slot, devices, residents)
                return


class HeadOfLine:
    """One queue for all; its head blocks everybody until it is served.

    `lru=False` is Ollama: any device with room, else a victim anywhere, idle ones first, then by
    name, one at a time until there is room. `lru=True` evicts the least recently used on the device
    where that costs least recency, and waits until they are idle.
    """

    def __init__(self, *, lru: bool) -> None:
        self._lru = lru
        self._line: deque[Job] = deque()
        self._owed_s = 0.0

    def arrive(self, yard: Yard, job: Job) -> None:
        at, priority = len(self._line), _priority(yard, job)
        while at and _priority(yard, self._line[at - 1]) < priority:
            at -= 1
        self._line.insert(at, job)

    def step(self, yard: Yard) -> None:
        while self._line:
            job = self._line[0]
            slot = yard.slots[job.model]
            if slot.tier is not Tier.UP:
                if not self._bring_up(yard, slot):
                    return
                continue
            if slot.in_flight >= yard.setup.concurrency:
                return
            self._line.popleft()
            slot.queue.remove(job)  # nearly always the first; priorities may have moved it
            yard.serve(slot, job)

    def _bring_up(self, yard: Yard, slot: Slot) -> bool:
        """Whether it makes sense to look at the head again."""
        if yard.moving:
            return False
        roomy = [d for d in device_sets(yard, slot) if not needs(yard, slot, d)]
        if roomy:
            devices = min(roomy, key=lambda ds: sum(yard.books.free_mib(d) for d in ds))
            yard.swap(slot, devices, [], self._owed_s)
            self._owed_s = 0.0
            return False
        if self._lru:
            self._evict_least_recent(yard, slot)
            return False
        return self._evict_by_name(yard)

    @staticmethod
    def _evict_least_recent(yard: Yard, slot: Slot) -> None:
        best: tuple[float, Devices, list[Slot]] | None = None
        for devices in device_sets(yard, slot):
            offered = sorted(evictable(yard, devices), key=lambda s: s.last_used_s)
            victims = enough(offered, needs(yard, slot, devices))
            if victims is None:
                continue
            newest = max(victim.last_used_s for victim in victims)
            if best is None or newest < best[0]:
                best = newest, devices, victims
        if best and not any(victim.in_flight for victim in best[2]):
            yard.swap(slot, best[1], best[2])

    def _evict_by_name(self, yard: Yard) -> bool:
        up = [slot for slot in yard.up.values() if not slot.model.pinned]
        idle = [slot for slot in up if not slot.in_flight]
        victim = min(idle or up, key=lambda s: s.name, default=None)
        if victim is None or victim.in_flight:
            return False
        self._owed_s += yard.take_down(victim)
        return True


def _priority(yard: Yard, job: Job) -> int:
    return yard.setup.models[job.model].priority if job.priority is None else job.priority


def device_sets(yard: Yard, slot: Slot) -> Iterator[Devices]:
    """Where a model could come up: devices that are large enough and on which nothing moves."""
    if slot.tier is Tier.ASLEEP:
        if not any(yard.books.is_moving(device) for device in slot.devices):
            yield slot.devices
        return
    sizes = yard.setup.devices_mib
    free = [d for d, size in enumerate(sizes) if size >= slot.mib and not yard.books.is_moving(d)]
    yield from combinations(free, slot.model.tensor_parallel)


def needs(yard: Yard, slot: Slot, devices: Devices) -> dict[int, int]:
    """MiB that a model lacks on each of these devices.

    What sleepers keep counts as free: they end when it is needed.
    """
    lack = {device: slot.mib - yard.books.free_mib(device) for device in devices}
    residue = yard.setup.residue_mib
    if residue:
        lack = {d: m - residue * len(yard.asleep_on(d)) for d, m in lack.items()}
    return {device: mib for device, mib in lack.items() if mib > 0}


def evictable(yard: Yard, devices: Devices) -> list[Slot]:
    """Models that are up on these devices, and may leave, in the order of their names."""
    return [
        slot
        for _, slot in sorted(yard.up.items())
        if not slot.model.pinned
        and not set(slot.devices).isdisjoint(devices)
        and not any(yard.books.is_moving(device) for device in slot.devices)
    ]


def enough(offered: Sequence[Slot], need: dict[int, int]) -> list[Slot] | None:
    """The first of the offered that together free what is needed, or None."""
    left = dict(need)
    taken: list[Slot] = []
    for slot in offered:
        if not left:
            break
        if any(device in left for device in slot.devices):
            taken.append(slot)
            left = {d: m - (slot.mib if d in slot.devices else 0) for d, m in left.items()}
            left = {d: m for d, m in left.items() if m > 0}
    return None if left else taken
