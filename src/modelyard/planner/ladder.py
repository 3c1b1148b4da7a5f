"""The ladder: settings that need less memory, from what is missed least to what is missed most.

Laws of this file:
- Pure and finite: every step needs less memory than the one before, on cards or in all, and the
  last one is the least that is worth trying.
- A plan first gives up what is missed least, and only then moves weights to the host; who has to
  move weights need give up nothing else, so these steps begin at the top again. After a start that
  ran out of memory each step is on top of those before.
- What a person asked for is kept: a context that was asked for is not shortened, and no step
  changes what is `Fixed`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from modelyard.catalog.choice import LLAMACPP, VLLM
from modelyard.planner.layout import Fixed, Layout, default_batch
from modelyard.planner.machine import Machine
from modelyard.planner.subject import Subject

LEAST_CONTEXT: Final = 4096
"""Shorter contexts are of little use to people; they come only when nothing else is left."""
LAST_CONTEXT: Final = 1024
_GRAIN: Final = 256
_PARTS: Final = 4
_LEAST_BATCH: Final = 128
_LEAST_VLLM_BATCH: Final = 512
"""vLLM refuses fewer tokens than sequences (max_num_seqs, 256 where nothing is said)."""
OFFLOAD_GRAIN_MIB: Final = 256


@dataclass(frozen=True, slots=True)
class Step:
    """One step down: what changes, to which layout, and what that costs."""

    name: str
    layout: Layout
    reason: str


Rung: TypeAlias = Callable[[Subject, Layout, Machine, bool], Iterator[Step]]
"""Steps of one kind, from a layout on; the last argument keeps the context."""


NOTHING_FIXED: Final = Fixed()


def ladder(
    subject: Subject,
    start: Layout,
    machine: Machine,
    *,
    keep_context: bool = False,
    fixed: Fixed = NOTHING_FIXED,
) -> Iterator[Step]:
    """The steps below `start`, each on top of those before it."""
    rungs = _allowed((*_SMALL, _offloads, _last_contexts), fixed)
    yield from _down(rungs, subject, start, machine, keep_context)


def attempts(
    subject: Subject,
    start: Layout,
    machine: Machine,
    *,
    keep_context: bool = False,
    fixed: Fixed = NOTHING_FIXED,
) -> Iterator[tuple[Layout, Step]]:
    """The steps in the order in which a plan tries them, each with the layout before it."""
    for rungs in (_SMALL, (_offloads,), (*_SMALL, _offloads, _last_contexts)):
        before = start
        for step in _down(_allowed(rungs, fixed), subject, start, machine, keep_context):
            yield before, step
            before = step.layout


def _allowed(rungs: tuple[Rung, ...], fixed: Fixed) -> tuple[Rung, ...]:
    """Those that change nothing a person has decided."""
    decided: dict[Rung, bool] = {
        _caches: fixed.kv is not None,
        _batches: fixed.batch is not None,
        _eager: fixed.eager is not None,
        _offloads: fixed.places,
    }
    return tuple(rung for rung in rungs if not decided.get(rung))


def _down(
    rungs: tuple[Rung, ...], subject: Subject, at: Layout, machine: Machine, keep: bool
) -> Iterator[Step]:
    for rung in rungs:
        for step in rung(subject, at, machine, keep):
            at = step.layout
            yield step


def _contexts(_: Subject, at: Layout, __: Machine, keep: bool) -> Iterator[Step]:
    yield from () if keep else _halved(at, LEAST_CONTEXT)


def _last_contexts(_: Subject, at: Layout, __: Machine, keep: bool) -> Iterator[Step]:
    yield from () if keep else _halved(at, LAST_CONTEXT)


def _halved(at: Layout, least: int) -> Iterator[Step]:
    while at.context // 2 >= least:
        at = replace(at, context=at.context // 2 // _GRAIN * _GRAIN)
        reason = f"the cache of {at.context} tokens takes half; longer inputs are refused"
        yield Step(f"context {at.context}", at, reason)


def _sequences(_: Subject, at: Layout, __: Machine, ___: bool) -> Iterator[Step]:
    while at.sequences > 1:
        at = replace(at, sequences=max(1, at.sequences // 2))
        yield Step(
            _counted(at.sequences, "sequence"), at, "fewer requests are answered at once, more wait"
        )


def _eager(_: Subject, at: Layout, __: Machine, ___: bool) -> Iterator[Step]:
    if at.engine == VLLM and at.gpus and not at.eager:
        reason = "no CUDA graphs are kept; short answers of small models become slower"
        yield Step("eager", replace(at, eager=True), reason)


def _caches(subject: Subject, at: Layout, machine: Machine, _: bool) -> Iterator[Step]:
    if at.kv or subject.reads:
        return
    if at.engine == LLAMACPP and subject.cache_in_blocks:
        reason = "keys and values of 8 bits take 53 % of 16 bits; answers differ hardly"
        yield Step("KV cache q8_0", replace(at, kv="q8_0"), reason)
    elif at.engine == VLLM and at.gpus and all(seat.fp8 for seat in machine.gpus[: at.gpus]):
        reason = "keys and values of 8 bits take half; accuracy falls a little"
        yield Step("KV cache fp8", replace(at, kv="fp8"), reason)


def _batches(subject: Subject, at: Layout, _: Machine, __: bool) -> Iterator[Step]:
    if subject.reads or not at.gpus:
        return  # what only reads computes an input in one batch
    least = _LEAST_VLLM_BATCH if at.engine == VLLM else _LEAST_BATCH
    while default_batch(at) // 2 >= least:
        at = replace(at, batch=default_batch(at) // 2)
        reason = f"{at.batch} tokens are computed at once; long inputs take longer"
        yield Step(f"batch {at.batch}", at, reason)


def _offloads(subject: Subject, at: Layout, _: Machine, __: bool) -> Iterator[Step]:
    if not at.gpus:
        return
    if at.engine == LLAMACPP:
        yield from _llamacpp_offloads(subject, at)
        return
    if subject.reads and at.engine == VLLM:
        return
    each = int(subject.weight_bytes / at.gpus / 2**20)
    for part in range(1, _PARTS + 1):
        mib = -(-each * part // _PARTS // OFFLOAD_GRAIN_MIB) * OFFLOAD_GRAIN_MIB
        if mib > at.offload_mib:
            at = replace(at, offload_mib=mib)
            reason = "offloaded weights cross the bus for every token: several times slower"
            yield Step(f"{mib / 1024:.1f} GiB of weights per card in host memory", at, reason)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _llamacpp_offloads(subject: Subject, at: Layout) -> Iterator[Step]:
    for part in range(1, _PARTS + 1) if subject.expert_layers else ():
        count = -(-subject.layers * part // _PARTS)
        if count > at.host_experts:
            at = replace(at, host_experts=count)
            reason = "experts are computed by the processor; the rest stays on the card"
            yield Step(f"experts of {_counted(count, 'layer')} in host memory", at, reason)
    whole = subject.layers + 1
    for count in (*(whole * part // _PARTS for part in range(_PARTS - 1, 0, -1)), 1):
        if count < (whole if at.gpu_layers is None else at.gpu_layers):
            at = replace(at, gpu_layers=count)
            reason = f"{whole - count} of {whole} layers are computed by the processor"
            yield Step(_counted(count, "layer") + " on cards", at, reason)
    at = replace(at, gpus=0, gpu_layers=None, host_experts=0)
    yield Step("host only", at, "the processor computes everything")


_SMALL: Final = (_contexts, _sequences, _eager, _caches, _batches)
"""Steps that leave the weights where they are."""
