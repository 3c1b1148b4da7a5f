"""One way to run a model on a machine, and what it takes there.

Laws of this file:
- A `Layout` has every choice that moves memory and nothing else; `reckon` turns it into what each
  device has to hold, with the catalog's terms.
- vLLM takes a share of a card's total and leaves the driver's context and NCCL outside of it, so
  its need is its share and these, never less than its terms. On the host it takes whole GiB.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from modelyard.catalog.checkpoint import Checkpoint
from modelyard.catalog.choice import LLAMACPP, VLLM
from modelyard.catalog.estimate import DEFAULT_UBATCH, estimate
from modelyard.catalog.estimate_folder import Wish, estimate_folder
from modelyard.catalog.estimate_split import Split, estimate_split
from modelyard.catalog.kv import VLLM_BATCHED_TOKENS
from modelyard.catalog.terms import Estimate
from modelyard.engines.vllm_memory import host_memory_for, overhead_mib
from modelyard.planner.machine import Machine, Seat
from modelyard.planner.subject import Subject

OUTSIDE: Final = ("CUDA context", "collective buffers")
"""Terms that vLLM does not count in its share of a card."""
_STEPS: Final = 10_000
"""vLLM's share is told in this many parts, as the engine's adapter rounds it."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a model is run. Tokens are of one sequence."""

    engine: str
    gpus: int
    """How many cards, those with most room first; 0 runs on the host."""
    context: int
    sequences: int = 1
    """That fit at full length at once."""
    kv: str = ""
    """Number format of the cache by the engine's name; empty is the engine's default."""
    batch: int = 0
    """Tokens computed at once; 0 is the engine's default."""
    eager: bool = False
    gpu_layers: int | None = None
    """llama.cpp: layers that are on cards, the output counting as one; None for all."""
    host_experts: int = 0
    """llama.cpp: layers whose experts stay in host memory."""
    offload_mib: int = 0
    """vLLM and transformers: weights of each card that lie in host memory."""
    tensor_parallel: int = 1

    @property
    def pipeline_parallel(self) -> int:
        return max(1, self.gpus // self.tensor_parallel)

    @property
    def offloads(self) -> bool:
        """Part of the model is computed from host memory although there are cards."""
        away = self.gpu_layers is not None or self.host_experts or self.offload_mib
        return bool(self.gpus and away)


@dataclass(frozen=True, slots=True)
class Fixed:
    """What a person has decided, so that a plan keeps it; None leaves it to the plan."""

    kv: str | None = None
    """Number format of the cache, by the engine's name."""
    batch: int | None = None
    eager: bool | None = None
    places: bool = False
    """Which layers, experts or weights lie on the host is decided."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a layout takes on one device."""

    seat: Seat
    estimate: Estimate
    needs_mib: int

    @property
    def missing_mib(self) -> int:
        """What is not there of it."""
        return max(0, self.needs_mib - self.seat.available_mib)


@dataclass(frozen=True, slots=True)
class Reckoning:
    """What a layout takes on all its devices."""

    layout: Layout
    loads: tuple[Load, ...]
    """Cards first, the host last."""
    utilisation: float | None = None
    """vLLM's share of each card."""

    @property
    def fits(self) -> bool:
        over = self.utilisation is not None and self.utilisation > 1
        return not over and self.missing_mib == 0

    @property
    def missing_mib(self) -> int:
        return sum(load.missing_mib for load in self.loads)

    @property
    def gpu_mib(self) -> int:
        return sum(load.needs_mib for load in self.loads[:-1])

    @property
    def host_mib(self) -> int:
        return self.loads[-1].needs_mib

    def term(self, name: str) -> float:
        """MiB of one term on all devices."""
        return sum(load.estimate.term(name) for load in self.loads)


def tensor_parallel(subject: Subject, engine: str, gpus: int) -> int:
    """Over how many of `gpus` cards layers are cut; what is left goes by whole layers."""
    if engine != VLLM or gpus < 2:
        return 1
    divides = subject.heads and subject.heads % gpus == 0
    return gpus if divides else 1


def reckon(subject: Subject, layout: Layout, machine: Machine) -> Reckoning:
    """What `layout` takes on `machine`. Raises BadModelFile where the header contradicts itself."""
    seats = machine.gpus[: layout.gpus]
    shares = _shares(subject, layout, seats)
    whole = shares["host"]
    on_host = whole.total_mib
    if layout.engine == VLLM and not seats:
        on_host = max(
            on_host, host_memory_for(math.ceil(whole.term("weights")), host_kv_gib(whole))
        )
    host = Load(machine.host, whole, on_host)
    parts = [shares[f"gpu{number}"] for number in range(len(seats))]
    if layout.engine != VLLM or not seats:
        cards = (Load(seat, part, part.total_mib) for seat, part in zip(seats, parts, strict=True))
        return Reckoning(layout, (*cards, host))
    utilisation = max(
        math.ceil(_inside_mib(part) / seat.total_mib * _STEPS) / _STEPS
        for seat, part in zip(seats, parts, strict=True)
    )
    loads = [
        Load(seat, part, math.ceil(utilisation * seat.total_mib) + _outside_mib(part, len(seats)))
        for seat, part in zip(seats, parts, strict=True)
    ]
    return Reckoning(layout, (*loads, host), utilisation)


def host_kv_gib(whole: Estimate) -> int:
    """GiB of vLLM's cache on the host, of which it takes whole ones."""
    return max(1, math.ceil(whole.term("kv cache") / 1024))


def _inside_mib(part: Estimate) -> int:
    """What vLLM's share of the card has to hold. Each term by itself is whole MiB, as vLLM's own
    accounting is made of sums that were rounded."""
    return sum(math.ceil(term.mib) for term in part.terms if term.name not in OUTSIDE)


def _outside_mib(part: Estimate, cards: int) -> int:
    outside = sum(part.term(name) for name in OUTSIDE)
    return max(math.ceil(outside), overhead_mib(cards))


def _shares(subject: Subject, layout: Layout, seats: tuple[Seat, ...]) -> Mapping[str, Estimate]:
    checkpoint = subject.found.checkpoint
    if isinstance(checkpoint, Checkpoint):
        return _of_llamacpp(subject, checkpoint, layout, seats)
    wish = Wish(
        context=layout.context,
        sequences=layout.sequences,
        batched_tokens=layout.batch or None,
        kv_dtype=layout.kv or None,
        eager=layout.eager,
        gpus=layout.gpus,
        tensor_parallel=layout.tensor_parallel,
        pipeline_parallel=layout.pipeline_parallel,
        cpu_offload_mib=layout.offload_mib,
    )
    return estimate_folder(checkpoint, layout.engine, wish)


def _of_llamacpp(
    subject: Subject, checkpoint: Checkpoint, layout: Layout, seats: tuple[Seat, ...]
) -> Mapping[str, Estimate]:
    tokens = layout.context * layout.sequences
    kv = layout.kv or "f16"
    # With one sequence asked for, llama.cpp is left to choose: four share the context.
    parallel = layout.sequences if layout.sequences > 1 else 0
    if not seats:
        return {
            "host": estimate(
                checkpoint.header,
                checkpoint.file_bytes,
                context=tokens,
                parallel=parallel,
                ubatch=layout.batch,
                tasks=subject.found.verdict.tasks,
                projector_bytes=subject.found.projector_bytes,
                key_type=kv,
                value_type=kv,
            )
        }
    default = tokens if subject.reads else DEFAULT_UBATCH
    split = Split(
        tuple(float(max(1, seat.available_mib)) for seat in seats),
        **({} if layout.gpu_layers is None else {"gpu_layers": layout.gpu_layers}),
        host_experts=layout.host_experts,
    )
    return estimate_split(
        checkpoint.header,
        split,
        context=tokens,
        parallel=parallel,
        ubatch=layout.batch or default,
        key_type=kv,
        value_type=kv,
        projector_bytes=subject.found.projector_bytes,
    )


def default_batch(layout: Layout) -> int:
    """Tokens that the engine computes at once where nothing is said."""
    if layout.batch:
        return layout.batch
    return DEFAULT_UBATCH if layout.engine == LLAMACPP else VLLM_BATCHED_TOKENS
