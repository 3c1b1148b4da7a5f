"""When to look at which model again.

Laws of this file:
- An alarm that rings too early does no harm: whoever hears it looks again and sets the next one.
  So each subject has one alarm, the earliest that was asked for.
- Setting and hearing one costs the logarithm of the number of subjects.
"""

from __future__ import annotations

import heapq
import math


class Alarms:
    """The next moment to look at each subject."""

    __slots__ = ("_at", "_heap")

    def __init__(self) -> None:
        self._heap: list[tuple[float, str]] = []
        self._at: dict[str, float] = {}

    def set(self, subject: str, at: float) -> None:
        """Have `subject` looked at no later than `at`; infinity asks for nothing."""
        if at < self._at.get(subject, math.inf):
            self._at[subject] = at
            heapq.heappush(self._heap, (at, subject))

    def due(self, now: float) -> list[str]:
        """The subjects whose time has come; their alarms are off now."""
        found = []
        while self._heap and self._heap[0][0] <= now:
            at, subject = heapq.heappop(self._heap)
            if self._at.get(subject) == at:
                del self._at[subject]
                found.append(subject)
        return found

    def next(self) -> float:
        """When the first alarm rings; infinity for never."""
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf
