"""The header reader: what it reads, what it refuses, and in which words."""

from __future__ import annotations

import contextlib
import os
import struct
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.catalog.errors import BadModelFile
from modelyard.catalog.ggml import KNOWN_TYPES
from modelyard.catalog.gguf import GgufHeader, Omitted, read_header, size_text

if TYPE_CHECKING:
    from tests.catalog.conftest import Folder


def refusal(path: Path) -> str:
    with pytest.raises(BadModelFile) as caught:
        read_header(path)
    return caught.value.reason


def test_a_header_tells_architecture_numbers_and_tensors(folder: Folder) -> None:
    header = read_header(folder.write())

    assert header.architecture == "llama"
    assert header.count("block_count") == 4
    assert header.metadata["tokenizer.ggml.tokens"] == Omitted("string", 300)
    assert [(t.name, t.shape, t.type.name, t.offset, t.n_bytes) for t in header.tensors] == [
        ("token_embd.weight", (256, 300), "F32", 0, 307200),
        ("blk.0.attn_q.weight", (256, 256), "Q8_0", 307200, 69632),
    ]
    assert header.tensor_bytes == 376832


def test_the_data_begins_at_the_alignment_and_the_expected_size_is_that_of_the_file(
    folder: Folder,
) -> None:
    header = read_header(folder.write())

    assert header.data_offset % header.alignment == 0
    assert header.expected_bytes == header.data_offset + 376832 == header.file_bytes


def test_version_2_is_read_like_version_3(folder: Folder) -> None:
    assert read_header(folder.write(version=2)).version == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is truncated: the magic number at byte 0 needs 4 bytes"),
        (b"GGML" + bytes(20), "it is no GGUF file: it begins with b'GGML'"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(16), "it is GGUF version 1, which llama.cpp no"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(16), "it is big-endian GGUF"),
        (b"GGUF" + struct.pack("<I", 4) + bytes(16), "it is GGUF version 4; versions 2 and 3"),
        (
            b"GGUF" + struct.pack("<I", 3) + b"\0" * 7,
            "the file is truncated: the number of tensors",
        ),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0),
            "the number of tensors at byte 8 is 9223372036854775808; at most 16384",
        ),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 20_000),
            "the number of metadata entries at byte 16 is 20000; at most 16384",
        ),
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**40),
            "the key of metadata entry 1 of 1 at byte 24 is 1099511627776 bytes long",
        ),
    ],
)
def test_what_is_no_usable_gguf_file_is_refused_with_the_reason(
    folder: Folder, content: bytes, reason: str
) -> None:
    assert refusal(folder.raw("bad.gguf", content)).startswith(reason)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (struct.pack("<I", 99), "'x' at byte 37 has the unknown type 99"),
        (struct.pack("<IIQ", 9, 9, 1), "'x' at byte 37 is an array of arrays"),
        (struct.pack("<IIQ", 9, 42, 1), "'x' at byte 37 is an array of the unknown type 42"),
        (struct.pack("<IIQ", 9, 8, 2**50), "'x' has 1125899906842624 strings; all arrays may have"),
        (struct.pack("<IIQ", 9, 4, 2**50), "'x' at byte 49 reaches past the first 128 MiB"),
        (struct.pack("<IIQ", 9, 4, 100), "the file is truncated: 'x' at byte 49 needs 400 bytes"),
        (struct.pack("<IQ", 8, 70_000), "the file is truncated: 'x' at byte 45 needs 70000 bytes"),
        (
            struct.pack("<IIQQ", 9, 8, 2, 1_000_000),
            "the file is truncated: 'x' at byte 1000057 needs 8 bytes",
        ),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_place(
    folder: Folder, value: bytes, reason: str
) -> None:
    content = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"x" + value

    assert refusal(folder.raw("bad.gguf", content)).startswith(reason)


