"""The memory of an engine, part by part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest

from modelyard.catalog.estimate import PROCESS_MIB, estimate
from modelyard.catalog.ggml import KNOWN_TYPES
from modelyard.catalog.gguf import read_header
from modelyard.catalog.terms import Estimate
from modelyard.core.specs import Task

if TYPE_CHECKING:
    from tests.catalog.conftest import Folder

WORDS = {"tokenizer.ggml.tokens": ["w"] * 1000}
MIB = 2**20


def parts(found: Estimate) -> dict[str, float]:
    return {term.name: term.mib for term in found.terms}


@pytest.fixture
def mid() -> Mapping[str, object]:
    """The shape of a model whose buffers llama.cpp logged: 12 layers, 1024 wide."""
    return {
        "llama.block_count": 12,
        "llama.embedding_length": 1024,
        "llama.feed_forward_length": 2816,
        "llama.attention.head_count": 16,
        "llama.attention.head_count_kv": 8,
        "llama.context_length": 8192,
        **WORDS,
    }


def test_the_parts_are_those_the_engine_logs(folder: Folder, mid: Mapping[str, object]) -> None:
    found = estimate(
        read_header(folder.write(extra=mid)), 210 * MIB, context=2048, parallel=1, ubatch=512
    )

    assert parts(found) == {
        "weights": 210.0,
        "kv cache": 48.0,
        # 512 x (4 x (3 x 2816 + 5 x 1024) + 2 x 2816 + 2 x 2048) bytes; logged 28.5 without
        # the converted copy of 2.75 MiB
        "compute buffer": 31.25,
        "outputs": 4 * 2024 / MIB,
        "process": PROCESS_MIB + 230_000 / MIB,
    }
    assert found.total_mib == 330


def test_without_a_context_the_model_says_how_much(
    folder: Folder, mid: Mapping[str, object]
) -> None:
    header = read_header(folder.write(extra=mid))

    assert estimate(header, 0).context == 8192
    assert estimate(header, 0, context=1000, parallel=3).context == 3 * 512


def test_a_file_that_does_not_tell_its_context_is_given_4096(folder: Folder) -> None:
    header = read_header(folder.write(without=["llama.context_length"]))

    assert estimate(header, 0).context == 4096


@pytest.mark.parametrize(
    ("name", "copied"),
    [("Q4_0", True), ("Q4_K", True), ("IQ4_NL", True), ("Q8_0", False), ("Q6_K", False)],
)
def test_some_four_bit_formats_are_held_twice(folder: Folder, name: str, copied: bool) -> None:
    kind, block, block_bytes = next(
        (t.id, t.block, t.block_bytes) for t in KNOWN_TYPES.values() if t.name == name
    )
    size = 1024 * 1024 // block * block_bytes
    path = folder.write(
        tensors=(
            ("token_embd.weight", (1024, 1024), kind, size),
            ("output.weight", (1024, 1024), kind, size),
            ("output_norm.weight", (1024,), 0, 4096),
        )
    )

    repacked = parts(estimate(read_header(path), 0)).get("repacked weights")

    assert repacked == (size / MIB if copied else None)


def test_the_embedding_table_is_copied_too_where_it_is_the_output_layer(folder: Folder) -> None:
    size = 1024 * 1024 // 32 * 18
    path = folder.write(tensors=(("token_embd.weight", (1024, 1024), 2, size),))

    assert parts(estimate(read_header(path), 0))["repacked weights"] == size / MIB


def test_experts_count_as_many_as_one_token_uses(folder: Folder, mid: Mapping[str, object]) -> None:
    experts = {"llama.expert_used_count": 8, "llama.expert_feed_forward_length": 768}
    header = read_header(folder.write(extra={**mid, **experts, "llama.embedding_length": 2048}))

    found = parts(estimate(header, 0, context=2048, parallel=1))

    # 512 x (4 x (2 x 8 x 2048 + 6 x 2048) + 2 x 6144 + 2 x 2048) bytes
    assert found["compute buffer"] == 96.0


def test_a_model_that_reads_computes_its_input_at_once_and_keeps_every_score(
    folder: Folder, mid: Mapping[str, object]
) -> None:
    header = read_header(folder.write(extra={**mid, "llama.pooling_type": 3}))

    found = estimate(header, 0)
    asked = estimate(header, 0, context=1024, parallel=1)

    assert found.context == 2048
    assert parts(found)["outputs"] == 2048 * 4 * 2024 / MIB
    assert parts(asked)["outputs"] == 1024 * 4 * 2024 / MIB


def test_a_long_context_is_not_taken_for_reading_unless_asked_for(
    folder: Folder, mid: Mapping[str, object]
) -> None:
    long = {**mid, "llama.context_length": 32768}
    header = read_header(folder.write(extra=long))

    reading = frozenset({Task.EMBEDDING})

    assert estimate(header, 0, tasks=reading).context == 2048
    assert estimate(header, 0, context=32768, tasks=reading).context == 32768


def test_room_for_all_that_a_model_was_trained_for_is_made_only_on_request(
    folder: Folder, mid: Mapping[str, object]
) -> None:
    header = read_header(folder.write(extra={**mid, "llama.context_length": 131072}))

    assert estimate(header, 0).context == 16384
    assert estimate(header, 0, context=0).context == 131072


def test_an_encoder_has_no_cache_and_masks_its_batch_only(
    folder: Folder, mid: Mapping[str, object]
) -> None:
    header = read_header(folder.write(extra={**mid, "llama.attention.causal": False}))

    found = parts(estimate(header, 0, context=4096, ubatch=512))

    assert "kv cache" not in found
    # 512 x (4 x (2 x 2816 + 5 x 1024) + 2 x 2816 + 2 x 512) bytes
    assert found["compute buffer"] == 512 * (4 * 10752 + 5632 + 1024) / MIB


def test_what_the_server_keeps_beside_the_context_is_counted(folder: Folder) -> None:
    window = {"general.architecture": "gemma2"} | {
        f"gemma2.{key}": value
        for key, value in {
            "block_count": 2,
            "embedding_length": 1024,
            "attention.head_count": 8,
            "attention.head_count_kv": 8,
            "attention.sliding_window": 1024,
            "context_length": 4096,
        }.items()
    }
    header = read_header(folder.write(base=window))

    found = parts(estimate(header, 0, parallel=2, checkpoints=3, prompt_cache_mib=100))

    # one of two layers: 4 KiB a token, 1024 tokens, 2 x 3 copies
    assert found["checkpoints"] == 24.0
    assert found["prompt cache"] == 100.0
