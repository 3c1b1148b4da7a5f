"""What came of a run, in numbers.

Laws of this file:
- A wait is from arrival to the begin of service. Quantiles are those of the sorted waits at
  position `int(q * n)`, without interpolation.
- A model that nobody asked for has no numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelyard.simulation.books import Books, Move


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds of waiting of some requests."""

    requests: int
    mean: float
    p50: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class Result:
    """What one policy made of a trace."""

    policy: str
    waits: Waits
    swaps: int
    swap_seconds: float
    makespan_s: float
    """When the last request had been served."""
    utilisation: tuple[float, ...]
    """For each device, the share of the makespan during which it served anybody."""
    models: dict[str, Waits]
    model_swaps: dict[str, int]
    keys: dict[str, Waits]
    """By the key of the trace's column `key`; empty without one."""
    moves: tuple[Move, ...]
    bound_p99_s: float | None = None
    """Least seconds of bringing models up for any schedule whose waits stay below this p99."""
    bound_max_s: float | None = None


def summed_up(policy: str, books: Books) -> Result:
    """The numbers of a run that is over."""
    makespan = books.now
    by_model: dict[str, list[float]] = {}
    by_key: dict[str, list[float]] = {}
    for job in books.served:
        by_model.setdefault(job.model, []).append(job.wait_s)
        if job.key:
            by_key.setdefault(job.key, []).append(job.wait_s)
    swaps = dict.fromkeys(sorted(by_model), 0)
    for move in books.moves:
        if move.what in ("start", "wake"):
            swaps[move.model] = swaps.get(move.model, 0) + 1
    return Result(
        policy,
        waits_of([job.wait_s for job in books.served]),
        books.swaps,
        books.swap_s,
        makespan,
        tuple(busy / makespan if makespan else 0.0 for busy in books.busy_s()),
        {name: waits_of(by_model[name]) for name in sorted(by_model)},
        swaps,
        {key: waits_of(by_key[key]) for key in sorted(by_key)},
        tuple(books.moves),
    )


def waits_of(seconds: Sequence[float]) -> Waits:
    """Raises ValueError for no waits at all."""
    if not seconds:
        raise ValueError("nobody waited")
    ordered, count = sorted(seconds), len(seconds)

    def at(share: float) -> float:
        return ordered[min(count - 1, int(share * count))]

    return Waits(count, sum(ordered) / count, at(0.5), at(0.95), at(0.99), ordered[-1])
