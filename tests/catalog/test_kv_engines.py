"""The same question to every engine, against figures that the engines themselves printed."""

from __future__ import annotations

import pytest

from modelyard.catalog.attention import Attention, Keeps, LayerGroup
from modelyard.catalog.kv import kv_bytes

GIB = 2**30


def full(layers: int, heads: int, width: int) -> LayerGroup:
    return LayerGroup(Keeps.ALL, layers, heads, width, width)


def window(layers: int, heads: int, width: int, span: int) -> LayerGroup:
    return LayerGroup(Keeps.WINDOW, layers, heads, width, width, span)


@pytest.mark.parametrize(
    ("groups", "context", "expected"),
    [
        ((full(36, 8, 128),), 40960, 6039797760),
        ((full(6, 4, 256), window(28, 4, 256, 1024)), 8192, 580780032),
        ((full(12, 8, 64), window(12, 8, 64, 128)), 16384, 456523776),
        ((full(8, 8, 128), window(24, 8, 128, 4096)), 32768, 1679294464),
    ],
)
def test_caches_are_those_that_vllm_s_own_specifications_count(
    groups: tuple[LayerGroup, ...], context: int, expected: int
) -> None:
    """Counted by vLLM 0.32: `max_memory_usage_bytes` of each group that `kv_cache_utils` makes of
    these layers, in blocks of 16 with 2048 tokens in flight, times the layers of its groups."""
    found = kv_bytes(Attention(groups), "vllm", context, 1, "bfloat16")

    assert found.n_bytes == expected


def test_a_published_figure_of_tensor_parallel_vllm_is_met() -> None:
    """Qwen3-235B-A22B on 4 GPUs: "Available KV cache memory: 8.11 GiB", "178,880 tokens"
    (vLLM issue 21348). The memory that was left holds no more than the tokens that were said."""
    attention = Attention((full(94, 4, 128),))

    found = kv_bytes(attention, "vllm", 178_880, 1, "auto", tensor_parallel=4)

    assert found.n_bytes / GIB == pytest.approx(8.11, rel=0.02)


@pytest.mark.parametrize(
    ("groups", "context", "dtype", "mib"),
    [
        # 64 layers of Qwen2.5-32B, "kv_size = 32768, type_k = 'q8_0'" (llama.cpp issue 11200)
        (full(64, 8, 128), 32768, "q8_0", 4352.00),
        # 36 layers of Qwen2.5-3B, "KV self size = 144.00 MiB" (LLamaSharp issue 1099)
        (full(36, 2, 128), 4096, "f16", 144.00),
    ],
)
def test_published_figures_of_llama_cpp_are_met(
    groups: LayerGroup, context: int, dtype: str, mib: float
) -> None:
    found = kv_bytes(Attention((groups,)), "llamacpp", context, 1, dtype)

    assert found.n_bytes / 2**20 == mib


def test_blocks_grow_until_they_hold_a_state() -> None:
    """Qwen3.8-27B with a cache of 8 bits: "Setting attention block size to 1568 tokens", "Padding
    mamba page size by 0.13%" (club-3090 issue 1047). 16 of 64 layers attend."""
    state = LayerGroup(Keeps.STATE, 48, conv=3 * (2 * 16 * 128 + 48 * 128), state=48 * 128 * 128)
    attention = Attention((state, full(16, 4, 256)))

    one = kv_bytes(attention, "vllm", 1568, 1, "fp8", state_dtype="float32")
    two = kv_bytes(attention, "vllm", 1569, 1, "fp8", state_dtype="float32")

    page = 1568 * 4 * 512
    # Two states for each sequence, because prefixes are remembered (MambaSpec, mode "align").
    assert one.n_bytes == (2 * 48 + 16) * page
    assert two.n_bytes == (2 * 48 + 2 * 16) * page
    assert page / (2 * state.conv + 4 * state.state) == pytest.approx(1.0013, abs=0.0001)


def test_a_compressed_cache_is_not_divided_by_tensor_parallelism() -> None:
    latent = LayerGroup(Keeps.ALL, 61, 1, 576, latent=True, unpacked=128 * 320)
    attention = Attention((latent,))

    alone = kv_bytes(attention, "vllm", 4096, 1, "auto").n_bytes
    shared = kv_bytes(attention, "vllm", 4096, 1, "auto", tensor_parallel=8).n_bytes
    unpacked = kv_bytes(attention, "transformers", 4096, 1, "bfloat16").n_bytes

    assert alone == shared == 61 * 576 * 2 * 4096
    assert unpacked == 61 * 128 * 320 * 2 * 4096


def test_more_gpus_than_heads_hold_a_head_each() -> None:
    attention = Attention((full(2, 2, 64),))

    halves = kv_bytes(attention, "vllm", 1024, 1, "auto", tensor_parallel=2).n_bytes

    assert kv_bytes(attention, "vllm", 1024, 1, "auto", tensor_parallel=8).n_bytes == halves


@pytest.mark.parametrize("engine", ["llamacpp", "vllm", "transformers"])
def test_every_engine_answers_for_every_kind(engine: str) -> None:
    kinds = (
        full(2, 2, 64),
        window(2, 2, 64, 128),
        LayerGroup(Keeps.CHUNK, 2, 2, 64, 64, 256),
        LayerGroup(Keeps.STATE, 2, conv=100, state=1000),
    )
    one = kv_bytes(Attention(kinds), engine, 4096, 1, "auto")
    two = kv_bytes(Attention(kinds), engine, 4096, 2, "auto")

    assert 0 < one.n_bytes < two.n_bytes <= 2 * one.n_bytes
    assert one.formula
    assert kv_bytes(Attention((), causal=False), engine, 4096).n_bytes == 0


def test_cross_attention_is_as_long_as_the_encoder_s_input() -> None:
    attention = Attention((LayerGroup(Keeps.ENCODED, 32, 20, 64, 64, 1500),))

    assert kv_bytes(attention, "transformers", 448, 1, "float16").n_bytes == 32 * 2560 * 1500 * 2
