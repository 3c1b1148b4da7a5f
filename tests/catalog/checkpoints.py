"""Writes folders of the Hugging Face kind for tests: small, whole, and damaged where asked."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path

from modelyard.catalog.safetensors import DTYPE_BITS

TOKENIZER: Mapping[str, object] = {"tokenizer.json": {"model": {"type": "BPE"}}}

LLAMA: Mapping[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "vocab_size": 256,
    "torch_dtype": "bfloat16",
}

TENSORS: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "model.embed_tokens.weight": ("BF16", (256, 64)),
    "model.layers.0.mlp.up_proj.weight": ("BF16", (128, 64)),
    "model.layers.1.mlp.up_proj.weight": ("BF16", (128, 64)),
}


def safetensors(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]] = TENSORS, *, cut: int = 0
) -> bytes:
    """A safetensors file of zeros, `cut` bytes too short."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * DTYPE_BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + bytes(at)
    return content[: len(content) - cut]


def checkpoint(
    place: Path,
    config: Mapping[str, object] = LLAMA,
    *,
    shards: int = 0,
    template: bool = False,
    files: Mapping[str, object] | None = None,
) -> Path:
    """Write a whole model into `place`; with `shards`, its weights in so many files."""
    place.mkdir(parents=True, exist_ok=True)
    contents: dict[str, object] = {"config.json": config, **TOKENIZER, **(files or {})}
    if template:
        contents["chat_template.jinja"] = "{{ messages }}"
    for name, content in contents.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (place / name).write_text(text, encoding="utf-8")
    if not shards:
        (place / "model.safetensors").write_bytes(safetensors())
        return place
    names = [f"model-{n:05d}-of-{shards:05d}.safetensors" for n in range(1, shards + 1)]
    for number, name in enumerate(names):
        (place / name).write_bytes(safetensors({f"part{number}": ("BF16", (64, 64))}))
    weight_map = {f"part{number}": name for number, name in enumerate(names)}
    index = {"metadata": {"total_size": 8192 * shards}, "weight_map": weight_map}
    (place / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return place
