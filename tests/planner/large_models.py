"""Writes models of any size that take no room on the disk: true headers, and holes for weights."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.catalog.conftest import Gguf

Q4_K, Q8_0, F16, F32 = 12, 8, 1, 0
_BLOCKS = {Q4_K: (256, 144), Q8_0: (32, 34), F16: (1, 2), F32: (1, 4)}
_FILE_TYPES = {Q4_K: 15, Q8_0: 7, F16: 1}


@dataclass(frozen=True)
class Shape:
    """A transformer of the llama kind."""

    layers: int
    width: int
    forward: int
    heads: int
    kv_heads: int
    words: int = 32000
    context: int = 131072
    head: int = 128
    experts: int = 0
    used: int = 0


LLAMA_8B = Shape(32, 4096, 14336, 32, 8, words=128256)
LLAMA_70B = Shape(80, 8192, 28672, 64, 8, words=128256)
QWEN3_30B_A3B = Shape(48, 2048, 768, 32, 4, words=151936, context=40960, experts=128, used=8)
"""Shapes of the models' own config.json on the Hub."""


def matrices(shape: Shape) -> list[tuple[str, tuple[int, ...]]]:
    """GGUF's tensors, the fastest dimension first."""
    found: list[tuple[str, tuple[int, ...]]] = [
        ("token_embd.weight", (shape.width, shape.words)),
        ("output.weight", (shape.width, shape.words)),
    ]
    for number in range(shape.layers):
        block = f"blk.{number}"
        found += [
            (f"{block}.attn_q.weight", (shape.width, shape.heads * shape.head)),
            (f"{block}.attn_k.weight", (shape.width, shape.kv_heads * shape.head)),
            (f"{block}.attn_v.weight", (shape.width, shape.kv_heads * shape.head)),
            (f"{block}.attn_output.weight", (shape.heads * shape.head, shape.width)),
        ]
        for part in ("gate", "up", "down"):
            sides = (shape.width, shape.forward)
            sides = sides[::-1] if part == "down" else sides
            name = (
                f"{block}.ffn_{part}_exps.weight" if shape.experts else f"{block}.ffn_{part}.weight"
            )
            found.append((name, (*sides, shape.experts) if shape.experts else sides))
    return found


def gguf_file(path: Path, shape: Shape = LLAMA_8B, kind: int = Q4_K) -> Path:
    """A GGUF file with all matrices in one number format."""
    block, block_bytes = _BLOCKS[kind]
    tensors = [
        (name, sides, kind, math.prod(sides) // block * block_bytes)
        for name, sides in matrices(shape)
    ]
    arch = "qwen3moe" if shape.experts else "llama"
    values: dict[str, object] = {
        "context_length": shape.context,
        "embedding_length": shape.width,
        "block_count": shape.layers,
        "feed_forward_length": shape.forward,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head,
        "attention.value_length": shape.head,
    }
    if shape.experts:
        values |= {"expert_count": shape.experts, "expert_used_count": shape.used}
        values |= {"expert_feed_forward_length": shape.forward}
    metadata: dict[str, object] = {
        "general.architecture": arch,
        "general.file_type": _FILE_TYPES[kind],
        "tokenizer.chat_template": "{{ messages }}",
    }
    metadata |= {f"{arch}.{key}": value for key, value in values.items()}
    header = Gguf(metadata, tensors).header()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(header)
        size = len(header) + sum(_padded(n_bytes) for *_, n_bytes in tensors)
        file.truncate(_padded(size))
    return path


def folder(place: Path, shape: Shape = LLAMA_8B, extra: Mapping[str, object] | None = None) -> Path:
    """A folder of the Hugging Face kind in BF16."""
    place.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.width,
        "intermediate_size": shape.forward,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head,
        "max_position_embeddings": shape.context,
        "vocab_size": shape.words,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        **(extra or {}),
    }
    (place / "config.json").write_text(json.dumps(config))
    (place / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    (place / "chat_template.jinja").write_text("{{ messages }}")
    _safetensors(place / "model.safetensors", matrices(shape))
    return place


def _safetensors(path: Path, tensors: Sequence[tuple[str, tuple[int, ...]]]) -> None:
    header: dict[str, object] = {}
    at = 0
    for name, sides in tensors:
        size = math.prod(sides) * 2
        shape = list(reversed(sides))
        header[_hub_name(name)] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)


def _hub_name(name: str) -> str:
    name = name.replace("token_embd", "model.embed_tokens").replace(
        "output.weight", "lm_head.weight"
    )
    return name.replace("blk.", "model.layers.").replace("attn_lm_head", "attn.o_proj")


def _padded(size: int) -> int:
    return -(-size // 32) * 32