def test_a_truncated_file_is_named_with_what_is_missing(folder: Folder) -> None:
    path = folder.write()
    os.truncate(path, path.stat().st_size - 200_000)

    assert refusal(path) == (
        "the file is truncated: its header describes 368.0 KiB of tensors and the file has"
        " 172.7 KiB of them (200000 bytes are missing)"
    )


def test_every_prefix_of_a_header_is_refused(folder: Folder) -> None:
    whole = folder.write(tensors=(("a", (32,), 0, 128),), extra={"z": [1, 2]}).read_bytes()

    for length in range(0, len(whole), 7):
        assert "truncated" in refusal(folder.raw("cut.gguf", whole[:length]))


def test_a_key_that_is_there_twice_is_refused(folder: Folder) -> None:
    entry = struct.pack("<Q", 1) + b"x" + struct.pack("<II", 4, 7)
    content = b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + entry * 2

    assert refusal(folder.raw("bad.gguf", content)) == "the key 'x' at byte 41 is there twice"


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ((("a", (32,), 0, 128), ("a", (32,), 0, 128)), "the tensor 'a' at byte"),
        ((("a", (1, 1, 1, 1, 1), 0, 4),), "tensor 'a' at byte"),
        ((("a", (33,), 8, 34),), "tensor 'a' has rows of 33, and Q8_0 packs blocks of 32"),
        ((("a", (32,), 4, 34),), "tensor 'a' has ggml type 4, which llama.cpp no longer loads"),
        ((("a", (2**40,), 0, 4),), "the file is truncated: its header describes 4096.0 GiB of"),
        ((("a", (2**62, 2**62), 0, 4),), "tensor 'a' is larger than any file: its shape is"),
    ],
)
def test_a_tensor_that_cannot_be_is_named(
    folder: Folder, tensors: tuple[tuple[str, tuple[int, ...], int, int], ...], reason: str
) -> None:
    assert refusal(folder.write(tensors=tensors)).startswith(reason)


@pytest.mark.parametrize("alignment", [0, 48, "wide"])
def test_an_alignment_that_is_no_power_of_two_is_refused(
    folder: Folder, alignment: int | str
) -> None:
    path = folder.write(extra={"general.alignment": alignment})

    assert refusal(path).startswith(f"general.alignment is {alignment!r}")


def test_a_tensor_of_a_format_newer_than_the_table_reaches_to_its_neighbour(folder: Folder) -> None:
    header = read_header(
        folder.write(
            tensors=(("new", (256,), 200, 96), ("old", (32,), 0, 128), ("n", (9,), 201, 64))
        )
    )

    assert [tensor.n_bytes for tensor in header.tensors] == [96, 128, 64]
    assert header.tensors[0].type.name == "type 200"


def test_short_arrays_are_kept_and_long_values_are_only_counted(folder: Folder) -> None:
    header = read_header(
        folder.write(
            extra={
                "llama.attention.head_count_kv": [2, 0, 2, 0],
                "scores": list(range(2000)),
                "tokenizer.chat_template": "x" * 100_000,
            }
        )
    )

    assert header.metadata["llama.attention.head_count_kv"] == (2, 0, 2, 0)
    assert header.metadata["scores"] == Omitted("uint32", 2000)
    assert header.metadata["tokenizer.chat_template"] == Omitted("string", 100_000)


def test_counts_are_per_layer_and_a_single_number_stands_for_all(folder: Folder) -> None:
    header = read_header(folder.write(extra={"llama.feed_forward_length": [1, 2, 3, 4, 5]}))

    assert header.counts("attention.head_count_kv", 3) == (2, 2, 2)
    assert header.counts("feed_forward_length", 4) == (1, 2, 3, 4)
    assert header.counts("attention.sliding_window", 4) is None


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("many", "llama.block_count is 'many', which is no count"),
        (1.5, "llama.block_count is 1.5, which is no count"),
        ([1, 2], "llama.block_count is (1, 2), which is no count"),
    ],
)
def test_a_count_that_is_none_is_refused_when_it_is_asked_for(
    folder: Folder, value: object, complaint: str
) -> None:
    header = read_header(folder.write(extra={"llama.block_count": value}))

    with pytest.raises(BadModelFile) as caught:
        header.count("block_count")

    assert caught.value.reason == complaint


