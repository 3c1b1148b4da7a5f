"""vLLM: a folder of safetensors served by the user's own vLLM, on GPUs or on the host.

Laws of this file:
- vLLM takes the memory that it is told to take, so it is told: on a GPU the share of the card that
  the profile's memory means, on the host the size of its KV cache.
- What vLLM counts as its share leaves out the driver's context and NCCL (`core.defaults`), so a
  profile's memory is that much more than the share.
- It listens on loopback, speaks to its own processes over loopback, and reports to nobody.
- The development routes, by which it sleeps, exist only where sleep does. They let anybody who
  reaches them stop the engine; the gateway forwards inference routes alone.
- Everything else that a person may want is an option of vLLM, by its own name (`vllm_options`).

Facts: v1/worker/gpu_worker.py (accounting, from 0.8.5 on), v1/worker/cpu_worker.py and
utils/ompmultiprocessing.py (host), envs.py, all of vLLM 0.32.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from modelyard.core.defaults import READING
from modelyard.core.errors import LaunchError
from modelyard.core.specs import (
    HOST_DEVICE,
    Call,
    Command,
    Endpoint,
    ModelSpec,
    OptionValue,
    Placement,
    Profile,
    Progress,
    Task,
)
from modelyard.dialects.tokens import COUNT_PATH
from modelyard.engines import probing, reports, vllm_options, vllm_output
from modelyard.engines.base import Failure
from modelyard.engines.quirks import Quirks
from modelyard.engines.visibility import visible_devices
from modelyard.engines.vllm_builds import Build
from modelyard.engines.vllm_checks import spec_problems
from modelyard.engines.vllm_memory import share_of_card
from modelyard.engines.vllm_options import PARALLEL
from modelyard.engines.vllm_renamed import Settings

_WARM_UP_TOKENS: Final = 8
_WARM_UP_WORDS: Final = "Count to ten."
"""Short: a model may have been given a context of a few dozen tokens."""
_SPREAD: Final = frozenset({"ray", "external_launcher"})
"""Executors whose processes may be on other machines."""
_QUIRKS: Final = Quirks(paths=MappingProxyType({COUNT_PATH: "/tokenize"}))


class Vllm:
    """Starts the vLLM that `build_of` gives for the words of a model's or profile's `command`.

    `total_mib` tells how much memory a device has in all, None if it is not there.
    """

    name = "vllm"

    def __init__(
        self,
        build_of: Callable[[tuple[str, ...]], Build],
        total_mib: Callable[[str], int | None],
    ) -> None:
        self._build_of = build_of
        self._total_mib = total_mib

    def build(self, spec: ModelSpec, profile: Profile | None = None) -> Build:
        """The vLLM that runs this model with this profile."""
        return self._build_of((profile.command if profile else ()) or spec.command)

    def problems(self, spec: ModelSpec) -> Sequence[str]:
        return tuple(spec_problems(spec, self.build))

    def command(self, spec: ModelSpec, placement: Placement, endpoint: Endpoint) -> Command:
        profile = next((p for p in spec.profiles if p.name == placement.profile), None)
        build = self.build(spec, profile)
        if not build.launch:
            raise LaunchError(
                build.trouble, hint="set engines.vllm to where it is; see docs/vllm.md"
            )
        options = vllm_options.laid_over(spec.options, profile.options if profile else {})
        chosen = vllm_options.settings(options, build)
        meant = self._ours(spec, placement, profile, build, chosen) | chosen
        source = str(spec.source)
        argv = (
            *build.launch,
            f"--model={source}" if build.is_module else source,
            f"--host={endpoint.host}",
            f"--port={endpoint.port}",
            *vllm_options.arguments({"served-model-name": [spec.id, *spec.aliases]}, build),
            *vllm_options.arguments(meant, build),
        )
        env = {**visible_devices(placement), **_variables(spec, placement, meant), **spec.env}
        return Command(argv, env=env, cwd=spec.cwd)

    def fixed_port(self, spec: ModelSpec) -> int | None:  # noqa: ARG002 - any port will do
        return None

    def health_path(self, spec: ModelSpec) -> str:
        """vLLM listens when it has loaded; 503 is an engine process that died (`serve/health`)."""
        return spec.health_path or "/health"

    def functional_probe(self, spec: ModelSpec) -> Call | None:
        return probing.smallest_request(spec)

    def quirks(self, spec: ModelSpec) -> Quirks | None:  # noqa: ARG002 - OpenAI's own
        return _QUIRKS

    def warm_up(self, spec: ModelSpec) -> Call | None:
        """Some tokens, one after another: the probe's single one runs no step that decodes.

        vLLM has run the longest batch itself, when it measured its memory. A pooling model has
        shown with its functional probe all that a request runs through.
        """
        fields: dict[str, OptionValue] = {"model": spec.id, "max_tokens": _WARM_UP_TOKENS}
        if Task.COMPLETION in spec.tasks:
            fields["prompt"] = _WARM_UP_WORDS
            return Call("POST", "/v1/completions", json.dumps(fields))
        if Task.CHAT in spec.tasks:
            fields["messages"] = [{"role": "user", "content": _WARM_UP_WORDS}]
            return Call("POST", "/v1/chat/completions", json.dumps(fields))
        return None

    def progress(self, line: str) -> Progress | None:
        return vllm_output.progress(line)

    def failure(self, exit_text: str, last_lines: Sequence[str]) -> Failure:
        return vllm_output.failure(exit_text, last_lines)

    def memory_report(self, lines: Sequence[str], placement: Placement) -> Mapping[str, int]:
        """What its workers say they took on their cards."""
        return reports.vllm(lines, placement)

    # ----------------------------------------------------------------------------------- settings

    def _ours(
        self,
        spec: ModelSpec,
        placement: Placement,
        profile: Profile | None,
        build: Build,
        chosen: Settings,
    ) -> Settings:
        """What Modelyard says where the user's options say nothing, as far as the build has it."""
        gpus = cards(placement)
        ours: Settings = {
            # It has no key: without this, any web page that a browser shows could read answers.
            "allowed-origins": [],
            "disable-access-log-for-endpoints": "/health,/metrics,/v1/models",
            **_runner(spec, build, chosen),
            **_parallel(len(gpus), chosen),
        }
        if gpus:
            share = share_of_card(placement, profile, self._total_mib)
            if share is not None:
                ours["gpu-memory-utilization"] = share
            if spec.sleep:
                ours["enable-sleep-mode"] = True
        return {name: value for name, value in ours.items() if name in build.options}


