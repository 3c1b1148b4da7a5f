"""The section `scheduling`: when waiting requests take memory from others, and how starts are
repeated.

Laws of this file:
- Defaults come from `core.policy`; descriptions are for users and published in the JSON Schema.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from modelyard.config.kinds import Boolean, Duration, PositiveDuration, number, whole
from modelyard.config.sections import Section
from modelyard.core.policy import Policy

_SCHEDULING = Policy()


class SchedulingSection(Section):
    fair_after_s: Duration = Field(
        _SCHEDULING.fair_after_s,
        description="Least age bound: a model whose request has waited this long goes before all "
        "younger ones and may have models in use drained. It grows with the two keys below.",
    )
    wait_factor: Annotated[float, number(0, 100)] = Field(
        _SCHEDULING.wait_factor,
        description="The age bound is at least this many times what nine of ten recent requests "
        "waited at most.",
    )
    away_factor: Annotated[float, number(0, 100)] = Field(
        _SCHEDULING.away_factor,
        description="The age bound is at least this many times as long as those who have to leave "
        "would be away.",
    )
    residency_factor: Annotated[float, number(0, 100)] = Field(
        _SCHEDULING.residency_factor,
        description="A model in use stays at least this many times as long as the change that "
        "replaces it takes, so that changes take at most 1/(1+factor) of the time.",
    )
    loss_factor: Annotated[float, number(0.01, 100)] = Field(
        _SCHEDULING.loss_factor,
        description="A model in use is drained once those who wait have waited this many times "
        "what its own users will wait for it.",
    )
    reserve_factor: Annotated[float, number(1, 100)] = Field(
        _SCHEDULING.reserve_factor,
        description="Past this many age bounds, devices are kept free of newcomers for the model "
        "that waits longest.",
    )
    rate_memory_s: PositiveDuration = Field(
        _SCHEDULING.rate_memory_s,
        description="How long a request counts when it is told how often a model is asked; for "
        "half of that, eight times as long.",
    )
    prefetch: Boolean = Field(
        _SCHEDULING.prefetch,
        description="Bring models that had to leave back into memory that nobody needs.",
    )
    make_room: Boolean = Field(
        _SCHEDULING.make_room,
        description="Have idle models leave before their memory is needed, where the models that "
        "are away would together save more waiting by it than those are missed.",
    )
    make_room_after_s: Duration = Field(
        _SCHEDULING.make_room_after_s,
        description="A model leaves ahead only when nothing was asked of it for this long.",
    )
    scale_up_after_s: Duration = Field(
        _SCHEDULING.scale_up_after_s,
        description="Start another replica, up to `replicas.max`, when requests have waited this "
        "long for a place in those that run and memory is free.",
    )
    scale_up_kv: Annotated[float, number(0.01, 1)] = Field(
        _SCHEDULING.scale_up_kv,
        description="An engine counts as full, as if requests waited for a place in it, when they "
        "hold this share of its key-value cache, or when it has some that it has not begun.",
    )
    read_gauges_every_s: PositiveDuration = Field(
        _SCHEDULING.read_gauges_every_s,
        description="How often engines that may get another replica are asked how full they are.",
    )
    scale_down_after_s: PositiveDuration = Field(
        _SCHEDULING.scale_down_after_s,
        description="Stop a replica beyond `replicas.min` that nothing was asked of for this long.",
    )
    max_start_attempts: Annotated[int, whole(1, 100)] = Field(
        _SCHEDULING.max_start_attempts,
        description="Starts of one model in a row that may fail before it counts as failed.",
    )
    backoff_s: Duration = Field(
        _SCHEDULING.backoff_s,
        description="Pause after the first failed start; it doubles with each further one.",
    )
    backoff_max_s: Duration = Field(
        _SCHEDULING.backoff_max_s, description="Longest pause between two starts."
    )
    failed_cooldown_s: Duration = Field(
        _SCHEDULING.failed_cooldown_s,
        description="Time until a request may try a failed model again.",
    )