def test_too_few_entries_for_the_layers_are_refused(folder: Folder) -> None:
    header = read_header(folder.write(extra={"llama.attention.head_count_kv": [1, 2]}))

    with pytest.raises(BadModelFile, match="has 2 entries for 4 layers"):
        header.counts("attention.head_count_kv", 4)


def test_a_file_that_is_not_there_or_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")

    assert refusal(tmp_path / "none.gguf") == "it cannot be read: No such file or directory"
    assert refusal(tmp_path) == "it is not a regular file"
    assert refusal(tmp_path / "pipe.gguf") == "it is not a regular file"


def test_a_large_vocabulary_costs_little_memory(folder: Folder) -> None:
    tokens = [f"token {number}" for number in range(100_000)]
    path = folder.write(extra={"tokenizer.ggml.tokens": tokens})
    del tokens

    tracemalloc.start()
    header = read_header(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert header.metadata["tokenizer.ggml.tokens"] == Omitted("string", 100_000)
    assert peak < 2 * 2**20


def test_names_that_fill_the_memory_are_refused(folder: Folder) -> None:
    entry = b"".join(
        struct.pack("<Q", 60_000) + str(number).encode().rjust(60_000) + struct.pack("<IB", 0, 1)
        for number in range(400)
    )
    path = folder.raw("fat.gguf", b"GGUF" + struct.pack("<IQQ", 3, 0, 400) + entry)

    assert "fill more than 4 MiB" in refusal(path)


def test_sizes_are_written_for_people() -> None:
    assert [size_text(n) for n in (5, 2048, 4_402_341_478, 10 * 2**20)] == [
        "5 bytes",
        "2.0 KiB",
        "4.1 GiB",
        "10.0 MiB",
    ]


def test_every_known_format_packs_whole_blocks() -> None:
    bits = {t.name: t.block_bytes * 8 / t.block for t in KNOWN_TYPES.values()}

    assert {name: bits[name] for name in ("F16", "Q8_0", "Q4_K", "Q6_K", "MXFP4")} == {
        "F16": 16.0,
        "Q8_0": 8.5,
        "Q4_K": 4.5,
        "Q6_K": 6.5625,
        "MXFP4": 4.25,
    }


@st.composite
def damage(draw: st.DrawFn) -> list[tuple[int, bytes]]:
    """Bytes to write over a file, each with its place."""
    numbers = st.sampled_from([0, 1, 2**16, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
    piece = st.one_of(
        st.binary(min_size=1, max_size=9), numbers.map(lambda n: struct.pack("<Q", n))
    )
    return draw(st.lists(st.tuples(st.integers(0, 900), piece), min_size=1, max_size=4))


@settings(max_examples=300)
@given(changes=damage(), length=st.integers(0, 2000))
def test_a_damaged_file_is_read_or_refused_and_nothing_else(
    folder: Folder, changes: list[tuple[int, bytes]], length: int
) -> None:
    tokens = {"tokenizer.ggml.tokens": ["a", "bc"], "llama.layers": [1, 2, 3], "pi": 3.14}
    small = folder.write("small.gguf", tokens, tensors=(("a", (32,), 8, 34), ("b", (8,), 0, 32)))
    content = bytearray(small.read_bytes())
    for place, piece in changes:
        content[place : place + len(piece)] = piece
    path = folder.raw("mutant.gguf", bytes(content[: max(length, 24)]))

    with contextlib.suppress(BadModelFile):
        header = read_header(path)

        assert isinstance(header, GgufHeader)
        assert header.expected_bytes <= header.file_bytes
