"""A model's `health`: how its engine is found to be well.

Laws of this file:
- `health.path` and the older key `health_path` mean the same; a model writes one of them.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from modelyard.config.kinds import Boolean, BooleanOrAuto, HttpPath, PositiveDuration
from modelyard.config.sections import Section
from modelyard.config.units import format_duration
from modelyard.core.specs import Health

_HEALTH = Health()


class HealthSection(Section):
    """How an engine is found to be well."""

    path: HttpPath = Field(
        None, description="Route that answers 200 once the engine is ready; null asks the engine."
    )
    functional: BooleanOrAuto = Field(
        _HEALTH.functional,
        description="Whether a model has to give one token or one vector before it counts as "
        "ready, and again after its engine broke an answer off. `auto` asks all but commands of "
        "your own.",
    )
    timeout_s: PositiveDuration = Field(
        _HEALTH.timeout_s, description="Longest wait for that token or vector."
    )
    warm_up: Boolean = Field(
        _HEALTH.warm_up,
        description="Have an engine whose first request is slow answer one before it is ready.",
    )

    def value(self) -> Health:
        return Health(self.functional, self.timeout_s, self.warm_up)


def written_health(health: Health) -> dict[str, Any]:
    """`health` in the words of the file; its route is the key `health_path`."""
    return {
        "functional": "auto" if health.functional is None else health.functional,
        "timeout": format_duration(health.timeout_s),
        "warm_up": health.warm_up,
    }
