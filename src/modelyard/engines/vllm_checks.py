"""What can be wrong with a model that vLLM is to run, found before anything is started.

Laws of this file:
- A problem begins with its key path inside the model and ends with what to do.
- Where no vLLM is installed, names are checked against what is recorded of the newest version: a
  configuration can be written and checked on another machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from modelyard.core.defaults import READING
from modelyard.core.specs import HOST_DEVICE, ModelSpec, OptionValue, Profile, Task
from modelyard.engines import sleeping, vllm_options
from modelyard.engines.vllm_builds import Build
from modelyard.engines.vllm_memory import overhead_mib
from modelyard.engines.vllm_options import PARALLEL

SERVED = READING | {Task.CHAT, Task.COMPLETION, Task.TRANSCRIPTION}
"""Tasks for which vLLM has routes. One process serves those of reading models, or the others."""

_OFFLOADS = ("cpu-offload-gb", "kv-offloading-size")
"""Options by which a replica on cards takes memory of the host too."""

BuildOf = Callable[[ModelSpec, Profile | None], Build]


def spec_problems(spec: ModelSpec, build_of: BuildOf) -> Iterator[str]:
    """Everything that is wrong with `spec` for the builds that would run it."""
    if spec.source is None:
        yield "source: vLLM needs the folder of a checkpoint"
    if foreign := sorted(spec.tasks - SERVED):
        yield f"tasks: vLLM has no routes for {', '.join(foreign)}"
    elif spec.tasks & READING and spec.tasks - READING:
        listed = ", ".join(sorted(spec.tasks))
        yield f"tasks: one vLLM process cannot serve {listed}; declare two models"
    for index, alias in enumerate(spec.aliases):
        if alias.startswith("-"):
            yield f"aliases[{index}]: vLLM would take {alias!r} for an option; choose another name"
    yield from _option_problems("options", spec.options, build_of(spec, None))
    for index, profile in enumerate(spec.profiles):
        build = build_of(spec, profile)
        yield from _option_problems(f"profiles[{index}].options", profile.options, build)
        yield from _profile_problems(spec, index, profile, build)


def _option_problems(path: str, options: Mapping[str, OptionValue], build: Build) -> Iterator[str]:
    for name, why in vllm_options.problems(options, build):
        yield f"{path}.{name}: {why}"


def _profile_problems(spec: ModelSpec, index: int, profile: Profile, build: Build) -> Iterator[str]:
    path = f"profiles[{index}]"
    cards = [device for device in profile.devices if device != HOST_DEVICE]
    options = vllm_options.laid_over(spec.options, profile.options)
    meant = vllm_options.settings(options, build)
    offloads = any(meant.get(name) for name in _OFFLOADS)
    if cards and len(cards) < len(profile.devices) and not offloads:
        yield f"{path}.devices: vLLM runs on cards or on the host; name one kind of them"
    if cards and build.is_cpu:
        yield f"{path}.devices: {build} is built for the host; give the profile another `command`"
    if not cards and build.platform not in ("", "cpu"):
        yield (
            f"{path}.devices: {build} is built for {build.platform} and cannot run on the host; "
            "name a card, or install vLLM's build for CPUs and name it in `command`"
        )
    yield from _parallel_problems(path, len(cards), meant)
    for device, mib in profile.memory_mib.items():
        least = overhead_mib(len(cards))
        if device != HOST_DEVICE and mib <= least:
            yield f"{path}.memory.{device}: {mib} MiB is no more than a process on a card takes"
    can_sleep = build.sleep_levels if cards else {}
    if meant.get("enable-sleep-mode") is True and not can_sleep:
        platform = build.platform if cards else "cpu"
        yield f"options.enable_sleep_mode: {sleeping.why_vllm_cannot_sleep(platform)}"


def _parallel_problems(path: str, cards: int, meant: Mapping[str, OptionValue]) -> Iterator[str]:
    """The user's sizes must come out at the cards of the profile; the host has none to share."""
    sizes = vllm_options.parallel_sizes(meant)
    if not cards or not sizes or "nnodes" in meant:
        return
    said = math.prod(sizes.values())
    if cards % said or (set(PARALLEL[:2]) <= sizes.keys() and said != cards):
        product = " x ".join(f"{name.replace('-', '_')} {size}" for name, size in sizes.items())
        yield f"{path}.devices: {cards} cards cannot be shared out over {product}"
