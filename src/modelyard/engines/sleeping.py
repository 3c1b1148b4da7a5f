"""How engines that people start by command are put to sleep and woken: facts, not code.

Laws of this file:
- A preset has the levels after whose wake the engine answers as before. Where a wake needs what
  only the user knows (the checkpoint's path, for SGLang and LMDeploy at level 2), the user writes
  the calls.
- Whoever makes these calls has drained the engine first, makes them one at a time on each device,
  and sends `content-type: application/json` with those that have a body.

Sources, as of their releases of autumn 2026:
- vLLM 0.32, development routes (`VLLM_SERVER_DEV_MODE=1`, `--enable-sleep-mode`): level 1 copies
  the weights to pinned host memory, level 2 drops them. After level 2 the weights are garbage until
  `reload_weights` has run in every worker, which needs their memory back and not yet the KV cache's
  (docs.vllm.ai/en/latest/features/sleep_mode; vllm issue 29341). The prefix cache is cleared by a
  sleep in new versions and has to be reset in older ones; resetting an empty one does no harm.
  Which version has what was read in the published packages: the flag and the routes from 0.7.3 on,
  tags of `/wake_up` in 0.8.5, `/collective_rpc` and `reload_weights` in 0.10.2 and not in 0.9.2.
  `is_sleep_mode_available` (platforms/interface.py) is CUDA alone at first, ROCm too in 0.11.2, XPU
  too in 0.24.0. On a CPU the flag is refused, and the calls do nothing (v1/worker/cpu_worker.py).
- SGLang: `/release_memory_occupation` and `/resume_memory_occupation` need `--enable-memory-saver`,
  and an engine without requests. The weights' content survives only under
  `--enable-weights-cpu-backup` (its model runner hands that flag to torch_memory_saver's region).
- LMDeploy 0.16: `/sleep?level=1|2` and `/wakeup`, both of which ask for a JSON request
  (`lmdeploy/serve/openai/api_server.py`); level 2 drops the weights until `/update_weights`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from modelyard.core.specs import Call, ModelSpec, SleepLevel

RELOAD_S = 600.0
"""Longest time that reading the weights again may take: that of a slow disk and a large model."""

_VLLM = {
    1: SleepLevel(
        enter=(Call("POST", "/sleep?level=1"),),
        leave=(Call("POST", "/wake_up"),),
    ),
    2: SleepLevel(
        enter=(Call("POST", "/sleep?level=2"),),
        leave=(
            Call("POST", "/wake_up?tags=weights"),
            Call("POST", "/collective_rpc", '{"method": "reload_weights"}', RELOAD_S),
            Call("POST", "/wake_up?tags=kv_cache"),
            Call("POST", "/reset_prefix_cache"),
        ),
    ),
}
_SGLANG = {
    1: SleepLevel(
        enter=(Call("POST", "/release_memory_occupation", '{"tags": ["kv_cache", "weights"]}'),),
        leave=(Call("POST", "/resume_memory_occupation", '{"tags": ["weights", "kv_cache"]}'),),
    )
}
_LMDEPLOY = {
    1: SleepLevel(
        enter=(Call("POST", "/sleep?level=1", "{}"),), leave=(Call("POST", "/wakeup", "{}"),)
    )
}

PRESETS: Mapping[str, Mapping[int, SleepLevel]] = MappingProxyType(
    {
        "vllm": MappingProxyType(_VLLM),
        "sglang": MappingProxyType(_SGLANG),
        "lmdeploy": MappingProxyType(_LMDEPLOY),
    }
)
"""Sleep levels by the names that the config's `sleep` key knows (`config.values.SLEEP_PRESETS`)."""


_LEVELS_SINCE: Final[Mapping[int, tuple[int, ...]]] = {1: (0, 7, 3), 2: (0, 10, 2)}
_PLATFORMS_SINCE: Final[Mapping[str, tuple[int, ...]]] = {
    "cuda": (0, 7, 3),
    "rocm": (0, 11, 2),
    "xpu": (0, 24, 0),
}


def vllm_levels(version: tuple[int, ...], platform: str) -> Mapping[int, SleepLevel]:
    """The levels at which a vLLM of this version can sleep on this platform; perhaps none.

    `version` is empty where it is not known, and then taken for a recent one; `platform` is `cuda`,
    `rocm`, `xpu` or `cpu`, and empty where it is not known, which is taken for CUDA.
    """
    since = _PLATFORMS_SINCE.get(platform or "cuda")
    if since is None or (version and version < since):
        return MappingProxyType({})
    levels = {
        level: calls
        for level, calls in _VLLM.items()
        if not version or version >= _LEVELS_SINCE[level]
    }
    return MappingProxyType(levels)


def why_vllm_cannot_sleep(platform: str) -> str:
    """What to say where `vllm_levels` gives none."""
    since = _PLATFORMS_SINCE.get(platform or "cuda")
    if since is None:
        return f"a vLLM built for {platform} cannot sleep: it has nothing on a GPU to give back"
    wanted = ".".join(map(str, since))
    return f"vLLM can sleep on {platform or 'cuda'} from {wanted} on; this one is older"


def with_levels(spec: ModelSpec) -> ModelSpec:
    """`spec` with the sleep levels of its preset, if it names one and has none of its own.

    A preset that is not known gives none; `CommandEngine.problems` reports it.
    """
    if not spec.sleep_preset or spec.sleep:
        return spec
    return replace(spec, sleep=PRESETS.get(spec.sleep_preset, {}))
