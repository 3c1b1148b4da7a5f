"""What became of options that vLLM renamed, moved or removed between 0.6 and 0.33: facts.

Laws of this file:
- An option with an equal in the installed version is rewritten into it; the user's configuration
  keeps working across upgrades. One without is explained, because leaving it out in silence would
  change what the engine does.
- A rewrite depends on what the build has, not on its number: forks and nightlies differ.

Sources: the parsers of the published packages (see `vllm_table`) say when an option went. What it
became: their own deprecation texts and `EngineArgs` (0.9.2 and 0.10.2: `--task`,
`--enable-reasoning`, `--cuda-graph-sizes`; 0.11.2: `--guided-decoding-*`, `--eplb-*`),
`SpeculativeConfig` of 0.8.5, and vLLM's pull requests 21470 and 30397 (`task`) and 36216
(`swap_space`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from modelyard.core.specs import OptionValue
from modelyard.engines.vllm_table import Forms

Settings = dict[str, OptionValue]
"""Values by option name as vLLM writes it, with dashes."""


@dataclass(frozen=True, slots=True)
class CannotRewrite(Exception):
    """The value has no equal; says what to write instead."""

    why: str


_GENERATE: Final = frozenset({"generate", "transcription", "draft"})
_CONVERT: Final = MappingProxyType(
    {"embed": "embed", "embedding": "embed", "classify": "classify", "score": "auto"}
)


def _task(value: OptionValue) -> Settings:
    if value == "auto":
        return {}
    if value in _GENERATE:
        return {"runner": "draft" if value == "draft" else "generate"}
    if isinstance(value, str) and value in _CONVERT:
        convert = _CONVERT[value]
        return {"runner": "pooling", **({} if convert == "auto" else {"convert": convert})}
    raise CannotRewrite(f"{json.dumps(value)} has no equal; write `runner` and `convert`")


def _runner(value: OptionValue) -> Settings:
    if value in ("auto", "generate", "pooling"):
        return {"task": "embed" if value == "pooling" else value}
    raise CannotRewrite("this vLLM has no runners; write `task`, like embed or score")


def _convert(value: OptionValue) -> Settings:
    if value in ("auto", "none"):
        return {}
    if value in ("embed", "classify", "reward"):
        return {"task": value}
    raise CannotRewrite("this vLLM has no `convert`; write `task`, like embed or score")


def _dropped_if(meaningless: OptionValue, why: str) -> Callable[[OptionValue], Settings]:
    def drop(value: OptionValue) -> Settings:
        if value == meaningless:
            return {}
        raise CannotRewrite(why)

    return drop


def _into(name: str, key: str = "") -> Callable[[OptionValue], Settings]:
    """The value under another name, or as one key of another option's JSON."""
    return lambda value: {name: {key: value} if key else value}


def _listed(name: str) -> Callable[[OptionValue], Settings]:
    return lambda value: {name: value if isinstance(value, list) else [value]}


def _draft(value: OptionValue) -> Settings:
    is_ngram = value == "[ngram]"
    return {"speculative-config": {"method": "ngram"} if is_ngram else {"model": value}}


def _if_true(settings: Settings) -> Callable[[OptionValue], Settings]:
    return lambda value: dict(settings) if value else {}


_SPECULATIVE: Final = "speculative-config"
_STRUCTURED: Final = "structured-outputs-config"
_EPLB: Final = "eplb-config"

REWRITES: Final[Mapping[str, Callable[[OptionValue], Settings]]] = MappingProxyType(
    {
        "task": _task,
        "runner": _runner,
        "convert": _convert,
        "num-gpu-blocks": _into("num-gpu-blocks-override"),
        "max-gpu-blocks": _into("num-gpu-blocks-override"),
        "device-memory-utilization": _into("gpu-memory-utilization"),
        "model-len": _into("max-model-len"),
        "cuda-graph-sizes": _listed("cudagraph-capture-sizes"),
        "cudagraph-capture-sizes": _listed("cuda-graph-sizes"),
        "override-pooler-config": _into("pooler-config"),
        "pooler-config": _into("override-pooler-config"),
        "disable-log-requests": lambda value: {} if value else {"enable-log-requests": True},
        "enable-log-requests": lambda value: {"disable-log-requests": not value},
        "enable-reasoning": _if_true({}),
        "worker-use-ray": _if_true({"distributed-executor-backend": "ray"}),
        "disable-mm-preprocessor-cache": _if_true({"mm-processor-cache-gb": 0}),
        "enable-multimodal-encoder-data-parallel": _if_true({"mm-encoder-tp-mode": "data"}),
        "guided-decoding-backend": _into(_STRUCTURED, "backend"),
        "guided-decoding-disable-fallback": _into(_STRUCTURED, "disable_fallback"),
        "guided-decoding-disable-any-whitespace": _into(_STRUCTURED, "disable_any_whitespace"),
        "guided-decoding-disable-additional-properties": _into(
            _STRUCTURED, "disable_additional_properties"
        ),
        "log-config-file": _into("logging-config", "pylogging_config_file"),
        "eplb-window-size": _into(_EPLB, "window_size"),
        "eplb-step-interval": _into(_EPLB, "step_interval"),
        "eplb-log-balancedness": _into(_EPLB, "log_balancedness"),
        "num-redundant-experts": _into(_EPLB, "num_redundant_experts"),
        "speculative-model": _draft,
        "num-speculative-tokens": _into(_SPECULATIVE, "num_speculative_tokens"),
        "speculative-draft-tensor-parallel-size": _into(_SPECULATIVE, "draft_tensor_parallel_size"),
        "speculative-max-model-len": _into(_SPECULATIVE, "max_model_len"),
        "speculative-model-quantization": _into(_SPECULATIVE, "quantization"),
        "speculative-disable-by-batch-size": _into(_SPECULATIVE, "disable_by_batch_size"),
        "ngram-prompt-lookup-max": _into(_SPECULATIVE, "prompt_lookup_max"),
        "ngram-prompt-lookup-min": _into(_SPECULATIVE, "prompt_lookup_min"),
        # Nothing of the kind is left, and its default is what happens now.
        "use-v2-block-manager": _if_true({}),
        "swap-space": _dropped_if(
            0,
            "since 0.18 nothing is swapped to the host; `kv_offloading_size` (GiB) keeps KV there",
        ),
        "num-scheduler-steps": _dropped_if(1, "steps are no longer run in groups; remove it"),
    }
)
"""How each old (or too new) option is said in a version without it. It applies only there."""

