"""The scheduler's parameters. Users set them under `scheduling` in the configuration."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """When waiting requests take memory from others, and how failed starts are repeated."""

    fair_after_s: float = 20.0
    """A model that waited this long may drain models in use, if those have run as long."""
    max_start_attempts: int = 3
    """Failures of one model in a row after which it is given up."""
    backoff_s: float = 0.5
    """Pause after the first failed start; it doubles with each further one."""
    backoff_max_s: float = 60.0
    """Longest pause between two starts."""
    failed_cooldown_s: float = 300.0
    """A model given up is tried again when asked for after this long."""