def cards(placement: Placement) -> list[str]:
    """The GPUs of a placement."""
    return [device for device in placement.claims_mib if device != HOST_DEVICE]


def _runner(spec: ModelSpec, build: Build, chosen: Settings) -> Settings:
    """Many checkpoints for reading could also write; the tasks say what is meant."""
    if not spec.tasks or not spec.tasks <= READING or {"runner", "task", "convert"} & chosen.keys():
        return {}
    if "runner" in build.options:
        return {"runner": "pooling"}
    older = {Task.EMBEDDING: "embed", Task.CLASSIFICATION: "classify"}
    return {"task": next((word for task, word in older.items() if task in spec.tasks), "score")}


def _parallel(count: int, chosen: Settings) -> Settings:
    """Use all cards of the profile: over tensors, unless the user says how many over those."""
    sizes = vllm_options.parallel_sizes(chosen)
    left = count // math.prod(sizes.values())
    missing = next((name for name in PARALLEL[:2] if name not in sizes), None)
    return {missing: left} if missing and left > 1 else {}


def _variables(spec: ModelSpec, placement: Placement, meant: Settings) -> dict[str, str]:
    """What only variables can say."""
    # `-m` would look for modules in the working folder first, and a folder may hold a json.py.
    variables = {"VLLM_NO_USAGE_STATS": "1", "PYTHONSAFEPATH": "1"}
    if "nnodes" not in meant and meant.get("distributed-executor-backend") not in _SPREAD:
        variables["VLLM_HOST_IP"] = "127.0.0.1"  # where its own processes listen for each other
    if meant.get("enable-sleep-mode") is True and spec.sleep:
        variables["VLLM_SERVER_DEV_MODE"] = "1"
    if not cards(placement) and "kv-cache-memory-bytes" not in meant:
        variables["VLLM_CPU_KVCACHE_SPACE"] = "1"  # left alone, it takes nearly all there is
    return variables
