"""The options that both of llama.cpp's servers have, each under both its names.

A flag is spelled as llama-server's `--help` has it (tools/server/README.md of llama.cpp); how a
word or number of a flag reads as an attribute of xllamacpp's `CommonParams` follows common/arg.cpp
there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from types import MappingProxyType


class Form(Enum):
    """How a flag of llama-server is written."""

    VALUE = auto()
    """`--flag value`"""
    SWITCH = auto()
    """`--flag` or `--no-flag`"""
    ONLY_ON = auto()
    """`--flag`, and nothing for false"""
    ON_OFF = auto()
    """`--flag on` or `--flag off`"""


@dataclass(frozen=True, slots=True)
class Option:
    """One option under both its names."""

    flag: str
    attribute: str
    form: Form = Form.VALUE
    opposite: bool = False
    """The attribute says no where the flag says yes (or is 1/x for a number)."""
    words: Mapping[str, int | str] = field(default_factory=lambda: MappingProxyType({}))
    """Words of the flag that the attribute spells in another way."""


CHAT_TEMPLATE_FILE = "chat_template_file"
"""Not an attribute: the built-in server reads the file as llama-server does."""

_LAYERS = MappingProxyType[str, int | str]({"auto": -1, "all": -2})
_ON_OFF = MappingProxyType[str, int | str]({"on": "enabled", "off": "disabled"})
_LOAD_MODE = MappingProxyType[str, int | str]({"dio": "direct_io"})

OPTIONS: tuple[Option, ...] = (
    # Context, batches, slots
    Option("ctx-size", "n_ctx"),
    Option("parallel", "n_parallel"),
    Option("batch-size", "n_batch"),
    Option("ubatch-size", "n_ubatch"),
    Option("keep", "n_keep"),
    Option("predict", "n_predict"),
    Option("kv-unified", "kv_unified", Form.SWITCH),
    Option("kv-unified-per-slot", "kv_unified_per_slot"),
    Option("cont-batching", "cont_batching", Form.SWITCH),
    Option("context-shift", "ctx_shift", Form.SWITCH),
    Option("swa-full", "swa_full", Form.ONLY_ON),
    # Processor
    Option("threads", "cpuparams.n_threads"),
    Option("threads-batch", "cpuparams_batch.n_threads"),
    Option("threads-http", "n_threads_http"),
    Option("poll", "cpuparams.poll"),
    Option("numa", "numa"),
    # Devices and memory
    Option("gpu-layers", "n_gpu_layers", words=_LAYERS),
    Option("split-mode", "split_mode"),
    Option("tensor-split", "tensor_split"),
    Option("main-gpu", "main_gpu"),
    Option("fit", "fit_params", Form.ON_OFF),
    Option("fit-ctx", "fit_params_min_ctx"),
    Option("override-tensor", "tensor_buft_overrides"),
    Option("kv-offload", "no_kv_offload", Form.SWITCH, opposite=True),
    Option("op-offload", "no_op_offload", Form.SWITCH, opposite=True),
    Option("repack", "no_extra_bufts", Form.SWITCH, opposite=True),
    Option("no-host", "no_host", Form.ONLY_ON),
    Option("load-mode", "load_mode", words=_LOAD_MODE),
    Option("lazy-mode", "lazy_mode"),
    Option("check-tensors", "check_tensors", Form.ONLY_ON),
    Option("warmup", "warmup", Form.SWITCH),
    Option("sleep-idle-seconds", "sleep_idle_seconds"),
    # Attention and its cache
    Option("flash-attn", "flash_attn_type", words=_ON_OFF),
    Option("cache-type-k", "cache_type_k"),
    Option("cache-type-v", "cache_type_v"),
    Option("cache-prompt", "cache_prompt", Form.SWITCH),
    Option("cache-reuse", "n_cache_reuse"),
    Option("cache-ram", "cache_ram_mib"),
    Option("cache-idle-slots", "cache_idle_slots", Form.SWITCH),
    Option("ctx-checkpoints", "n_ctx_checkpoints"),
    Option("checkpoint-min-step", "checkpoint_min_step"),
    Option("attention", "attention_type", words=MappingProxyType({"non-causal": "non_causal"})),
    Option("rope-scaling", "rope_scaling_type"),
    Option("rope-scale", "rope_freq_scale", opposite=True),
    Option("rope-freq-base", "rope_freq_base"),
    Option("rope-freq-scale", "rope_freq_scale"),
    Option("yarn-orig-ctx", "yarn_orig_ctx"),
    Option("yarn-ext-factor", "yarn_ext_factor"),
    Option("yarn-attn-factor", "yarn_attn_factor"),
    Option("yarn-beta-slow", "yarn_beta_slow"),
    Option("yarn-beta-fast", "yarn_beta_fast"),
    # Models beside the model
    Option("mmproj", "mmproj.path"),
    Option("mmproj-offload", "mmproj_use_gpu", Form.SWITCH),
    Option("mmproj-device", "mmproj_device"),
    Option("mtmd-batch-max-tokens", "mtmd_batch_max_tokens"),
    Option("image-min-tokens", "image_min_tokens"),
    Option("image-max-tokens", "image_max_tokens"),
    Option("lora", "lora_adapters"),
    Option("lora-init-without-apply", "lora_init_without_apply", Form.ONLY_ON),
    # Chat, embeddings
    Option("chat-template", "chat_template"),
    Option("chat-template-file", CHAT_TEMPLATE_FILE),
    Option("chat-template-kwargs", "default_template_kwargs"),
    Option("jinja", "use_jinja", Form.SWITCH),
    Option(
        "reasoning-format",
        "reasoning_format",
        words=MappingProxyType({"deepseek-legacy": "deepseek_legacy"}),
    ),
    Option("prefill-assistant", "prefill_assistant", Form.SWITCH),
    Option("pooling", "pooling_type"),
    Option("embd-normalize", "embd_normalize"),
    # Sampling, where a request leaves it open
    Option("seed", "sampling.seed"),
    Option("temp", "sampling.temp"),
    Option("top-k", "sampling.top_k"),
    Option("top-p", "sampling.top_p"),
    Option("min-p", "sampling.min_p"),
    Option("typical", "sampling.typ_p"),
    Option("repeat-last-n", "sampling.penalty_last_n"),
    Option("repeat-penalty", "sampling.penalty_repeat"),
    Option("presence-penalty", "sampling.penalty_present"),
    Option("frequency-penalty", "sampling.penalty_freq"),
    Option("samplers", "sampling.samplers"),
    Option("ignore-eos", "sampling.ignore_eos", Form.ONLY_ON),
    Option("mirostat", "sampling.mirostat"),
    Option("dynatemp-range", "sampling.dynatemp_range"),
    Option("xtc-probability", "sampling.xtc_probability"),
    Option("xtc-threshold", "sampling.xtc_threshold"),
    Option("dry-multiplier", "sampling.dry_multiplier"),
    Option("dry-base", "sampling.dry_base"),
    Option("dry-allowed-length", "sampling.dry_allowed_length"),
    Option("dry-penalty-last-n", "sampling.dry_penalty_last_n"),
    Option("adaptive-target", "sampling.adaptive_target"),
    Option("adaptive-decay", "sampling.adaptive_decay"),
    Option("backend-sampling", "sampling.backend_sampling", Form.ONLY_ON),
    # Guessing ahead
    Option("spec-type", "speculative.types"),
    Option("spec-draft-model", "speculative.draft.mparams.path"),
    Option("spec-draft-ngl", "speculative.draft.n_gpu_layers"),
    Option("spec-draft-n-max", "speculative.draft.n_max"),
    Option("spec-draft-n-min", "speculative.draft.n_min"),
    Option("spec-draft-p-min", "speculative.draft.p_min"),
    Option("spec-draft-p-split", "speculative.draft.p_split"),
    Option("spec-draft-type-k", "speculative.draft.cache_type_k"),
    Option("spec-draft-type-v", "speculative.draft.cache_type_v"),
    # The server
    Option("metrics", "endpoint_metrics", Form.ONLY_ON),
    Option("slots", "endpoint_slots", Form.SWITCH),
    Option("props", "endpoint_props", Form.ONLY_ON),
    Option("slot-save-path", "slot_save_path"),
    Option("slot-prompt-similarity", "slot_prompt_similarity"),
    Option("webui", "ui", Form.SWITCH),
    Option("offline", "offline", Form.ONLY_ON),
    Option("cors-origins", "cors_origins"),
    Option("sse-ping-interval", "sse_ping_interval"),
    Option("media-path", "media_path"),
    Option("special", "special", Form.ONLY_ON),
    Option("verbosity", "verbosity"),
    Option("perf", "no_perf", Form.SWITCH, opposite=True),
)
