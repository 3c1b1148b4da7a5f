"""How much a model was asked, as the store keeps it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RememberedDemand:
    """How often a model was asked, and how long it worked on a request."""

    model: str
    rate: float
    """Requests per second at `updated_at`."""
    service_s: float
    ended: float
    """Requests that `service_s` was learned from."""
    updated_at: float
    """Seconds since the epoch."""
