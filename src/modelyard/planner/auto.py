"""The ways to start a model with `auto: true`: the plan first, then what the ladder gives.

Laws of this file:
- Pure: what the catalog found and what the machine has go in; each `Recipe` is a profile, complete
  with devices, memory and options.
- What a person wrote stays: options, the cards of a profile, its declared memory. It is planned
  with, as far as a plan knows of it: context, sequences, cache format, batch, eager. Who says where
  layers or weights lie gets no step that moves them.
- A start that found too little on the device is followed by one that takes less of it. One whose
  share of the card was too little for its settings keeps the share: less of it would be as little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from modelyard.catalog.choice import LLAMACPP, VLLM
from modelyard.catalog.found import FoundModel
from modelyard.config.plans import Ask
from modelyard.core.specs import AUTO_PROFILE, HOST_DEVICE, ModelSpec, OptionValue, Profile
from modelyard.engines import llamacpp_options, vllm_options
from modelyard.engines.lack import Lack
from modelyard.planner.advice import sacrifice
from modelyard.planner.layout import Fixed, Reckoning, reckon
from modelyard.planner.machine import Machine, Seat
from modelyard.planner.plan import fallbacks, make_plan
from modelyard.planner.subject import Subject
from modelyard.planner.wording import options_of

Options = dict[str, OptionValue]

PLANNED: Final = "as planned"
_SHARE: Final = "gpu_memory_utilization"
_CONTEXT: Final = {LLAMACPP: "n_ctx", VLLM: "max-model-len"}
_SEQUENCES: Final = {LLAMACPP: "n_parallel"}
"""vLLM's `max_num_seqs` is a bound, not a wish for room: it says nothing of how many are to fit."""


_LLAMA_PLACES: Final = frozenset({"n_gpu_layers", "tensor_buft_overrides", "n_cpu_moe"})
_VLLM_PLACES: Final = frozenset({"cpu-offload-gb", "offload-backend"})
_TRANSFORMERS_PLACES: Final = frozenset({"max-memory", "device-map"})


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way to start a profile."""

    name: str
    """`as planned`, or the step that was taken last: `context 8192`."""
    reason: str
    profile: Profile
    context: int
    """Tokens of one sequence."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Which recipe a profile is started by."""

    step: int = 0
    memory: int = 0
    """The recipe whose memory, and share of the card, are taken."""


def recipes(
    found: FoundModel, spec: ModelSpec, profile: Profile, machine: Machine
) -> tuple[Recipe, ...]:
    """The plan for a profile, and below it what to start with after each lack of memory.

    `machine` is what the profile may use (see `machine_for`). Raises InvalidRequest or BadModelFile
    where nothing can be planned.
    """
    fixed = _fixed(spec, profile)
    cards = len(_cards(profile))
    plan = make_plan(
        found,
        machine,
        _ask(spec, fixed),
        engines=(spec.engine,),
        cards=max(1, cards),
        fixed=_decided(spec.engine, fixed),
    )
    subject = plan.chosen.subject
    given_up = sacrifice(subject, plan.chosen.reckoning.layout) if plan.chosen.step else ""
    first = f"{PLANNED}, with {given_up}" if given_up else PLANNED
    ways = [(first, "the planner's choice", plan.chosen.reckoning)]
    ways += [
        (step.name, step.reason, reckon(subject, step.layout, machine)) for step in fallbacks(plan)
    ]
    made: list[Recipe] = []
    for name, reason, reckoning in ways:
        cooked = _cooked(subject, reckoning, profile, fixed, spec.engine)
        if made and _settings(cooked) == _settings(made[-1].profile):
            continue  # what it would change is what a person has fixed
        made.append(Recipe(name, reason, cooked, reckoning.layout.context))
    return tuple(made)


def lower(ways: Sequence[Recipe], at: Standing, lack: Lack, longest: int | None) -> Standing | None:
    """Where to go on after a start that lacked memory; None at the end.

    `longest` is the longest sequence that the engine says would do, so longer ones are not tried.
    """
    for step in range(at.step + 1, len(ways)):
        if longest is None or ways[step].context <= longest or step == len(ways) - 1:
            return Standing(step, at.memory if lack is Lack.BUDGET else step)
    return None


def served(ways: Sequence[Recipe], at: Standing) -> Profile:
    """The profile to start with."""
    profile, kept = ways[at.step].profile, ways[at.memory].profile
    cards = _cards(profile)
    if at.step == at.memory or cards != _cards(kept):
        return profile
    options = dict(profile.options)
    if _SHARE in options and _SHARE in kept.options:
        options[_SHARE] = kept.options[_SHARE]
    names = cards or profile.devices  # what a step moves to the host is claimed there as well
    memory = {**profile.memory_mib, **{name: kept.memory_mib[name] for name in names}}
    return replace(profile, options=MappingProxyType(options), memory_mib=MappingProxyType(memory))


