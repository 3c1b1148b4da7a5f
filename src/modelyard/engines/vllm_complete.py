"""Fills in what a vLLM model's definition leaves open and only the machine can tell.

Laws of this file:
- What a person wrote stays. What is filled in is what the engine will be told, so that claims and
  reality agree: the memory of each profile, the levels of sleep, the host's KV cache and cores.
- A model whose memory nobody declared takes what its `gpu_memory_utilization` means; without one,
  what the checkpoint was estimated to need; without that, all that models may have of the card, as
  vLLM itself would.
- Models that run on the host get cores of their own, up to `MOST_SLICES` parts: left alone, each
  vLLM binds its threads to the same cores (utils/ompmultiprocessing.py, `auto`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from modelyard.core.devices import matching
from modelyard.core.specs import (
    HOST_DEVICE,
    Device,
    ModelSpec,
    OptionValue,
    Profile,
    SleepLevel,
)
from modelyard.engines import vllm_memory, vllm_options
from modelyard.engines.vllm_builds import Build

MOST_SLICES: Final = 4
"""Parts into which the host's cores are cut at most; more would leave each too few."""
KV_SPACE: Final = "VLLM_CPU_KVCACHE_SPACE"
THREADS: Final = "VLLM_CPU_OMP_THREADS_BIND"
_SHARE: Final = "gpu-memory-utilization"
_KV_BYTES: Final = "kv-cache-memory-bytes"
"""Where it is given, the variable would win over it (`envs.py`), so that is left out."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What has to be known of the machine."""

    devices: Sequence[Device]
    cores: Sequence[int]
    """One logical CPU of each core that we may use."""
    weights_mib: Callable[[str], int]
    """Size of the weights in a checkpoint's folder; 0 if it cannot be read."""


def completed(
    specs: Sequence[ModelSpec],
    build_of: Callable[[ModelSpec, Profile | None], Build],
    machine: Machine,
) -> list[ModelSpec]:
    """`specs` with the vLLM models among them completed."""
    on_host = [s.id for s in specs if s.engine == "vllm" and _host_profiles(s)]
    slices = min(len(on_host), len(machine.cores), MOST_SLICES)
    done = []
    for spec in specs:
        if spec.engine == "vllm":
            slice_no = (
                on_host.index(spec.id) % slices if spec.id in on_host and slices > 1 else None
            )
            spec = _completed(spec, build_of, machine)
            if slice_no is not None:
                spec = _bound(spec, machine.cores[slice_no::slices])
        done.append(spec)
    return done


def _completed(
    spec: ModelSpec, build_of: Callable[[ModelSpec, Profile | None], Build], machine: Machine
) -> ModelSpec:
    env = dict(spec.env)
    written = [spec.options, *(profile.options for profile in spec.profiles)]
    says_bytes = any(_KV_BYTES in _dashed(options) for options in written)
    if _host_profiles(spec) and spec.source and KV_SPACE not in env and not says_bytes:
        env[KV_SPACE] = str(_kv_gib(spec, machine))
    profiles = tuple(_with_memory(spec, profile, env, machine) for profile in spec.profiles)
    # On the host there is nothing to give back: the calls are answered, and change nothing.
    profiles = tuple(replace(profile, can_sleep=bool(_cards(profile))) for profile in profiles)
    return replace(spec, env=env, profiles=profiles, sleep=_sleep(spec, build_of))


def _sleep(
    spec: ModelSpec, build_of: Callable[[ModelSpec, Profile | None], Build]
) -> Mapping[int, SleepLevel]:
    """Levels that every profile on cards can sleep at, unless the options say not to."""
    if spec.sleep:
        return spec.sleep
    levels: Mapping[int, SleepLevel] | None = None
    for profile in spec.profiles:
        build = build_of(spec, profile)
        options = vllm_options.laid_over(spec.options, profile.options)
        wanted = vllm_options.settings(options, build).get("enable-sleep-mode")
        if _cards(profile):
            can = build.sleep_levels if wanted is not False else {}
            levels = can if levels is None else {n: c for n, c in levels.items() if n in can}
    return levels or {}


def _with_memory(
    spec: ModelSpec, profile: Profile, env: Mapping[str, str], machine: Machine
) -> Profile:
    cards = _cards(profile)
    options = vllm_options.laid_over(spec.options, profile.options)
    memory = dict(profile.memory_mib)
    for name in profile.devices:
        if name in memory:
            continue
        if name != HOST_DEVICE:
            meant = [
                _card_memory(spec, options, device, len(cards))
                for device in matching(name, machine.devices)
            ]
        else:
            meant = [_host_memory(spec, env, machine)] if not cards and spec.source else []
        if meant:
            memory[name] = max(meant)
    return replace(profile, memory_mib=memory)


def _host_memory(spec: ModelSpec, env: Mapping[str, str], machine: Machine) -> int:
    space = env.get(KV_SPACE, "")
    kv_gib = int(space) if space.isdecimal() else vllm_memory.HOST_KV_GIB
    weights = machine.weights_mib(str(spec.source))
    return max(spec.estimate_mib or 0, vllm_memory.host_memory_for(weights, kv_gib))


def _card_memory(
    spec: ModelSpec, options: Mapping[str, OptionValue], device: Device, cards: int
) -> int:
    """What a replica takes of a card of which nobody said how much."""
    by_name = _dashed(options)
    share = by_name.get(_SHARE, by_name.get("device-memory-utilization"))
    if isinstance(share, int | float):
        return min(vllm_memory.memory_for(share, device.total_mib, cards), device.most_mib)
    if spec.estimate_mib:
        return -(-spec.estimate_mib // cards)
    return device.most_mib


def _kv_gib(spec: ModelSpec, machine: Machine) -> int:
    declared = [
        memory
        for profile in _host_profiles(spec)
        if (memory := profile.memory_mib.get(HOST_DEVICE, spec.estimate_mib))
    ]
    weights = machine.weights_mib(str(spec.source))
    return vllm_memory.host_kv_gib(min(declared, default=None), weights)


def _bound(spec: ModelSpec, cores: Sequence[int]) -> ModelSpec:
    """`spec` with its threads on these cores, if one process is to have them all."""
    sizes = vllm_options.parallel_sizes(_dashed(spec.options))
    if THREADS in spec.env or any(size > 1 for size in sizes.values()):
        return spec
    return replace(spec, env={**spec.env, THREADS: ",".join(map(str, cores))})


def _dashed(options: Mapping[str, OptionValue]) -> dict[str, OptionValue]:
    return {vllm_options.dashed(name): value for name, value in options.items()}


def _cards(profile: Profile) -> list[str]:
    return [device for device in profile.devices if device != HOST_DEVICE]


def _host_profiles(spec: ModelSpec) -> list[Profile]:
    return [profile for profile in spec.profiles if not _cards(profile)]
