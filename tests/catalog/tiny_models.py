"""Makes whole GGUF models of a few megabytes, one for each kind of memory that models have.

Laws of this file:
- Files are written by llama.cpp's own `gguf` package, so that nothing of ours vouches for itself.
- Weights are zeros: what is measured is room, and zeros take as much as anything.
- Shapes are those that llama.cpp's loaders (src/models/*.cpp) ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np

Shape = tuple[int, ...]
Tensors = Iterator[tuple[str, Shape]]

WIDTH: Final = 128
LAYERS: Final = 4
HEADS: Final = 8
FORWARD: Final = 256
CONTEXT: Final = 8192
EXPERTS: Final = 8


@dataclass(frozen=True)
class Tiny:
    """A model to be made: its architecture, header values below `{arch}.`, and tensors."""

    arch: str
    tensors: Callable[[], Tensors]
    values: Mapping[str, object] = field(default_factory=dict)
    heads: int | tuple[int, ...] = 2
    layers: int = LAYERS
    query_heads: int = HEADS


def words() -> list[bytes]:
    """A vocabulary that can spell every byte."""
    special = [b"<unk>", b"<s>", b"</s>"]
    letters = [f"<0x{number:02X}>".encode() for number in range(256)]
    return [*special, *letters, *(f"w{number}".encode() for number in range(253))]


WORDS: Final = len(words())


def make(tiny: Tiny, path: Path) -> Path:
    """Write the model to `path`."""
    writer = gguf.GGUFWriter(path, tiny.arch)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(tiny.layers)
    writer.add_feed_forward_length(FORWARD)
    writer.add_head_count(tiny.query_heads)
    writer.add_head_count_kv(list(tiny.heads) if isinstance(tiny.heads, tuple) else tiny.heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(WORDS)
    for key, value in tiny.values.items():
        _add(writer, f"{tiny.arch}.{key}", value)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words())
    writer.add_token_scores([0.0] * WORDS)
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (WORDS - 259))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, shape in tiny.tensors():
        # numpy writes the last dimension first, GGUF the other way round
        kind: Any = np.float32 if len(shape) == 1 or _stays_whole(name) else np.float16
        writer.add_tensor(name, np.zeros(tuple(reversed(shape)), dtype=kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _stays_whole(name: str) -> bool:
    return any(
        part in name
        for part in ("ssm_conv1d", "ssm_a", "ssm_d", "ssm_norm", "shortconv.conv", "bias")
    )


def _add(writer: Any, key: str, value: object) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


# --------------------------------------------------------------------------------------- the parts


def _ends(*, tied: bool = False) -> Tensors:
    yield "token_embd.weight", (WIDTH, WORDS)
    yield "output_norm.weight", (WIDTH,)
    if not tied:
        yield "output.weight", (WIDTH, WORDS)


def _attention(block: str, kv_heads: int, width: int, *, query_heads: int = HEADS) -> Tensors:
    yield f"{block}.attn_norm.weight", (WIDTH,)
    yield f"{block}.attn_q.weight", (WIDTH, query_heads * width)
    yield f"{block}.attn_k.weight", (WIDTH, kv_heads * width)
    yield f"{block}.attn_v.weight", (WIDTH, kv_heads * width)
    yield f"{block}.attn_output.weight", (query_heads * width, WIDTH)


def _forward(block: str, norm: str = "ffn_norm") -> Tensors:
    yield f"{block}.{norm}.weight", (WIDTH,)
    yield f"{block}.ffn_gate.weight", (WIDTH, FORWARD)
    yield f"{block}.ffn_up.weight", (WIDTH, FORWARD)
    yield f"{block}.ffn_down.weight", (FORWARD, WIDTH)


def _experts(block: str, *, norm: str = "ffn_norm", biased: bool = False) -> Tensors:
    yield f"{block}.{norm}.weight", (WIDTH,)
    yield f"{block}.ffn_gate_inp.weight", (WIDTH, EXPERTS)
    yield f"{block}.ffn_gate_exps.weight", (WIDTH, FORWARD, EXPERTS)
    yield f"{block}.ffn_up_exps.weight", (WIDTH, FORWARD, EXPERTS)
    yield f"{block}.ffn_down_exps.weight", (FORWARD, WIDTH, EXPERTS)
    if biased:
        yield f"{block}.ffn_gate_inp.bias", (EXPERTS,)
        yield f"{block}.ffn_gate_exps.bias", (FORWARD, EXPERTS)
        yield f"{block}.ffn_up_exps.bias", (FORWARD, EXPERTS)
        yield f"{block}.ffn_down_exps.bias", (WIDTH, EXPERTS)


def _blocks(layers: int = LAYERS) -> Iterator[tuple[int, str]]:
    yield from ((layer, f"blk.{layer}") for layer in range(layers))


# -------------------------------------------------------------------------------------- the models


def _llama(kv_heads: int) -> Callable[[], Tensors]:
    def tensors() -> Tensors:
        yield from _ends()
        for _, block in _blocks():
            yield from _attention(block, kv_heads, WIDTH // HEADS)
            yield from _forward(block)

    return tensors


def _qwen3(*, experts: bool) -> Callable[[], Tensors]:
    def tensors() -> Tensors:
        yield from _ends(tied=not experts)
        for _, block in _blocks():
            yield from _attention(block, 2, 32)
            yield f"{block}.attn_q_norm.weight", (32,)
            yield f"{block}.attn_k_norm.weight", (32,)
            yield from _experts(block) if experts else _forward(block)

    return tensors


def _gemma3() -> Tensors:
    yield from _ends(tied=True)
    for _, block in _blocks(12):
        yield from _attention(block, 1, 32)
        yield f"{block}.attn_q_norm.weight", (32,)
        yield f"{block}.attn_k_norm.weight", (32,)
        yield f"{block}.post_attention_norm.weight", (WIDTH,)
        yield from _forward(block)
        yield f"{block}.post_ffw_norm.weight", (WIDTH,)


def _gpt_oss() -> Tensors:
    yield from _ends()
    for _, block in _blocks():
        yield from _attention(block, 2, 32)
        for part, size in (("q", 8 * 32), ("k", 2 * 32), ("v", 2 * 32), ("output", WIDTH)):
            yield f"{block}.attn_{part}.bias", (size,)
        yield f"{block}.attn_sinks.weight", (HEADS,)
        yield from _experts(block, norm="post_attention_norm", biased=True)


_RANK, _ROPE, _NOPE = 64, 32, 32


def _deepseek2() -> Tensors:
    yield from _ends()
    for _, block in _blocks():
        yield f"{block}.attn_norm.weight", (WIDTH,)
        yield f"{block}.attn_q.weight", (WIDTH, HEADS * (_NOPE + _ROPE))
        yield f"{block}.attn_kv_a_mqa.weight", (WIDTH, _RANK + _ROPE)
        yield f"{block}.attn_kv_a_norm.weight", (_RANK,)
        yield f"{block}.attn_k_b.weight", (_NOPE, _RANK, HEADS)
        yield f"{block}.attn_v_b.weight", (_RANK, _NOPE, HEADS)
        yield f"{block}.attn_output.weight", (HEADS * _NOPE, WIDTH)
        yield from _forward(block)


_INNER, _STATE, _GROUPS, _SSM_HEADS, _KERNEL = 256, 32, 1, 8, 4


def _mamba2_part(block: str) -> Tensors:
    conv = _INNER + 2 * _GROUPS * _STATE
    yield f"{block}.attn_norm.weight", (WIDTH,)
    yield f"{block}.ssm_in.weight", (WIDTH, _INNER + conv + _SSM_HEADS)
    yield f"{block}.ssm_conv1d.weight", (_KERNEL, conv)
    yield f"{block}.ssm_conv1d.bias", (conv,)
    yield f"{block}.ssm_dt.bias", (_SSM_HEADS,)
    yield f"{block}.ssm_a", (1, _SSM_HEADS)
    yield f"{block}.ssm_d", (1, _SSM_HEADS)
    yield f"{block}.ssm_norm.weight", (_INNER // _GROUPS, _GROUPS)
    yield f"{block}.ssm_out.weight", (_INNER, WIDTH)


def _mamba2() -> Tensors:
    yield from _ends(tied=True)
    for _, block in _blocks():
        yield from _mamba2_part(block)


_CACHE_STEPS = 3


def _lfm2() -> Tensors:
    yield "token_embd.weight", (WIDTH, WORDS)
    yield "token_embd_norm.weight", (WIDTH,)
    for layer, block in _blocks():
        if layer in {1, 3}:
            yield from _attention(block, 2, WIDTH // HEADS)
            yield f"{block}.attn_q_norm.weight", (WIDTH // HEADS,)
            yield f"{block}.attn_k_norm.weight", (WIDTH // HEADS,)
        else:
            yield f"{block}.attn_norm.weight", (WIDTH,)
            yield f"{block}.shortconv.conv.weight", (_CACHE_STEPS, WIDTH)
            yield f"{block}.shortconv.in_proj.weight", (WIDTH, 3 * WIDTH)
            yield f"{block}.shortconv.out_proj.weight", (WIDTH, WIDTH)
        yield from _forward(block)


def _falcon_h1() -> Tensors:
    yield from _ends()
    for _, block in _blocks():
        yield from _mamba2_part(block)
        yield from ((name, shape) for name, shape in _attention(block, 2, 32) if "norm" not in name)
        for name, shape in _forward(block):
            # this loader asks for the norm under its bare name
            yield name.replace("ffn_norm.weight", "ffn_norm"), shape


_K_HEADS, _V_HEADS, _HEAD_STATE = 2, 4, 32


def _qwen3next() -> Tensors:
    yield from _ends()
    key, value = _K_HEADS * _HEAD_STATE, _V_HEADS * _HEAD_STATE
    for layer, block in _blocks():
        if layer % 4 == 3:
            for name, shape in _attention(block, 2, 32):
                # the query brings its gate along
                yield name, ((WIDTH, 2 * HEADS * 32) if name.endswith("attn_q.weight") else shape)
            yield f"{block}.attn_q_norm.weight", (32,)
            yield f"{block}.attn_k_norm.weight", (32,)
        else:
            yield f"{block}.attn_norm.weight", (WIDTH,)
            yield f"{block}.attn_qkv.weight", (WIDTH, 2 * key + value)
            yield f"{block}.attn_gate.weight", (WIDTH, value)
            yield f"{block}.ssm_conv1d.weight", (_KERNEL, 2 * key + value)
            yield f"{block}.ssm_dt.bias", (_V_HEADS,)
            yield f"{block}.ssm_a", (_V_HEADS,)
            yield f"{block}.ssm_ba.weight", (WIDTH, 2 * _V_HEADS)
            yield f"{block}.ssm_norm.weight", (_HEAD_STATE,)
            yield f"{block}.ssm_out.weight", (value, WIDTH)
        yield from _experts(block, norm="post_attention_norm")
        yield f"{block}.ffn_gate_inp_shexp.weight", (WIDTH,)
        yield f"{block}.ffn_gate_shexp.weight", (WIDTH, FORWARD)
        yield f"{block}.ffn_up_shexp.weight", (WIDTH, FORWARD)
        yield f"{block}.ffn_down_shexp.weight", (FORWARD, WIDTH)


def _cohere2() -> Tensors:
    yield from _ends(tied=True)
    for _, block in _blocks(8):
        yield from _attention(block, 2, WIDTH // HEADS)
        yield from ((n, s) for n, s in _forward(block) if "norm" not in n)


_WIDE: Final = {"attention.key_length": 32, "attention.value_length": 32}
_MOE: Final = {
    "expert_count": EXPERTS,
    "expert_used_count": 2,
    "expert_feed_forward_length": FORWARD,
}
_SSM: Final = {
    "ssm.conv_kernel": _KERNEL,
    "ssm.inner_size": _INNER,
    "ssm.state_size": _STATE,
    "ssm.time_step_rank": _SSM_HEADS,
    "ssm.group_count": _GROUPS,
}

MODELS: Final[Mapping[str, Tiny]] = {
    "MHA (llama)": Tiny("llama", _llama(HEADS), heads=HEADS),
    "GQA (llama)": Tiny("llama", _llama(2)),
    "MQA (llama)": Tiny("llama", _llama(1), heads=1),
    "GQA, tied (qwen3)": Tiny("qwen3", _qwen3(experts=False), _WIDE),
    "MoE (qwen3moe)": Tiny("qwen3moe", _qwen3(experts=True), {**_WIDE, **_MOE}),
    "MLA (deepseek2)": Tiny(
        "deepseek2",
        _deepseek2,
        {
            "attention.q_lora_rank": 0,
            "attention.kv_lora_rank": _RANK,
            "attention.key_length": _RANK + _ROPE,
            "attention.value_length": _RANK,
            "attention.key_length_mla": _NOPE + _ROPE,
            "attention.value_length_mla": _NOPE,
            "rope.dimension_count": _ROPE,
            "leading_dense_block_count": LAYERS,
            "expert_count": 0,
            "expert_shared_count": 0,
            "expert_used_count": 0,
            "expert_feed_forward_length": FORWARD,
            "expert_weights_scale": 1.0,
        },
        heads=1,
    ),
    "window (gemma3)": Tiny(
        "gemma3", _gemma3, {**_WIDE, "attention.sliding_window": 512}, heads=1, layers=12
    ),
    "window, sinks (gpt-oss)": Tiny(
        "gpt-oss", _gpt_oss, {**_WIDE, **_MOE, "attention.sliding_window": 128}
    ),
    "window (cohere2)": Tiny(
        "cohere2",
        _cohere2,
        {
            "attention.sliding_window": 256,
            "logit_scale": 0.25,
            "attention.layer_norm_epsilon": 1e-5,
        },
        layers=8,
    ),
    "state (mamba2)": Tiny("mamba2", _mamba2, _SSM, heads=0, query_heads=0),
    "convolution (lfm2)": Tiny(
        "lfm2", _lfm2, {"shortconv.l_cache": _CACHE_STEPS}, heads=(0, 2, 0, 2)
    ),
    "state and heads (falcon-h1)": Tiny("falcon-h1", _falcon_h1, {**_WIDE, **_SSM}),
    "gated state (qwen3next)": Tiny(
        "qwen3next",
        _qwen3next,
        {
            **_WIDE,
            **_MOE,
            "rope.dimension_count": 16,
            "expert_shared_feed_forward_length": FORWARD,
            "ssm.conv_kernel": _KERNEL,
            "ssm.inner_size": _V_HEADS * _HEAD_STATE,
            "ssm.state_size": _HEAD_STATE,
            "ssm.time_step_rank": _V_HEADS,
            "ssm.group_count": _K_HEADS,
        },
    ),
}
