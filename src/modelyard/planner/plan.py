"""One plan from beginning to end: choose the engine and the layout, and say why.

Laws of this file:
- Pure: what the catalog found and what the machine has go in, a `Plan` comes out.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from modelyard.catalog.choice import LLAMACPP, TRANSFORMERS, VLLM, Form, choose_engine
from modelyard.catalog.folder_checkpoint import FolderCheckpoint
from modelyard.catalog.found import FoundModel
from modelyard.catalog.quantization import WITHOUT_VLLM
from modelyard.config.plans import Ask, PlanView, ShareView, StepView, TermView
from modelyard.core.errors import InvalidRequest, ModelNotFound
from modelyard.core.specs import HOST_DEVICE
from modelyard.planner.advice import gib, notes_of, sacrifice, settings_of
from modelyard.planner.alternatives import alternatives_of
from modelyard.planner.choose import Chosen, choose, longest_context
from modelyard.planner.ladder import NOTHING_FIXED, Step, ladder
from modelyard.planner.layout import Fixed, Load, reckon
from modelyard.planner.machine import Machine
from modelyard.planner.speed import speed_of
from modelyard.planner.subject import Subject, subject_of, variants_of
from modelyard.planner.wording import commands_of, config_of, options_of

ENGINES = (LLAMACPP, VLLM, TRANSFORMERS)
MOST_CONTEXT = 2**27
MOST_SEQUENCES = 4096
_MOST_FALLBACKS = 24


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model runs on a machine, or how much is missing."""

    chosen: Chosen
    machine: Machine
    ask: Ask
    engine_reason: str
    engines: tuple[str, ...]
    """Other engines that could run it, the plan's own included."""
    variants: tuple[FoundModel, ...]
    fixed: Fixed = NOTHING_FIXED

    @property
    def fits(self) -> bool:
        return self.chosen.reckoning.fits


def find(name: str, all_found: Sequence[FoundModel]) -> FoundModel:
    """The model of this id or alias. Raises ModelNotFound with near names."""
    for found in all_found:
        if found.id == name:
            return found
    for found in all_found:
        if name in found.aliases or name == found.base:
            return found
    names = [each for found in all_found for each in (found.id, *found.aliases)]
    folded = {each.casefold(): each for each in names}
    near = get_close_matches(name[:200].casefold(), folded, 3, 0.5)
    raise ModelNotFound(name[:200], [folded[each] for each in near])


def make_plan(
    found: FoundModel,
    machine: Machine,
    ask: Ask,
    *,
    beside: Sequence[FoundModel] = (),
    engines: Collection[str] = ENGINES,
    any_variant: bool = False,
    cards: int = 1,
    fixed: Fixed = NOTHING_FIXED,
) -> Plan:
    """The plan for a model that the catalog found.

    `beside` are the other models there, among which quantisations of the same one are
    alternatives; with `any_variant` the largest of them all that fits whole on cards is taken.
    `engines` are those that can be started; at least `cards` cards are used of those there are,
    and what is `fixed` is kept. Raises InvalidRequest for a wish that has no sense,
    BadModelFile where the model's header contradicts itself.
    """
    _check(ask)
    possible = _possible(found, engines)
    engine, reason = _engine(found, ask, possible, engines)
    variants = variants_of(found, beside)
    if any_variant and variants:
        found, variants = _best(found, variants, engine, machine, ask)
    chosen = choose(subject_of(found), engine, machine, ask, cards=cards, fixed=fixed)
    return Plan(chosen, machine, ask, reason, tuple(possible), tuple(variants), fixed)


def fallbacks(plan: Plan) -> list[Step]:
    """What to try, in this order, when a start by this plan runs out of memory.

    Each step is on top of those before it; `step.layout` has them all.
    """
    layout = plan.chosen.reckoning.layout
    keep = plan.ask.context is not None
    steps = ladder(plan.chosen.subject, layout, plan.machine, keep_context=keep, fixed=plan.fixed)
    return list(itertools.islice(steps, _MOST_FALLBACKS))


