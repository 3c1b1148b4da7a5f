"""How much work comes to each model, learned while it comes.

Laws of this file:
- Everything is counted at arrivals, begins and ends of requests, in constant time; nothing is kept
  of a single request.
- What is long past counts less: a count `c` is worth `c * exp(-age / memory)`.
- A rate is the mean of one that remembers so long and one that remembers LONGER times as long: the
  first knows who is asked now, the second tells those apart that are asked seldom.
- The mean time of service follows from Little's law: the time integral of the requests in flight,
  over the requests that ended. No request has to be timed for it.
"""

from __future__ import annotations

import math
from collections import deque

LONGER = 8.0
RECENT = 200
"""Waits from which the usual wait is told."""
MOST = 0.9
"""Share of the requests whose wait counts as usual."""
ENOUGH = 50
"""Fewer waits than this tell nothing."""
USUAL_SERVICE_S = 4.0
"""Mean time of service until requests have ended: a short answer of a chat model."""
BELIEF = 10.0
"""Ended requests that the general mean counts for beside a model's own."""
MOST_ENDED = 2000.0
"""Where the memory of ended requests is halved, so that a model that changes is noticed."""


class Pace:
    """What is usual for all models together: times of service, and waits."""

    __slots__ = ("_changed", "_usual", "area", "ended", "waits")

    def __init__(self) -> None:
        self.area = 0.0
        self.ended = 0.0
        self.waits: deque[float] = deque(maxlen=RECENT)
        """Seconds that the newest requests waited, those that did not wait at all among them."""
        self._changed = 0
        self._usual = 0.0

    @property
    def service_s(self) -> float:
        """Mean time of service over all models."""
        return (self.area + BELIEF * USUAL_SERVICE_S) / (self.ended + BELIEF)

    def waited(self, seconds: float) -> None:
        """A request was granted after this wait."""
        self.waits.append(seconds)
        self._changed += 1

    def usual_wait_s(self) -> float:
        """What nine of ten of the newest requests waited at most; 0 until there are enough.

        Renewed now and then.
        """
        if len(self.waits) < ENOUGH:
            return 0.0
        if self._changed >= RECENT // 10:
            self._changed = 0
            self._usual = sorted(self.waits)[int(len(self.waits) * MOST)]
        return self._usual


class Demand:
    """How often one model is asked and how long it works on a request."""

    __slots__ = (
        "_at",
        "_count",
        "_load",
        "_long_count",
        "_memory_s",
        "_pace",
        "area",
        "ended",
        "in_flight",
    )

    def __init__(self, pace: Pace, memory_s: float) -> None:
        self._pace = pace
        self._memory_s = memory_s
        self._at = -math.inf
        self._count = 0.0
        self._long_count = 0.0
        self._load = 0.0
        self.area = 0.0
        self.ended = 0.0
        self.in_flight = 0

    def arrived(self, now: float) -> None:
        """A request came."""
        self._advance(now)
        self._count += 1.0
        self._long_count += 1.0

    def served_at_once(self, now: float) -> None:
        """A request came and the engine got it."""
        self._advance(now)
        self._count += 1.0
        self._long_count += 1.0
        self.in_flight += 1

    def begun(self, now: float) -> None:
        """The engine got a request."""
        self._advance(now)
        self.in_flight += 1

    def over(self, now: float, *, ended: bool = True) -> None:
        """A request is no longer in flight; `ended` is false if it was cut off."""
        self._advance(now)
        self.in_flight -= 1
        if not ended:
            return
        self.ended += 1.0
        self._pace.ended += 1.0
        if self.ended > MOST_ENDED:
            self.ended /= 2.0
            self.area /= 2.0
        if self._pace.ended > MOST_ENDED:
            self._pace.ended /= 2.0
            self._pace.area /= 2.0

    def rate(self, now: float) -> float:
        """Requests per second of late."""
        age = (self._at - now) / self._memory_s
        count, long_count = self._count * math.exp(age), self._long_count * math.exp(age / LONGER)
        return 0.5 * (count + long_count / LONGER) / self._memory_s

    def load(self, now: float) -> float:
        """Requests in flight, on average of late."""
        fade = self._fade(now)
        return self._load * fade + self.in_flight * (1.0 - fade)

    @property
    def changed_at(self) -> float:
        """When a request last came, began or ended."""
        return self._at

    @property
    def service_s(self) -> float:
        """Mean time an engine works on a request of this model."""
        return (self.area + BELIEF * self._pace.service_s) / (self.ended + BELIEF)

    def recall(self, rate: float, service_s: float, ended: float, now: float) -> None:
        """Begin with what was learned before a restart."""
        self._advance(now)
        self._count = max(self._count, rate * self._memory_s)
        self._long_count = max(self._long_count, rate * self._memory_s * LONGER)
        if not self.ended:
            self.ended = min(ended, BELIEF * 10)
            self.area = self.ended * service_s

    def _fade(self, now: float) -> float:
        return math.exp((self._at - now) / self._memory_s)

    def _advance(self, now: float) -> None:
        past = now - self._at
        if past <= 0.0:
            return
        fade = math.exp(-past / self._memory_s)
        self._count *= fade
        self._long_count *= math.exp(-past / self._memory_s / LONGER)
        self._load = self._load * fade + self.in_flight * (1.0 - fade)
        if self.in_flight:
            work = self.in_flight * past
            self.area += work
            self._pace.area += work
        self._at = now
