"""Finds the layout: whole on the fewest cards if that fits, else down the ladder.

Laws of this file:
- The first that fits in the order of preference is taken; where none fits, the one that misses
  least, and it is said that it does not fit.
- A step that fits with room to spare is taken back as far as memory allows: no layer, expert or
  gibibyte is offloaded, and no token of context given up, without need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from modelyard.config.plans import Ask
from modelyard.core.defaults import READING_CONTEXT, WRITING_CONTEXT
from modelyard.planner.ladder import LAST_CONTEXT, NOTHING_FIXED, OFFLOAD_GRAIN_MIB, attempts
from modelyard.planner.layout import Fixed, Layout, Reckoning, reckon, tensor_parallel
from modelyard.planner.machine import Machine
from modelyard.planner.subject import Subject

_GRAIN: Final = 256
"""Contexts are multiples of this; llama.cpp's caches are too."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The layout that was found, and by which step of the ladder, if one was needed."""

    subject: Subject
    reckoning: Reckoning
    step: str = ""


def choose(
    subject: Subject,
    engine: str,
    machine: Machine,
    ask: Ask,
    *,
    cards: int = 1,
    fixed: Fixed = NOTHING_FIXED,
) -> Chosen:
    """The layout for a model, this engine and this machine, on at least `cards` of its cards."""
    tried: list[Chosen] = []
    for start in starts(subject, engine, machine, ask, cards=cards, fixed=fixed):
        found = Chosen(subject, reckon(subject, start, machine))
        if found.reckoning.fits:
            return _grown(found, machine, ask)
        tried.append(found)
    start = tried[-1].reckoning.layout
    keep = ask.context is not None
    for before, step in attempts(subject, start, machine, keep_context=keep, fixed=fixed):
        found = Chosen(subject, reckon(subject, step.layout, machine), step.name)
        if found.reckoning.fits:
            return _grown(_refined(found, before, machine), machine, ask)
        tried.append(found)
    return min(tried, key=lambda each: each.reckoning.missing_mib)


def starts(
    subject: Subject,
    engine: str,
    machine: Machine,
    ask: Ask,
    *,
    cards: int = 1,
    fixed: Fixed = NOTHING_FIXED,
) -> Iterator[Layout]:
    """The whole model without any sacrifice: on `cards` cards, on one more, … or on the host."""
    context = wanted_context(subject, ask)
    sequences = ask.concurrency or 1
    most = len(machine.gpus)
    counts = range(min(cards, most), most + 1) if machine.gpus else (0,)
    for gpus in counts:
        cut = tensor_parallel(subject, engine, gpus)
        yield Layout(
            engine,
            gpus,
            context,
            sequences,
            kv=fixed.kv or "",
            batch=fixed.batch or 0,
            eager=fixed.eager or False,
            tensor_parallel=cut,
        )


def wanted_context(subject: Subject, ask: Ask) -> int:
    """Tokens of one sequence to begin with."""
    if ask.context is not None:
        return min(ask.context, subject.trained)
    return min(subject.trained, READING_CONTEXT if subject.reads else WRITING_CONTEXT)


def longest_context(subject: Subject, layout: Layout, machine: Machine) -> int:
    """The largest context of one sequence with which this layout fits; 0 where none does."""

    def fits(grains: int) -> bool:
        longer = replace(layout, context=min(grains * _GRAIN, subject.trained))
        return reckon(subject, longer, machine).fits

    most = -(-subject.trained // _GRAIN)
    least = min(most, LAST_CONTEXT // _GRAIN)
    if not fits(least):
        return 0
    return min(greatest(least, most, fits) * _GRAIN, subject.trained)


def greatest(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The greatest number from `low`, which fits, to `high`."""
    if fits(high):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def _grown(found: Chosen, machine: Machine, ask: Ask) -> Chosen:
    """With the longest context, where none was asked for and the cards hold everything."""
    layout = found.reckoning.layout
    if ask.context is not None or found.subject.reads or not layout.gpus:
        return found
    longest = longest_context(found.subject, layout, machine)
    if layout.offloads:
        longest = min(longest, wanted_context(found.subject, ask))
    if longest <= layout.context:
        return found
    longer = reckon(found.subject, replace(layout, context=longest), machine)
    return replace(found, reckoning=longer)


def _refined(found: Chosen, before: Layout, machine: Machine) -> Chosen:
    """The least offload between a step that fits and the one before it that did not."""
    subject, layout = found.subject, found.reckoning.layout

    def fits(changed: Layout) -> bool:
        return reckon(subject, changed, machine).fits

    if layout.gpu_layers is not None:
        high = subject.layers + 1 if before.gpu_layers is None else before.gpu_layers
        at = layout
        count = greatest(
            layout.gpu_layers,
            max(layout.gpu_layers, high),
            lambda n: fits(replace(at, gpu_layers=n)),
        )
        layout = replace(layout, gpu_layers=count)
    elif layout.host_experts > before.host_experts:
        at, top = layout, layout.host_experts
        saved = greatest(
            0, top - before.host_experts, lambda n: fits(replace(at, host_experts=top - n))
        )
        layout = replace(layout, host_experts=top - saved)
    elif layout.offload_mib > before.offload_mib:
        at, top, grain = layout, layout.offload_mib, OFFLOAD_GRAIN_MIB
        saved = greatest(
            0,
            (top - before.offload_mib) // grain,
            lambda n: fits(replace(at, offload_mib=top - n * grain)),
        )
        layout = replace(layout, offload_mib=top - saved * grain)
    return replace(found, reckoning=reckon(subject, layout, machine))
