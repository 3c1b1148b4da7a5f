"""Which waiting inputs are computed together.

Laws of this file:
- Pure and without a lock: `computing` owns one `Waiting` and guards it.
- The input that has waited longest is in the next batch, so nobody starves; what fills the batch
  up is of the same lane and nearest in length, so little is padded.
- A batch holds at most `max_inputs` inputs and `max_tokens` places, padding counted. An input
  longer than that is computed alone.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Job = TypeVar("Job", bound=Hashable)


@dataclass(slots=True, eq=False)
class Input(Generic[Job]):
    """One text of a request, in tokens. Only inputs of the same `lane` can share a batch."""

    lane: Hashable
    length: int
    """Tokens, special ones and those of the prompt included."""
    row: object
    """What the model wants to see again."""
    job: Job
    place: int
    """Which input of its job it is."""
    number: int = field(default=0, init=False)
    taken: bool = field(default=False, init=False)


class Waiting(Generic[Job]):
    """Inputs that wait for their batch."""

    def __init__(self, max_inputs: int, max_tokens: int) -> None:
        self._max_inputs = max_inputs
        self._max_tokens = max_tokens
        self._arrived: deque[Input[Job]] = deque()
        self._lanes: dict[Hashable, list[Input[Job]]] = {}
        """By lane: sorted by length, then by arrival."""
        self._count = 0
        self._last = 0

    def __len__(self) -> int:
        return self._count

    def add(self, inputs: Iterable[Input[Job]]) -> None:
        for each in inputs:
            self._last += 1
            each.number = self._last
            self._arrived.append(each)
            insort(self._lanes.setdefault(each.lane, []), each, key=_rank)
            self._count += 1

    def discard(self, job: Job) -> None:
        """Forget the inputs of `job` that have not been taken."""
        kept: deque[Input[Job]] = deque()
        for each in self._arrived:
            if each.job == job and not each.taken:
                each.taken = True
                self._leave(each)
            elif not each.taken:
                kept.append(each)
        self._arrived = kept

    def take(self) -> list[Input[Job]]:
        """The next batch, empty if nothing waits."""
        while self._arrived and self._arrived[0].taken:
            self._arrived.popleft()
        if not self._arrived:
            return []
        batch = self._around(self._arrived.popleft())
        for each in batch:
            each.taken = True
            self._leave(each)
        return batch

    def _around(self, oldest: Input[Job]) -> list[Input[Job]]:
        lane = self._lanes[oldest.lane]
        first = last = bisect_left(lane, _rank(oldest), key=_rank)
        while last - first + 1 < self._max_inputs:
            places = (last - first + 2) * lane[last].length
            shorter = lane[first - 1] if first and places <= self._max_tokens else None
            longer = lane[last + 1] if last + 1 < len(lane) else None
            if longer is not None and (last - first + 2) * longer.length > self._max_tokens:
                longer = None
            if shorter is None and longer is None:
                break
            if longer is None or (
                shorter is not None
                and oldest.length - shorter.length <= longer.length - oldest.length
            ):
                first -= 1
            else:
                last += 1
        return lane[first : last + 1]

    def _leave(self, each: Input[Job]) -> None:
        lane = self._lanes[each.lane]
        del lane[bisect_left(lane, _rank(each), key=_rank)]
        if not lane:
            del self._lanes[each.lane]
        self._count -= 1


def _rank(each: Input[Job]) -> tuple[int, int]:
    return each.length, each.number
