"""What else could be done, reckoned like the plan itself, never told from experience."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from modelyard.catalog.choice import LLAMACPP, TRANSFORMERS, VLLM
from modelyard.catalog.found import FoundModel
from modelyard.config.plans import AlternativeView, Ask
from modelyard.planner.advice import gib, sacrifice
from modelyard.planner.choose import Chosen, choose, longest_context
from modelyard.planner.layout import Layout, reckon, tensor_parallel
from modelyard.planner.machine import Machine
from modelyard.planner.subject import Subject, subject_of

MOST_CARDS: Final = 8
"""More of a kind are not reckoned."""
_LEAST_OFFLOAD_MIB: Final = 1024


def alternatives_of(
    chosen: Chosen,
    machine: Machine,
    ask: Ask,
    variants: Sequence[FoundModel],
    engines: Sequence[str],
) -> list[AlternativeView]:
    """Other ways, each reckoned anew."""
    subject, layout = chosen.subject, chosen.reckoning.layout
    views = [
        _view(name, subject, changed, machine, cost)
        for name, changed, cost in _changes(subject, layout, machine)
    ]
    for variant in variants:
        other = choose(subject_of(variant), layout.engine, machine, ask)
        views.append(_of_variant(variant, subject, other, machine))
    if machine.gpus and (not chosen.reckoning.fits or layout.offloads):
        views += _more_cards(chosen, machine, ask)
    for engine in engines:
        if engine != layout.engine:
            other = choose(subject, engine, machine, ask)
            cost = _why_engine(engine)
            views.append(_view(f"engine {engine}", subject, other.reckoning.layout, machine, cost))
    return views


Change = tuple[str, Layout, str]
"""What it is called, the layout, and what it costs."""


def _changes(subject: Subject, at: Layout, machine: Machine) -> Iterator[Change]:
    if at.context >= 2048 and not subject.reads:
        half = replace(at, context=at.context // 512 * 256)
        yield f"context {half.context}", half, "longer inputs are refused"
    if not subject.reads:
        yield from _caches(subject, at, machine)
    if at.engine == VLLM and at.gpus and not at.eager:
        yield "eager", replace(at, eager=True), "without CUDA graphs answers are slower"
    if len(machine.gpus) > at.gpus > 0:
        more = at.gpus + 1
        cut = tensor_parallel(subject, at.engine, more)
        layout = replace(at, gpus=more, tensor_parallel=cut)
        yield f"{more} cards", layout, "the other card is taken from other models"
    if at.gpus:
        yield from _offloads(subject, at)
        kv = at.kv if at.engine == LLAMACPP else ""
        layout = Layout(at.engine, 0, at.context, at.sequences, kv)
        yield "host only", layout, "the processor computes everything"


def _caches(subject: Subject, at: Layout, machine: Machine) -> Iterator[Change]:
    if at.kv:
        yield "KV cache 16 bits", replace(at, kv=""), "nothing but its memory"
    elif at.engine == LLAMACPP and subject.cache_in_blocks:
        yield "KV cache q8_0", replace(at, kv="q8_0"), "answers differ hardly"
    elif at.engine == VLLM and at.gpus:
        fp8 = all(seat.fp8 for seat in machine.gpus[: at.gpus])
        cost = "accuracy falls a little" if fp8 else "slower: the card has no FP8"
        yield "KV cache fp8", replace(at, kv="fp8"), cost


def _offloads(subject: Subject, at: Layout) -> Iterator[Change]:
    if at.offloads:
        return
    if at.engine == LLAMACPP:
        if subject.expert_layers:
            layout = replace(at, host_experts=subject.layers)
            yield "experts on the host", layout, "each token reads its experts from host memory"
        layout = replace(at, gpu_layers=(subject.layers + 1) // 2)
        yield "half of the layers on the host", layout, "half of each token is computed there"
        return
    mib = int(subject.weight_bytes / at.gpus / 2**21)
    if mib >= _LEAST_OFFLOAD_MIB and not subject.reads:
        layout = replace(at, offload_mib=mib)
        yield "half of the weights on the host", layout, "they cross the bus for every token"


def _view(
    name: str, subject: Subject, layout: Layout, machine: Machine, cost: str
) -> AlternativeView:
    reckoning = reckon(subject, layout, machine)
    longest = longest_context(subject, layout, machine)
    return AlternativeView(
        name, reckoning.fits, reckoning.gpu_mib, reckoning.host_mib, longest, cost
    )


def _of_variant(
    variant: FoundModel, subject: Subject, other: Chosen, machine: Machine
) -> AlternativeView:
    change = (variant.weight_bytes - subject.weight_bytes) / 2**20
    sign = "larger, closer to the original" if change > 0 else "smaller, further from the original"
    where = "host" if not other.reckoning.layout.gpus else "cards"
    if other.reckoning.layout.offloads:
        where = "cards and host"
    given_up = sacrifice(other.subject, other.reckoning.layout)
    cost = f"{gib(abs(change))} {sign}; on {where}" + (f" with {given_up}" if given_up else "")
    return _view(
        f"{variant.quantization} ({variant.id})",
        other.subject,
        other.reckoning.layout,
        machine,
        cost,
    )


def _more_cards(chosen: Chosen, machine: Machine, ask: Ask) -> Iterator[AlternativeView]:
    """The fewest cards of this kind that would hold everything."""
    engine = chosen.reckoning.layout.engine
    for count in range(len(machine.gpus) + 1, MOST_CARDS + 1):
        larger = machine.with_cards(count)
        other = choose(chosen.subject, engine, larger, ask)
        if other.reckoning.fits and not other.reckoning.layout.offloads and not other.step:
            name = f"{count} x {machine.gpus[0].name}"
            cost = f"{count - len(machine.gpus)} more of these cards"
            yield _view(name, chosen.subject, other.reckoning.layout, larger, cost)
            return


def _why_engine(engine: str) -> str:
    return {
        VLLM: "for many requests at once; starts slowly, takes its share at once",
        TRANSFORMERS: "runs nearly everything, one batch at a time",
    }.get(engine, "another engine")