def machine_for(
    profile: Profile, machine: Machine, cards: Mapping[str, Sequence[str]]
) -> Machine | None:
    """What of `machine` a profile may use; None if one of its devices is not there.

    `cards` has the ids of the devices that each of its names means. Declared memory bounds what may
    be used of a device.
    """
    if is_open(profile):
        return machine
    seats: list[Seat] = []
    host = _bounded(machine.host, profile.memory_mib.get(HOST_DEVICE))
    for name in profile.devices:
        if name == HOST_DEVICE:
            continue
        free = [
            seat for seat in machine.gpus if seat.id in cards.get(name, ()) and seat not in seats
        ]
        if not free:
            return None
        seats.append(free[0])
    bounded = [
        _bounded(seat, profile.memory_mib.get(name))
        for name, seat in zip((n for n in profile.devices if n != HOST_DEVICE), seats, strict=True)
    ]
    return Machine(tuple(bounded), host, machine.is_named)


def is_open(profile: Profile) -> bool:
    """Whether nobody has said where the model is to run."""
    return profile.name == AUTO_PROFILE and profile == Profile(AUTO_PROFILE)


def _cards(profile: Profile) -> tuple[str, ...]:
    return tuple(name for name in profile.devices if name != HOST_DEVICE)


def _bounded(seat: Seat, declared: int | None) -> Seat:
    if declared is None:
        return seat
    return replace(seat, available_mib=min(seat.available_mib, declared))


def _fixed(spec: ModelSpec, profile: Profile) -> Mapping[str, OptionValue]:
    """What a person has chosen, by the engine's one name for each option."""
    return {
        name: value
        for options in (spec.options, profile.options)
        for given, value in options.items()
        for name, value in _meant(spec.engine, given, value).items()
    }


def _meant(engine: str, name: str, value: OptionValue) -> Mapping[str, OptionValue]:
    if engine != LLAMACPP:
        return {vllm_options.dashed(name): value}
    try:
        return llamacpp_options.settings({name: value})
    except llamacpp_options.BadOption:
        return {name: value}  # its check has told of it, or will


def _ask(spec: ModelSpec, fixed: Mapping[str, OptionValue]) -> Ask:
    context = _count(fixed.get(_CONTEXT.get(spec.engine, "max-seq-length")))
    sequences = _count(fixed.get(_SEQUENCES.get(spec.engine, "")))
    if context and sequences and spec.engine == LLAMACPP:
        context = max(1, context // sequences)  # llama.cpp shares one context among them
    return Ask(context=context, concurrency=sequences, engine=spec.engine)


def _decided(engine: str, fixed: Mapping[str, OptionValue]) -> Fixed:
    """What a plan has to keep of the options that a person wrote."""
    if engine == LLAMACPP:
        key, value = fixed.get("cache_type_k"), fixed.get("cache_type_v")
        kv = str(key or value) if key or value else None
        return Fixed(
            kv=None if kv is None else kv.removeprefix("f16"),
            batch=_count(fixed.get("n_ubatch")) or _count(fixed.get("n_batch")),
            places=not _LLAMA_PLACES.isdisjoint(fixed),
        )
    if engine != VLLM:
        return Fixed(places=not _TRANSFORMERS_PLACES.isdisjoint(fixed))
    eager = fixed.get("enforce-eager")
    dtype = fixed.get("kv-cache-dtype")
    return Fixed(
        kv=dtype.removeprefix("auto") if isinstance(dtype, str) else None,
        batch=_count(fixed.get("max-num-batched-tokens")),
        eager=eager if isinstance(eager, bool) else None,
        places=not _VLLM_PLACES.isdisjoint(fixed),
    )


def _settings(profile: Profile) -> Mapping[str, OptionValue]:
    """The options that change what the engine does, the share of the card left out."""
    return {name: value for name, value in profile.options.items() if name != _SHARE}


def _count(value: OptionValue) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return value if is_count and isinstance(value, int) else None


def _cooked(
    subject: Subject,
    reckoning: Reckoning,
    profile: Profile,
    fixed: Mapping[str, OptionValue],
    engine: str,
) -> Profile:
    """The profile with what a layout takes, and what a person wrote laid over it."""
    devices, memory = _places(reckoning, profile)
    # A share of the card that follows from declared memory is not told a second time.
    declared = any(name in profile.memory_mib for name in devices if name != HOST_DEVICE)
    options = {
        name: value
        for name, value in options_of(subject, reckoning).items()
        if not _meant(engine, name, value).keys() & fixed.keys()
        and not (declared and name == _SHARE)
    }
    return Profile(
        profile.name,
        devices,
        MappingProxyType(memory),
        MappingProxyType({**options, **profile.options}),
        profile.command,
    )


def _places(reckoning: Reckoning, profile: Profile) -> tuple[tuple[str, ...], dict[str, int]]:
    """The devices of a layout by the names that a profile gives them, and their memory."""
    loads = reckoning.loads[:-1]
    written = _cards(profile)
    names = written if len(written) == len(loads) else tuple(load.seat.name for load in loads)
    memory: dict[str, int] = {}
    for name, load in zip(names, loads, strict=True):
        memory[name] = max(memory.get(name, 0), load.needs_mib)
    if not loads or reckoning.layout.offloads:
        names = (*names, HOST_DEVICE)
        memory[HOST_DEVICE] = reckoning.host_mib
    return names, {name: profile.memory_mib.get(name, mib) for name, mib in memory.items()}
