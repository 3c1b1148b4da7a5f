"""The requests that wait for one model, and who of them is next.

Laws of this file:
- A higher priority is served first; within one priority the keys take turns, so that one client
  with a thousand requests delays another by one request and not by a thousand; within one key the
  first to come is the first served.
- Nobody starves behind a higher priority: once somebody of a lower one has waited for the bound,
  theirs is every second turn.
- Whoever leaves leaves at once and changes nobody's order.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request in a queue. `key` names who sent it; requests of one key share their turns."""

    ticket: int
    arrived: float
    key: str = ""
    priority: int = 0


class WaitQueue:
    """Waiting requests of one model. Iterating gives their tickets in the order of arrival."""

    __slots__ = ("_arrivals", "_lanes", "_passed", "_waiting")

    def __init__(self) -> None:
        self._waiting: dict[int, Waiting] = {}
        self._lanes: dict[int, dict[str, deque[int]]] = {}
        """By priority, then by key in the order of their turns; no lane is empty."""
        self._arrivals = 0.0
        self._passed = False
        """Whether a higher priority was served last although a lower one had waited too long."""

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[int]:
        return iter(self._waiting)

    def __contains__(self, ticket: int) -> bool:
        return ticket in self._waiting

    @property
    def oldest(self) -> Waiting:
        """Who has waited longest. Raises StopIteration when nobody waits."""
        return next(iter(self._waiting.values()))

    def waited_s(self, now: float) -> float:
        """Seconds that all who wait have waited together."""
        return len(self._waiting) * now - self._arrivals

    def add(self, request: Waiting) -> None:
        self._waiting[request.ticket] = request
        self._arrivals += request.arrived
        lane = self._lanes.setdefault(request.priority, {})
        lane.setdefault(request.key, deque()).append(request.ticket)

    def pop(self, aged_before: float = -math.inf) -> Waiting:
        """Take out whose turn it is. Raises ValueError when nobody waits.

        Who came before `aged_before` has waited too long behind higher priorities.
        """
        lane = self._lanes[self._priority(aged_before)]
        key = next(iter(lane))
        line = lane.pop(key)
        request = self._waiting[line.popleft()]
        if line:
            lane[key] = line  # its next turn comes after everybody else's
        self._forget(request)
        return request

    def _priority(self, aged_before: float) -> int:
        """Which priority is served now."""
        highest = max(self._lanes)
        if len(self._lanes) == 1:
            return highest
        oldest_s, priority = min((self._since(each), each) for each in self._lanes)
        self._passed = not self._passed and priority != highest and oldest_s <= aged_before
        if self._passed or priority == highest or oldest_s > aged_before:
            return highest
        return priority

    def _since(self, priority: int) -> float:
        """When the oldest of a priority came."""
        return min(self._waiting[line[0]].arrived for line in self._lanes[priority].values())

    def remove(self, ticket: int) -> Waiting | None:
        """Take out who no longer waits; None if it does not wait."""
        request = self._waiting.get(ticket)
        if request is None:
            return None
        lane = self._lanes[request.priority]
        line = lane[request.key]
        line.remove(ticket)
        if not line:
            del lane[request.key]
        self._forget(request)
        return request

    def clear(self) -> list[int]:
        """Take everybody out: their tickets in the order of arrival."""
        tickets = list(self._waiting)
        self._waiting.clear()
        self._lanes.clear()
        self._arrivals = 0.0
        return tickets

    def in_order(self) -> Iterator[Waiting]:
        """Those who wait in the order in which they would be served if nobody else came."""
        for priority in sorted(self._lanes, reverse=True):
            lines = [iter(line) for line in self._lanes[priority].values()]
            while lines:
                turn, lines = lines, []
                for line in turn:
                    if (ticket := next(line, None)) is not None:
                        yield self._waiting[ticket]
                        lines.append(line)

    def _forget(self, request: Waiting) -> None:
        del self._waiting[request.ticket]
        self._arrivals = self._arrivals - request.arrived if self._waiting else 0.0
        if not self._lanes[request.priority]:
            del self._lanes[request.priority]
