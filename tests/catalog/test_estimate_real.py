"""Estimates next to what the real llama.cpp allocates, for one tiny model of each architecture."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.catalog.llamacpp_log import buffers
from tests.catalog.tiny_models import MODELS, make

from modelyard.catalog.attention_gguf import attention_of
from modelyard.catalog.estimate import compute_term
from modelyard.catalog.gguf import read_header
from modelyard.catalog.kv import context_memory, kv_bytes, room_for

MIB = 2**20
ROUNDING = 0.011
"""MiB: the log has two digits, and the cache of a hybrid model two lines."""


@pytest.mark.parametrize("name", MODELS)
def test_weights_and_caches_are_those_that_llama_cpp_allocates(tmp_path: Path, name: str) -> None:
    path = make(MODELS[name], tmp_path / "model.gguf")
    header = read_header(path)

    real = buffers(path, 8192, 3)
    room = room_for(8192, 3, 512)
    cache = context_memory(header, room).n_bytes / MIB

    assert header.tensor_bytes / MIB == pytest.approx(real.weights, rel=0.01, abs=ROUNDING)
    assert cache == pytest.approx(real.cache, rel=0.02, abs=ROUNDING)
    # Rather a little too much than too little.
    assert real.compute - 0.1 <= compute_term(header, room).mib <= 1.1 * real.compute


def test_a_cache_of_8_bits_is_as_large_as_llama_cpp_makes_it(tmp_path: Path) -> None:
    path = make(MODELS["GQA, tied (qwen3)"], tmp_path / "model.gguf")
    header = read_header(path)

    real = buffers(path, 8192, 2, "Q8_0")
    ours = kv_bytes(attention_of(header), "llamacpp", 4096, 2, "q8_0", batched_tokens=512)

    assert ours.n_bytes / MIB == pytest.approx(real.cache, rel=0.02, abs=ROUNDING)
    assert ours == context_memory(header, room_for(8192, 2, 512), "q8_0", "q8_0")
