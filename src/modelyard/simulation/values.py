"""What is simulated: models, devices, costs, requests.

Laws of this file:
- Memory is in MiB, and fractions of a MiB are dropped, so that what fits by its GiB fits.
- Times are seconds of the virtual clock, which begins at 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from modelyard.core.specs import Replicas

MIB_PER_GIB = 1024
CONCURRENCY = 16
"""Requests that one engine serves at once."""
HOST_MIB = 512 * MIB_PER_GIB
TICK_EVERY = 256
"""Requests between two words about how far a run has come."""


@dataclass(frozen=True, slots=True)
class Switch:
    """What it costs to bring a model up, and to take it down again."""

    up_s: float
    down_s: float


@dataclass(frozen=True, slots=True)
class Costs:
    """How a model comes and goes: by a start and a stop, or by sleeping at one of some levels."""

    start: Switch
    sleep: Mapping[int, Switch] = field(default_factory=lambda: MappingProxyType({}))
    """By level. A sleeper wakes only on the devices on which it fell asleep."""


@dataclass(frozen=True, slots=True)
class Model:
    """One model. `memory_mib` is what each of its `tensor_parallel` devices has to hold."""

    name: str
    weights_gib: float
    memory_mib: int
    costs: Costs
    tensor_parallel: int = 1
    priority: int = 0
    pinned: bool = False
    replicas: Replicas = field(default_factory=Replicas)
    """For `modelyard`; the others run one of each model."""

    @property
    def weights_mib(self) -> int:
        """What the host holds while the model sleeps at level 1."""
        return mib(self.weights_gib)


@dataclass(slots=True, eq=False)
class Job:
    """One request: when it came, how long it is served, and, after a run, when that began."""

    model: str
    arrived_s: float
    service_s: float
    priority: int | None = None
    """None: that of its model."""
    key: str = ""
    started_s: float = math.nan

    @property
    def wait_s(self) -> float:
        return self.started_s - self.arrived_s


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything about a run except its requests."""

    models: Mapping[str, Model]
    devices_mib: Sequence[int]
    concurrency: int = CONCURRENCY
    host_mib: int = HOST_MIB
    residue_mib: int = 0
    """What a sleeper keeps on each of its devices."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The part of a trace that is played, and how fast.

    Times of the trace are counted from its first moment; `stretch` of 2 makes everything half as
    dense. `rate_rps` scales a trace of rates so that it asks for so much on the average.
    """

    start_s: float = 0.0
    length_s: float = math.inf
    stretch: float = 1.0
    rate_rps: float | None = None


def mib(gib: float) -> int:
    """GiB as whole MiB, without the fraction."""
    return math.floor(gib * MIB_PER_GIB + 1e-6)


def default_memory_gib(weights_gib: float, tensor_parallel: int, device_gib: float) -> float:
    """What all devices of a model hold together if nobody says: weights, cache and activations."""
    wanted = weights_gib * 1.15 + 6 * tensor_parallel
    return min(device_gib * tensor_parallel, wanted)


def service_s(input_tokens: int, output_tokens: int) -> float:
    """How long a request is served: 6000 tokens a second are read and 56 are written."""
    return 0.15 + input_tokens / 6000 + output_tokens * 0.018
