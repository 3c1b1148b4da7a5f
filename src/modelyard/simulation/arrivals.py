"""Requests that a trace describes only by rates, and models that it does not name.

Laws of this file:
- The same seed draws the same requests, whatever else is drawn.
- A client's arrivals are a renewal process whose clock runs as fast as its rate: gaps have the
  window's distribution with mean 1, and time passes them at the rate of each window.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from modelyard.simulation.values import Cut, Job, service_s

WINDOW_S = 600.0
ZIPF = 1.0
INPUT_TOKENS = (6.63, 0.99)
"""Mean and deviation of the logarithm of the input tokens of Azure's conversation trace of 2023."""
OUTPUT_TOKENS = (5.02, 0.86)
"""The same of its output tokens."""
MOST_TOKENS = (14_050, 1000)
"""The longest input and output of that trace."""


@dataclass(frozen=True, slots=True)
class RateWindow:
    """How often one client asks during ten minutes, and how regularly."""

    start_s: float
    rate_rps: float
    pattern: str
    """Family of the gaps: `gamma` or `weibull`."""
    shape: float
    length_s: float = WINDOW_S

    def gap(self, rng: random.Random) -> float:
        """A gap with mean 1."""
        if self.pattern == "gamma":
            return rng.gammavariate(self.shape, 1 / self.shape)
        return rng.weibullvariate(1 / math.gamma(1 + 1 / self.shape), self.shape)


def arrivals(
    windows: Mapping[str, Sequence[RateWindow]],
    models: Sequence[str],
    seed: int,
    cut: Cut,
    most: int,
) -> list[Job]:
    """Requests of as many clients as there are models, each client asking for one of them.

    Raises ValueError for more than `most` requests.
    """
    rng = random.Random(seed)
    clients = sorted(windows)
    rng.shuffle(clients)
    chosen = dict(zip(models, clients, strict=False))
    last_s = max((w.start_s + w.length_s for c in chosen.values() for w in windows[c]), default=0)
    length_s = min(cut.length_s, last_s - cut.start_s)
    expected = sum(_expected(w, cut) for c in chosen.values() for w in windows[c])
    scale = 1.0 if cut.rate_rps is None else cut.rate_rps * length_s / expected if expected else 0.0
    if expected * scale > most:
        raise ValueError(
            f"asks for about {expected * scale:.0f} requests, and {most} are the most; "
            "play a part with --length, or fewer with --rate"
        )
    jobs = []
    for model, client in chosen.items():
        own = random.Random(f"{seed}/{client}")
        for at_s in _renewals(sorted(windows[client], key=lambda w: w.start_s), scale, own):
            if cut.start_s <= at_s < cut.start_s + length_s:
                inputs, outputs = draw_tokens(own)
                arrived_s = (at_s - cut.start_s) * cut.stretch
                jobs.append(Job(model, arrived_s, service_s(inputs, outputs)))
    return jobs


def by_zipf(models: Sequence[str], seed: int) -> Callable[[], str]:
    """Draws models: the one at rank r of an order that the seed shuffles with weight 1/r."""
    rng = random.Random(f"{seed}/models")
    order = sorted(models)
    rng.shuffle(order)
    sums, total = [], 0.0
    for rank in range(1, len(order) + 1):
        total += 1 / rank**ZIPF
        sums.append(total)
    return lambda: rng.choices(order, cum_weights=sums)[0]


def draw_tokens(rng: random.Random) -> tuple[int, int]:
    """Tokens of a request in and out, as in a conversation."""
    pairs = zip((INPUT_TOKENS, OUTPUT_TOKENS), MOST_TOKENS, strict=True)
    inputs, outputs = (min(most, round(rng.lognormvariate(*of))) for of, most in pairs)
    return inputs, outputs


def _expected(window: RateWindow, cut: Cut) -> float:
    """Requests of a window within the cut."""
    begin = max(window.start_s, cut.start_s)
    end = min(window.start_s + window.length_s, cut.start_s + cut.length_s)
    return window.rate_rps * max(0.0, end - begin)


def _renewals(windows: Sequence[RateWindow], scale: float, rng: random.Random) -> list[float]:
    """When a client asks. The first gap is cut at random, since nobody began with the trace."""
    if not windows or not scale:
        return []
    times = []
    left = windows[0].gap(rng) * rng.random()
    for window in windows:
        at_s, rate = window.start_s, window.rate_rps * scale
        end_s = window.start_s + window.length_s
        while at_s + left / rate < end_s:
            at_s += left / rate
            times.append(at_s)
            left = window.gap(rng)
        left -= (end_s - at_s) * rate
    return times