_V0: Final = "it belonged to the engine before V1; remove it"
_PROMPT_ADAPTERS: Final = "prompt adapters were removed; use LoRA (`enable_lora`, `lora_modules`)"

INSTEAD: Final[Mapping[str, str]] = MappingProxyType(
    {
        "calculate-kv-scales": "scales come from the checkpoint or are computed anyway; remove it",
        "device": "vLLM runs on what it was built for; choose by the profile's `devices`",
        "disable-async-output-proc": _V0,
        "disable-cascade-attn": "cascade attention was removed; remove this too",
        "disable-frontend-multiprocessing": "the engine always has its own process; remove it",
        "disable-logprobs-during-spec-decoding": _V0,
        "enable-bf16x3-router-gemm": "it was tried in 0.27 to 0.29 and removed; remove it",
        "enable-lora-bias": "adapters with a bias are no longer supported; remove it",
        "enable-prompt-adapter": _PROMPT_ADAPTERS,
        "expand-tools-even-if-tool-choice-none": (
            "it is how vLLM behaves; `exclude_tools_when_tool_choice_none` is the opposite"
        ),
        "logits-processor-pattern": "write `logits_processors`",
        "long-lora-scaling-factors": "long LoRA was removed; remove it",
        "lora-extra-vocab-size": "adapters no longer add tokens; remove it",
        "max-long-partial-prefills": "concurrent partial prefills were removed; remove it",
        "max-num-partial-prefills": "concurrent partial prefills were removed; remove it",
        "max-prompt-adapter-token": _PROMPT_ADAPTERS,
        "max-prompt-adapters": _PROMPT_ADAPTERS,
        "max-seq-len-to-capture": (
            "graphs are captured by batch size now: `max_cudagraph_capture_size`"
        ),
        "multi-step-stream-outputs": _V0,
        "num-lookahead-slots": _V0,
        "override-attention-dtype": "write `attention_config`, or remove it",
        "override-neuron-config": "Neuron is a plugin now; write `additional_config`",
        "preemption-mode": "a preempted request is always computed again; remove it",
        "prompt-adapters": _PROMPT_ADAPTERS,
        "qlora-adapter-name-or-path": "name the adapter in `lora_modules`",
        "quantization-param-path": "KV scales are read from the checkpoint; remove it",
        "rope-scaling": 'write `hf_overrides: {rope_parameters: {...}}`',
        "rope-theta": 'write `hf_overrides: {rope_parameters: {rope_theta: ...}}`',
        "scheduler-delay-factor": _V0,
        "spec-decoding-acceptance-method": "write `speculative_config`",
        "speculative-disable-mqa-scorer": "there is one scorer now; remove it",
        "tokenizer-pool-extra-config": "there is no tokenizer pool any more; remove it",
        "tokenizer-pool-size": "there is no tokenizer pool any more; remove it",
        "tokenizer-pool-type": "there is no tokenizer pool any more; remove it",
        "typical-acceptance-sampler-posterior-alpha": "write `speculative_config`",
        "typical-acceptance-sampler-posterior-threshold": "write `speculative_config`",
        "use-gpu-for-pooling-score": "it was tried in 0.17 and removed; remove it",
        "max-tokens": "vLLM takes it with each request; the longest sequence is `max_model_len`",
        "kv-cache-memory": "write `kv_cache_memory_bytes`",
        "num-cpu-blocks": "KV blocks on the host went with `swap_space`; remove it",
        "attention-backend": "write the variable VLLM_ATTENTION_BACKEND into `env`",
    }
)  # fmt: skip
"""What to do instead of options that have no equal, in versions without them."""


def rewritten(name: str, value: OptionValue, forms: Forms) -> Settings | None:
    """An option that the build lacks, said in options that it has; None if there are none.

    Raises CannotRewrite where only this value has no equal.
    """
    rewrite = REWRITES.get(name)
    if rewrite is None or name in forms:
        return None
    settings = rewrite(value)
    return settings if all(each in forms for each in settings) else None
