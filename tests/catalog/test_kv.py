"""What a context remembers, against numbers reckoned by hand and those of llama.cpp's log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest

from modelyard.catalog.errors import BadModelFile
from modelyard.catalog.gguf import GgufHeader, read_header
from modelyard.catalog.kv import checkpoint_memory, context_memory, room_for

if TYPE_CHECKING:
    from tests.catalog.conftest import Folder

MIB = 2**20


def model(folder: Folder, arch: str, values: Mapping[str, object]) -> GgufHeader:
    base = {"general.architecture": arch} | {f"{arch}.{key}": v for key, v in values.items()}
    return read_header(folder.write(base=base))


GQA = {
    "block_count": 12,
    "embedding_length": 1024,
    "attention.head_count": 16,
    "attention.head_count_kv": 8,
}
GEMMA3 = {
    "block_count": 12,
    "embedding_length": 640,
    "attention.head_count": 4,
    "attention.head_count_kv": 1,
    "attention.key_length": 256,
    "attention.value_length": 256,
    "attention.sliding_window": 512,
}


@pytest.mark.parametrize(
    ("context", "parallel", "expected"),
    [
        # 12 layers x 8 heads x (64 + 64) numbers x 2 bytes = 24 KiB a token
        (4096, 1, 96 * MIB),
        (8192, 4, 192 * MIB),
        # rounded up to 256 tokens for each sequence
        (1, 1, 6 * MIB),
        (1000, 3, 3 * 512 * 24 * 1024),
        # shared by four
        (4096, -1, 96 * MIB),
    ],
)
def test_grouped_heads_take_their_keys_and_values_for_every_token(
    folder: Folder, context: int, parallel: int, expected: int
) -> None:
    header = model(folder, "llama", GQA)

    assert context_memory(header, room_for(context, parallel, 512)).n_bytes == expected


def test_without_grouping_every_head_has_keys_and_values(folder: Folder) -> None:
    header = model(folder, "gpt2", {k: v for k, v in GQA.items() if "kv" not in k})

    assert context_memory(header, room_for(4096, 1, 512)).n_bytes == 192 * MIB


@pytest.mark.parametrize(
    ("context", "parallel", "expected"),
    [
        # as llama.cpp logged them: 2 layers keep all tokens, 10 keep 512 + 512 of the batch
        (8192, 1, (16 + 10) * MIB),
        (8192, 2, (16 + 20) * MIB),
        (8192, -1, (16 + 25) * MIB),
        (512, 1, (1 + 5) * MIB),
    ],
)
def test_layers_with_a_window_keep_the_window_and_a_batch(
    folder: Folder, context: int, parallel: int, expected: int
) -> None:
    header = model(folder, "gemma3", GEMMA3)

    assert context_memory(header, room_for(context, parallel, 512)).n_bytes == expected


KIB = 1024


@pytest.mark.parametrize(
    ("arch", "values", "expected"),
    [
        pytest.param(
            "deci",
            {**GQA, "block_count": 3, "attention.head_count_kv": [8, 0, 2]},
            # (8 + 0 + 2) heads x 128 numbers x 2 bytes x 4096 tokens
            10 * 128 * 2 * 4096,
            id="heads differ by layer",
        ),
        pytest.param(
            "deepseek2",
            {
                "block_count": 2,
                "embedding_length": 5120,
                "attention.head_count": 128,
                "attention.head_count_kv": 1,
                "attention.key_length": 576,
                "attention.value_length": 512,
                "attention.key_length_mla": 192,
                "attention.value_length_mla": 128,
                "attention.kv_lora_rank": 512,
                "rope.dimension_count": 64,
            },
            # one vector of 512 + 64 numbers, of which the value is a part
            2 * 576 * 2 * 4096,
            id="compressed vector",
        ),
        pytest.param(
            "gpt-oss",
            {**GQA, "block_count": 4, "attention.sliding_window": 128},
            # two layers keep 4096 tokens, two 128 + 512 -> 768
            2 * 8 * 128 * 2 * (4096 + 768),
            id="every second layer has a window",
        ),
        pytest.param(
            "smallthinker",
            {**GQA, "block_count": 4, "attention.sliding_window": 1024},
            8 * 128 * 2 * (4096 + 3 * 1536),
            id="the first layer of four sees all",
        ),
        pytest.param(
            "gemma4",
            {
                **GEMMA3,
                "block_count": 3,
                "attention.sliding_window_pattern": [True, True, False],
                "attention.key_length_swa": 128,
                "attention.value_length_swa": 128,
            },
            # windowed heads are half as wide: 2 layers x 256 numbers, and 1 x 512
            2 * (2 * 256 * 1024 + 512 * 4096),
            id="the file tells which layers have a window",
        ),
        pytest.param(
            "phi3",
            {**GQA, "attention.sliding_window": 2048},
            96 * MIB,
            id="a window that the engine does not use",
        ),
        pytest.param(
            "mamba",
            {
                "block_count": 2,
                "embedding_length": 768,
                "attention.head_count": 0,
                "ssm.conv_kernel": 4,
                "ssm.inner_size": 1536,
                "ssm.state_size": 16,
            },
            # two layers x (3 x 1536 + 16 x 1536) numbers x 4 bytes
            2 * (3 * 1536 + 16 * 1536) * 4,
            id="only states",
        ),
        pytest.param(
            "jamba",
            {
                **GQA,
                "block_count": 2,
                "attention.head_count_kv": [0, 8],
                "ssm.conv_kernel": 4,
                "ssm.inner_size": 2048,
                "ssm.state_size": 16,
            },
            19 * 2048 * 4 + 8 * 128 * 2 * 4096,
            id="states where there are no heads",
        ),
        pytest.param(
            "qwen3next",
            {
                **GQA,
                "block_count": 4,
                "ssm.conv_kernel": 4,
                "ssm.inner_size": 4096,
                "ssm.state_size": 128,
                "ssm.group_count": 16,
            },
            # every fourth layer attends; the others carry 3 x (4096 + 2 x 16 x 128) + 128 x 4096
            8 * 128 * 2 * 4096 + 3 * 4 * (3 * 8192 + 128 * 4096),
            id="every fourth layer attends",
        ),
        pytest.param(
            "rwkv7",
            {
                "block_count": 2,
                "embedding_length": 512,
                "attention.head_count": 0,
                "wkv.head_size": 64,
                "token_shift_count": 2,
            },
            2 * 4 * (2 * 512 + 512 * 64),
            id="rwkv",
        ),
        pytest.param(
            "lfm2",
            {
                **GQA,
                "block_count": 2,
                "attention.head_count_kv": [0, 8],
                "shortconv.l_cache": 3,
            },
            4 * 1024 * 2 + 8 * 128 * 2 * 4096,
            id="short convolutions",
        ),
        pytest.param(
            "gemma3n",
            {**GQA, "block_count": 30},
            20 * 8 * 128 * 2 * 4096,
            id="later layers share",
        ),
        pytest.param("bert", {**GQA, "attention.causal": False}, 0, id="an encoder"),
    ],
)
def test_each_architecture_remembers_in_its_own_way(
    folder: Folder, arch: str, values: Mapping[str, object], expected: int
) -> None:
    header = model(folder, arch, values)

    assert context_memory(header, room_for(4096, 1, 512)).n_bytes == expected


def test_checkpoints_are_copies_of_windows_and_states(folder: Folder) -> None:
    plain = model(folder, "llama", GQA)
    windowed = model(folder, "gemma3", GEMMA3)

    assert checkpoint_memory(plain, room_for(8192, 1, 512), 4).n_bytes == 0
    assert checkpoint_memory(windowed, room_for(8192, 1, 512), 4).n_bytes == 4 * 5 * MIB
    assert checkpoint_memory(windowed, room_for(8192, 2, 512), 1).n_bytes == 2 * 5 * MIB


@pytest.mark.parametrize(
    "values",
    [
        {**GQA, "block_count": 100_000},
        {**GQA, "block_count": "twelve"},
        {**GQA, "attention.head_count_kv": [8]},
        {**GEMMA3, "attention.sliding_window_pattern": [True]},
    ],
)
def test_a_header_that_contradicts_itself_is_refused(
    folder: Folder, values: Mapping[str, object]
) -> None:
    header = model(folder, "gemma3", values)

    with pytest.raises(BadModelFile):
        context_memory(header, room_for(4096, 1, 512))
