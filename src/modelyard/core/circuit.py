"""Which of several upstreams is asked: a circuit breaker for each, and their weights.

Laws of this file:
- Pure: the caller says what time it is and what happened; nothing here waits or asks.
- A circuit changes its state only by a row of `TRANSITIONS`; news without a row changes nothing.
- An open circuit lets nobody through. What closes it again is a probe that costs nothing, then one
  real request: no client's request is risked on an upstream of which nothing good is known.
- An upstream that asked for a pause (429 with Retry-After) is well: it is asked last, not never.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

TRIAL_S = 10.0
"""How long the one request of a half-open circuit may be out before another one is tried."""
LONGEST_REST_S = 120.0
"""Longest pause that an upstream may ask for."""


class Gate(StrEnum):
    """Whether requests pass."""

    CLOSED = "closed"
    """They do."""
    OPEN = "open"
    """They do not."""
    HALF_OPEN = "half-open"
    """One does, to see what becomes of it."""


class News(StrEnum):
    """What is learned of an upstream."""

    ANSWERED = "answered"
    FAILED = "failed"
    """A request that counts as one too many."""
    PROBE_ANSWERED = "probe answered"
    PROBE_FAILED = "probe failed"


TRANSITIONS: dict[tuple[Gate, News], Gate] = {
    (Gate.CLOSED, News.ANSWERED): Gate.CLOSED,
    (Gate.CLOSED, News.FAILED): Gate.OPEN,
    (Gate.CLOSED, News.PROBE_FAILED): Gate.OPEN,
    (Gate.OPEN, News.ANSWERED): Gate.HALF_OPEN,  # a request from before it opened
    (Gate.OPEN, News.PROBE_ANSWERED): Gate.HALF_OPEN,
    (Gate.OPEN, News.PROBE_FAILED): Gate.OPEN,
    (Gate.HALF_OPEN, News.ANSWERED): Gate.CLOSED,
    (Gate.HALF_OPEN, News.FAILED): Gate.OPEN,
    (Gate.HALF_OPEN, News.PROBE_FAILED): Gate.OPEN,
}


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When a circuit opens, and how long it stays open."""

    failures: int = 3
    """So many failures in a row open it."""
    open_s: float = 5.0
    """Time until an open one is probed; it doubles each time it opens again."""
    open_max_s: float = 60.0
    """Longest such time."""


class Circuit:
    """What is known of one upstream."""

    def __init__(self, thresholds: Thresholds) -> None:
        self.gate = Gate.CLOSED
        self.failures = 0
        """Failures in a row."""
        self.probe_at = 0.0
        """When an open circuit is to be probed."""
        self.rests_until = 0.0
        """The upstream asked not to be asked before."""
        self.reason = ""
        """What went wrong last; empty once it answered properly."""
        self._thresholds = thresholds
        self._pause_s = thresholds.open_s
        self._trial_until = 0.0

    def __repr__(self) -> str:
        return f"<Circuit {self.gate}, {self.failures} failures>"

    def admits(self, now: float) -> bool:
        """Whether a request may be sent without a second thought."""
        if self.gate is Gate.HALF_OPEN:
            return now >= self._trial_until and now >= self.rests_until
        return self.gate is Gate.CLOSED and now >= self.rests_until

    def chosen(self, now: float) -> None:
        """A request is about to be sent."""
        if self.gate is Gate.HALF_OPEN:
            self._trial_until = now + TRIAL_S

    def answered(self, now: float) -> None:
        """The upstream began an answer that shows that it works."""
        self.failures = 0
        self.reason = ""
        self._take(News.ANSWERED, now)

    def failed(self, now: float, reason: str) -> None:
        """The upstream could not be reached, broke off, or said that it cannot."""
        self.failures += 1
        self.reason = reason
        if self.gate is Gate.HALF_OPEN or self.failures >= self._thresholds.failures:
            self._take(News.FAILED, now)

    def probed(self, now: float, reason: str) -> None:
        """A probe has come back; `reason` says what is wrong, if anything is."""
        self.reason = reason or self.reason
        self._take(News.PROBE_FAILED if reason else News.PROBE_ANSWERED, now)

    def rest(self, now: float, seconds: float) -> None:
        """The upstream asked for a pause."""
        self.rests_until = max(self.rests_until, now + min(seconds, LONGEST_REST_S))

    def _take(self, news: News, now: float) -> None:
        before, self.gate = self.gate, TRANSITIONS.get((self.gate, news), self.gate)
        if self.gate is Gate.CLOSED:
            self._pause_s = self._thresholds.open_s
        elif self.gate is Gate.HALF_OPEN and before is Gate.OPEN:
            self._trial_until = 0.0
        elif self.gate is Gate.OPEN and (before is not Gate.OPEN or news is News.PROBE_FAILED):
            self.probe_at = now + self._pause_s
            self._pause_s = min(2 * self._pause_s, self._thresholds.open_max_s)


class Choice:
    """Chooses among upstreams by weight, leaving out those that are not well.

    Weighted requests are spread evenly (a smooth weighted round robin), so that 3:1 is
    a-a-b-a and not a-a-a-b. An upstream of weight 0 is asked only if no other one can be.
    """

    def __init__(self, weights: Sequence[int], circuits: Sequence[Circuit]) -> None:
        self.circuits = tuple(circuits)
        self._weights = tuple(weights)
        self._credit = [0] * len(weights)

    def next(self, now: float, tried: Collection[int] = ()) -> int | None:
        """The upstream to send a request to, by its place; None if there is none to be had.

        Those in `tried` have failed the request already. In this order: those that are well, those
        of weight 0, those whose trial is still out, those that asked for a pause.
        """
        open_to = [
            at
            for at, circuit in enumerate(self.circuits)
            if at not in tried and circuit.gate is not Gate.OPEN
        ]
        well = [at for at in open_to if self.circuits[at].admits(now)]
        found = self._by_weight([at for at in well if self._weights[at]])
        if found is None:
            rested = [at for at in open_to if now >= self.circuits[at].rests_until]
            soonest = sorted(open_to, key=lambda at: self.circuits[at].rests_until)
            found = next(iter([*well, *rested, *soonest]), None)
        if found is not None:
            self.circuits[found].chosen(now)
        return found

    @property
    def is_dark(self) -> bool:
        """Whether no upstream takes requests."""
        return all(circuit.gate is Gate.OPEN for circuit in self.circuits)

    def _by_weight(self, places: Sequence[int]) -> int | None:
        if not places:
            return None
        for at in places:
            self._credit[at] += self._weights[at]
        best = max(places, key=lambda at: self._credit[at])
        self._credit[best] -= sum(self._weights[at] for at in places)
        return best
