"""The upstreams of one remote run: who is asked next, and what became of those who were.

Laws of this file:
- A request goes to the next upstream only while not a byte of an answer has reached its client;
  `http.exchange` sees to that. No upstream gets one request twice, but for a pooled connection
  that turned out to be closed.
- What an upstream did is noted once for each request. Statuses that say "not me, not now" count
  against it; what a client may have caused (other 4xx, 500) does not.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence

from modelyard.core.circuit import Choice, Circuit, Gate
from modelyard.core.errors import UpstreamsFailed
from modelyard.engines.remote import Target
from modelyard.runtime.upstream import Headers, Upstream

log = logging.getLogger("modelyard")

FRESH_FOR_S = 30.0
"""A remote's pooled connections are used this long: a handshake across the world costs more than
the rare one that has just been closed, which is then made anew."""
ELSEWHERE = frozenset({502, 503, 504, 529})
"""Statuses of an upstream (or of what stands before it) that cannot serve anybody at the moment;
529 is Anthropic's "overloaded"."""
TOO_MANY = 429


class Failover:
    """One remote model's upstreams as a request sees them."""

    def __init__(
        self,
        model: str,
        upstreams: Sequence[Upstream],
        targets: Sequence[Target],
        circuits: Sequence[Circuit],
        on_opened: Callable[[], None],
    ) -> None:
        """`on_opened` is called when requests no longer pass to an upstream."""
        self.model = model
        self.choice = Choice([target.weight for target in targets], circuits)
        self.upstreams = tuple(upstreams)
        self.targets = tuple(targets)
        self._on_opened = on_opened
        self._closed = False
        self._now = asyncio.get_running_loop().time
        for at, upstream in enumerate(self.upstreams):
            upstream.answered = lambda status, at=at: self._answered(at, status)  # type: ignore[misc]

    def next(self, tried: Sequence[Upstream]) -> Upstream | None:
        """The upstream to send a request to that those in `tried` have failed; None if none is."""
        if self._closed:
            return None
        places = [self.upstreams.index(each) for each in tried]
        found = self.choice.next(self._now(), places)
        return None if found is None else self.upstreams[found]

    def failed(self, upstream: Upstream, reason: str) -> None:
        """A request could not be sent there, or its answer broke off."""
        self._failed(self.upstreams.index(upstream), reason)

    def is_asked_elsewhere(self, upstream: Upstream, status: int, headers: Headers) -> bool:
        """Whether an answer of this status is a reason to ask another upstream."""
        if status == TOO_MANY:
            after_s = _retry_after_s(headers)
            if after_s is None:
                return False
            at = self.upstreams.index(upstream)
            self.choice.circuits[at].rest(self._now(), after_s)
            return True
        return status in ELSEWHERE

    def error(self, tried: Sequence[Upstream], said: str) -> UpstreamsFailed:
        """What to tell a client that no upstream could serve; `said` is what the last one did."""
        now = self._now()
        names = [self.name_of(each) for each in tried]
        if names:
            return UpstreamsFailed(self.model, f"{', '.join(names)}: {said}")
        opens = [circuit.probe_at for circuit in self.choice.circuits]
        reasons = "; ".join(
            f"{target.name}: {circuit.reason or 'no answer'}"
            for target, circuit in zip(self.targets, self.choice.circuits, strict=True)
        )
        return UpstreamsFailed(self.model, reasons, max(1.0, min(opens, default=now) - now))

    def name_of(self, upstream: Upstream) -> str:
        """The upstream's address, for messages."""
        return self.targets[self.upstreams.index(upstream)].name

    def retire(self) -> None:
        """Take no more requests; those in flight end by themselves."""
        for upstream in self.upstreams:
            upstream.retire()

    def close(self) -> None:
        """Drop every connection, and send no request anywhere any more."""
        self._closed = True
        for upstream in self.upstreams:
            upstream.close()

    def _answered(self, at: int, status: int) -> None:
        if status in ELSEWHERE:
            self._failed(at, f"status {status}")
        elif status < 500 and status != TOO_MANY:
            self.choice.circuits[at].answered(self._now())

    def _failed(self, at: int, reason: str) -> None:
        circuit = self.choice.circuits[at]
        was_open = circuit.gate is Gate.OPEN
        circuit.failed(self._now(), reason)
        if circuit.gate is Gate.OPEN and not was_open:
            name = self.targets[at].name
            log.warning("model %s: upstream %s is not asked for now: %s", self.model, name, reason)
            self._on_opened()


def _retry_after_s(headers: Headers) -> float | None:
    """Seconds of a Retry-After header. A date in it (RFC 9110, 10.2.3) counts as one second: it
    is said by their clock."""
    for name, value in headers:
        if name == b"retry-after":
            try:
                seconds = float(value)
            except ValueError:
                return 1.0
            return seconds if math.isfinite(seconds) and seconds >= 0 else None
    return None
