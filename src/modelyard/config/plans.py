"""What is asked of the planner, and what it says, as values that travel to the command line.

Laws of this file:
- Standard library only: client and command line use it without anything that validates.
- Memory is MiB (`_mib`), spans are seconds (`_s`), and what is an estimate is said to be one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Ask:
    """What a person wants to know of a model. None leaves a choice to the planner."""

    gpus: str | None = None
    """Cards as people write them, `2x RTX 4090`; None takes this machine's, `none` has none."""
    ram_mib: int | None = None
    """Host memory beside named cards; None takes `planner.machine.ASSUMED_RAM_MIB`."""
    context: int | None = None
    """Tokens of one sequence; None takes what fits."""
    concurrency: int | None = None
    """Sequences that shall fit at full length at once."""
    engine: str | None = None


@dataclass(frozen=True, slots=True)
class TermView:
    """One part of the memory of a device; `source` is where its formula's numbers come from."""

    name: str
    mib: float
    formula: str
    source: str


@dataclass(frozen=True, slots=True)
class ShareView:
    """What a replica would take on one device."""

    device: str
    name: str
    total_mib: int
    available_mib: int
    """What replicas may hold there: within reserve or budget, and without what is not ours."""
    held_mib: int
    """What idle or running models hold of that now; they leave for a model that is asked for."""
    needs_mib: int
    terms: list[TermView] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        return self.needs_mib <= self.available_mib


@dataclass(frozen=True, slots=True)
class SettingView:
    """One recommendation and why."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True, slots=True)
class SpeedView:
    """What hardware allows at best; real engines reach half to four fifths of it."""

    load_s: float
    first_tokens_s: float | None
    """Tokens a second that one sequence writes at its beginning, where bandwidths are known."""
    decode_tokens_s: float | None
    """The same at its end, when its cache is full."""
    together_tokens_s: float | None
    """Of all sequences that the plan has room for together."""
    prefill_tokens_s: float | None
    """Tokens of input a second, where the card's arithmetic is known."""
    basis: list[str]
    """How each was reckoned."""


@dataclass(frozen=True, slots=True)
class AlternativeView:
    """Another way to run it: what it saves or needs, and what it costs."""

    name: str
    fits: bool
    gpu_mib: int
    """On all cards together."""
    host_mib: int
    longest_context: int
    """Tokens of one sequence with which it still fits; 0 where none does."""
    cost: str


@dataclass(frozen=True, slots=True)
class StepView:
    """One step down a ladder of settings that need less memory."""

    name: str
    reason: str
    # Any is OptionValue, a recursive type, which not all that carries these values can express.
    options: dict[str, Any]
    gpu_mib: int
    host_mib: int


@dataclass(frozen=True, slots=True)
class PlanView:
    """Whether and how a model runs on some hardware."""

    model: str
    source: str
    fits: bool
    verdict: str
    """In one sentence."""
    engine: str
    engine_reason: str
    architecture: str
    quantization: str
    weights_mib: int
    trained_context: int | None
    hardware: str
    context: int
    longest_context: int
    """Largest context of one sequence that fits with these settings."""
    sequences: int
    utilisation: float | None
    """vLLM's share of each card."""
    settings: list[SettingView]
    shares: list[ShareView]
    speed: SpeedView
    alternatives: list[AlternativeView]
    fallbacks: list[StepView]
    """In order, should a start run out of memory all the same."""
    options: dict[str, Any]
    """The engine's options, by the names that our configuration takes."""
    commands: list[str]
    config: str
    """YAML for `modelyard.yaml`."""
    notes: list[str] = field(default_factory=list)