def view_of(plan: Plan) -> PlanView:
    """The plan with all that is told of it."""
    chosen, machine, ask = plan.chosen, plan.machine, plan.ask
    subject, reckoning = chosen.subject, chosen.reckoning
    found, layout = subject.found, reckoning.layout
    longest = longest_context(subject, layout, machine)
    options = options_of(subject, reckoning)
    return PlanView(
        model=found.id,
        source=str(found.source),
        fits=plan.fits,
        verdict=_verdict(chosen),
        engine=layout.engine,
        engine_reason=plan.engine_reason,
        architecture=found.architecture,
        quantization=found.quantization,
        weights_mib=-(-found.weight_bytes // 2**20),
        trained_context=found.context_length,
        hardware=machine.words,
        context=layout.context,
        longest_context=longest,
        sequences=layout.sequences,
        utilisation=reckoning.utilisation,
        settings=settings_of(chosen, machine, ask, longest),
        shares=[_share(load) for load in reckoning.loads],
        speed=speed_of(subject, reckoning),
        alternatives=alternatives_of(chosen, machine, ask, plan.variants, plan.engines),
        fallbacks=[_step(subject, step, machine) for step in fallbacks(plan)],
        options=dict(options),
        commands=commands_of(subject, reckoning, options),
        config=config_of(subject, reckoning, options),
        notes=list(notes_of(chosen, machine, ask)),
    )


def _check(ask: Ask) -> None:
    for name, value, most in (
        ("context", ask.context, MOST_CONTEXT),
        ("concurrency", ask.concurrency, MOST_SEQUENCES),
        ("ram", ask.ram_mib, 2**27),
    ):
        if value is not None and not 1 <= value <= most:
            raise InvalidRequest(f"{name} must be 1 to {most}, not {value}", param=name)


def _possible(found: FoundModel, engines: Collection[str]) -> list[str]:
    """Engines of those here that load the model's files."""
    if found.form is Form.GGUF:
        able = [LLAMACPP]
    else:
        checkpoint = found.checkpoint
        assert isinstance(checkpoint, FolderCheckpoint), "only GGUF files have other ones"
        method = checkpoint.quantization.method if checkpoint.quantization else None
        able = [TRANSFORMERS] if method in WITHOUT_VLLM else [VLLM, TRANSFORMERS]
    return [engine for engine in able if engine in engines]


def _engine(
    found: FoundModel, ask: Ask, possible: Sequence[str], engines: Collection[str]
) -> tuple[str, str]:
    if ask.engine is not None:
        if ask.engine not in ENGINES:
            near = get_close_matches(ask.engine, ENGINES, 3, 0.3)
            meant = f"; did you mean {' or '.join(near)}?" if near else ""
            raise InvalidRequest(
                f"no engine is planned for as {ask.engine!r}{meant}", param="engine"
            )
        if ask.engine not in possible:
            able = " or ".join(possible) or "no engine that is here"
            raise InvalidRequest(
                f"{ask.engine} does not load {found.id} ({found.quantization}, {found.form});"
                f" {able} does",
                param="engine",
            )
        return ask.engine, "as asked for"
    checkpoint = found.checkpoint
    method = None
    if isinstance(checkpoint, FolderCheckpoint) and checkpoint.quantization:
        method = checkpoint.quantization.method
    choice = choose_engine(found.form, found.verdict.ability, method, engines)
    if choice.engine is None or choice.engine not in possible:
        raise InvalidRequest(f"{found.id} cannot be planned for: {choice.reason}", param="model")
    return choice.engine, choice.reason


def _best(
    found: FoundModel, variants: Sequence[FoundModel], engine: str, machine: Machine, ask: Ask
) -> tuple[FoundModel, list[FoundModel]]:
    """Of all quantisations, the largest that fits whole on cards; else the one that was named."""
    every = sorted([found, *variants], key=lambda each: -each.weight_bytes)
    for each in every if machine.gpus else ():
        chosen = choose(subject_of(each), engine, machine, ask)
        layout = chosen.reckoning.layout
        if chosen.reckoning.fits and layout.gpus and not layout.offloads and not chosen.step:
            return each, [other for other in every if other is not each]
    return found, list(variants)


def _verdict(chosen: Chosen) -> str:
    reckoning, layout = chosen.reckoning, chosen.reckoning.layout
    given_up = sacrifice(chosen.subject, layout)
    if not reckoning.fits:
        short = ", ".join(
            f"{gib(load.missing_mib)} on {load.seat.id}"
            for load in reckoning.loads
            if load.missing_mib
        )
        tried = f" even with {given_up}" if given_up else ""
        return f"does not fit{tried}: {short or 'the card is too small'} missing"
    with_it = f" with {given_up}" if given_up else ""
    if not layout.gpus:
        return f"fits in host memory{with_it}: {gib(reckoning.host_mib)}"
    cards = "one card" if layout.gpus == 1 else f"{layout.gpus} cards"
    if layout.offloads:
        return f"fits on {cards} and the host together{with_it}"
    return f"fits on {cards}{with_it}: {gib(reckoning.gpu_mib)}"


def _share(load: Load) -> ShareView:
    seat = load.seat
    terms = [TermView(t.name, round(t.mib, 2), t.formula, t.source) for t in load.estimate.terms]
    inside = load.estimate.total_mib
    if load.needs_mib > inside:
        extra = load.needs_mib - inside
        why = "vLLM's share is told in 1/10000 of a card, and NCCL counts where there are several"
        if seat.kind == HOST_DEVICE:
            why = "vLLM's cache on the host is whole GiB, and its processes were seen to hold more"
        terms.append(TermView("rounding", extra, why, "engines/vllm_memory.py"))
    return ShareView(
        seat.id, seat.name, seat.total_mib, seat.available_mib, seat.held_mib, load.needs_mib, terms
    )


def _step(subject: Subject, step: Step, machine: Machine) -> StepView:
    reckoning = reckon(subject, step.layout, machine)
    options = dict(options_of(subject, reckoning))
    return StepView(step.name, step.reason, options, reckoning.gpu_mib, reckoning.host_mib)
