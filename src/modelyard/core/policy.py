"""The scheduler's parameters. Users set them under `scheduling` in the configuration."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """When waiting requests take memory from others, and how failed starts are repeated."""

    fair_after_s: float = 10.0
    """Age bound: a model whose request has waited this long goes before all younger ones and may
    have models in use drained. It grows with the usual wait and the time that a change takes."""
    wait_factor: float = 1.2
    """The age bound is at least this many times the wait that nine of ten recent requests had."""
    away_factor: float = 2.0
    """The age bound is at least this many times the absence of those who would have to leave."""
    residency_factor: float = 4.0
    """A model in use stays at least this many times as long as the change that replaces it takes,
    so that changes cost at most 1 / (1 + factor) of the time."""
    loss_factor: float = 2.0
    """A model in use is drained once those who wait have waited this many times the time that
    its own users would lose."""
    reserve_factor: float = 2.0
    """Past this many age bounds the oldest model has a place kept free of newcomers."""
    rate_memory_s: float = 600.0
    """How long arrivals count when the rate of a model is told; for half of it, eight times as
    long."""
    prefetch: bool = True
    """Models that had to leave come back into memory that nobody needs."""
    make_room: bool = True
    """Idle models leave before their memory is needed, where those who are away, all together,
    would save more waiting by it than they are missed."""
    make_room_after_s: float = 2.0
    """An idle model leaves ahead only when nothing was asked of it for this long."""
    scale_up_after_s: float = 5.0
    """Another replica is started when requests have waited this long for room in those that run."""
    scale_up_kv: float = 0.9
    """An engine is full, as if requests waited for it, when they hold this share of its key-value
    cache, or when it has some that it has not begun."""
    read_gauges_every_s: float = 2.0
    """How often the gauges of engines that may get another replica are read."""
    scale_down_after_s: float = 120.0
    """A replica beyond `min` that nothing was asked of for this long is stopped."""
    max_start_attempts: int = 3
    """Failures of one model in a row after which it is given up."""
    backoff_s: float = 0.5
    """Pause after the first failed start; it doubles with each further one."""
    backoff_max_s: float = 60.0
    """Longest pause between two starts."""
    failed_cooldown_s: float = 300.0
    """A model given up is tried again when asked for after this long."""
