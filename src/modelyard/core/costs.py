"""What it costs in seconds to bring a model up and to have it leave.

Laws of this file:
- A duration that was seen counts; until one was, a table by engine and size does.
- Durations are kept by step, profile and kinds of devices: the same model starts at another speed
  on another card.
- A new duration moves the expectation by SHARE, so that one slow start is no rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from modelyard.core.specs import ModelSpec, Placement

SHARE = 0.3
"""Weight of the newest duration."""


class Step(StrEnum):
    """A change of a replica that takes time."""

    START = "start"
    STOP = "stop"
    SLEEP_1 = "sleep 1"
    SLEEP_2 = "sleep 2"
    WAKE_1 = "wake 1"
    WAKE_2 = "wake 2"


SLEEP = {1: Step.SLEEP_1, 2: Step.SLEEP_2, 3: Step.STOP}
"""How a replica leaves, by the level it leaves to; 3 is a stop."""
WAKE = {1: Step.WAKE_1, 2: Step.WAKE_2}


@dataclass(frozen=True, slots=True)
class Rule:
    """Seconds = `base_s` + weights in GiB / `gib_per_s`."""

    base_s: float
    gib_per_s: float = 0.0

    def seconds(self, gib: float) -> float:
        return self.base_s + (gib / self.gib_per_s if self.gib_per_s else 0.0)


COLD: Mapping[str, Rule] = {
    "llamacpp": Rule(1.5, 6.0),  # page cache to GPU; mapped by the CPU it is faster
    "vllm": Rule(35.0, 2.5),  # imports, compilation from its cache, CUDA graphs
    "transformers": Rule(8.0, 2.0),
    "remote": Rule(0.0),
}
"""First guesses, fitted to published measurements: vLLM's sleep mode article (A100, A4000) and
llama.cpp's users'. They matter until the first start was seen."""
OTHERS_COLD = Rule(10.0, 2.5)
CHANGES: Mapping[Step, Rule] = {
    Step.STOP: Rule(1.0),
    Step.SLEEP_1: Rule(0.1, 22.0),
    Step.WAKE_1: Rule(0.4, 20.0),
    Step.SLEEP_2: Rule(0.3),
    Step.WAKE_2: Rule(0.6, 4.5),
}


@dataclass(slots=True)
class Costs:
    """What is known of one model: seconds by profile, kinds of devices, and step."""

    known: dict[tuple[str, str, Step], float] = field(default_factory=dict)

    def seconds(self, spec: ModelSpec, placed: Placement, step: Step) -> float:
        """How long the step is expected to take where the replica is, or would be, placed."""
        seen = self.known.get((placed.profile, placed.kinds, step))
        if seen is not None:
            return seen
        rule = COLD.get(spec.engine, OTHERS_COLD) if step is Step.START else CHANGES[step]
        return rule.seconds(sum(placed.claims_mib.values()) / 1024 / max(1, len(placed.devices)))

    def learn(self, placed: Placement, step: Step, seconds: float) -> float:
        """Note how long a step took; returns what is expected from now on."""
        where = (placed.profile, placed.kinds, step)
        before = self.known.get(where, seconds)
        self.known[where] = expected = before + SHARE * (seconds - before)
        return expected
