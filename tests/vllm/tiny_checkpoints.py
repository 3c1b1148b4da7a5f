"""Writes tiny checkpoints with random weights, one for each way in which layers remember.

Run with the Python of vLLM, whose transformers it needs:
`.venv-vllm/bin/python tests/vllm/tiny_checkpoints.py FOLDER [NAME ...]`. Shapes are as small as
vLLM's kernels for processors take them; what is compared is room, so the weights may be anything.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch  # noqa: TID253  # run by an environment of its own
from transformers import AutoConfig, AutoModelForCausalLM

ROOT = Path(__file__).parents[2]
CONTEXT = 8192
SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
KINDS: dict[str, dict[str, Any]] = {
    "MHA (llama)": {"model_type": "llama", "num_key_value_heads": 8},
    "GQA (llama)": {"model_type": "llama"},
    "MQA (llama)": {"model_type": "llama", "num_key_value_heads": 1},
    "GQA, tied (qwen3)": {"model_type": "qwen3", "tie_word_embeddings": True, "head_dim": 64},
    "GQA, biased (qwen2)": {"model_type": "qwen2"},
    "MoE (qwen3moe)": {
        "model_type": "qwen3_moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
    },
    "MoE (mixtral)": {"model_type": "mixtral", "num_local_experts": 4},
    "window (mistral)": {"model_type": "mistral", "sliding_window": 1024},
    "window and all (gemma2)": {"model_type": "gemma2", "sliding_window": 1024},
    "window and all (gemma3)": {
        "model_type": "gemma3_text",
        "sliding_window": 1024,
        "num_hidden_layers": 6,
    },
    "window, sinks (gpt-oss)": {
        "model_type": "gpt_oss",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 128,
        "head_dim": 64,
    },
    "MLA (deepseek2)": {
        "model_type": "deepseek_v2",
        "num_key_value_heads": 8,
        "kv_lora_rank": 512,
        "q_lora_rank": None,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 64,
        "v_head_dim": 64,
        "head_dim": 64,
        "first_k_dense_replace": 4,
    },
    "state (mamba2)": {
        "model_type": "mamba2",
        "num_heads": 16,
        "head_dim": 32,
        "state_size": 64,
        "n_groups": 1,
        "expand": 2,
    },
    "convolution (lfm2)": {
        "model_type": "lfm2",
        "conv_dim": 256,
        "block_dim": 256,
        "layer_types": ["conv", "conv", "full_attention", "conv"],
    },
    "state and heads (falcon-h1)": {
        "model_type": "falcon_h1",
        "mamba_d_ssm": 256,
        "mamba_n_heads": 8,
        "mamba_d_head": 32,
        "mamba_d_state": 64,
        "mamba_n_groups": 1,
    },
    "gated state (qwen3next)": {
        "model_type": "qwen3_next",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
        "shared_expert_intermediate_size": 128,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
        "head_dim": 64,
    },
    "GQA (phi3)": {"model_type": "phi3", "original_max_position_embeddings": CONTEXT},
    "MHA (gpt2)": {
        "model_type": "gpt2",
        "n_embd": 256,
        "n_layer": 4,
        "n_head": 8,
        "n_positions": CONTEXT,
        "num_key_value_heads": 8,
    },
    "GQA (granite)": {"model_type": "granite"},
    "GQA (olmo2)": {"model_type": "olmo2"},
}


def words() -> Any:
    """The tokenizer of `training/tiny_llama.py`."""
    spec = importlib.util.spec_from_file_location("tiny_llama", ROOT / "training/tiny_llama.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.tokenizer()


def make(name: str, folder: Path, tokenizer: Any) -> None:
    """Write one of `KINDS`."""
    torch.manual_seed(7)
    told = {**SHAPE, "vocab_size": len(tokenizer), **KINDS[name]}
    config = AutoConfig.for_model(told.pop("model_type"), **told)
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def slug(name: str) -> str:
    """A folder's name: `gqa-tied-qwen3`."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.casefold()).split())


if __name__ == "__main__":
    place = Path(sys.argv[1])
    for kind in KINDS:
        if not sys.argv[2:] or slug(kind) in sys.argv[2:]:
            make(kind, place / slug(kind), words())
