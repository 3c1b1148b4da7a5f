"""Writes GGUF files for tests, byte by byte, well formed unless a test says otherwise."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import pytest

Typed: TypeAlias = tuple[int, object]
"""A value with its GGUF type number, where the Python type does not tell it."""

_SCALARS = {0: "<B", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Gguf:
    """What to write. `tensors` are (name, shape, ggml type, bytes); data is zeros."""

    metadata: Mapping[str, object] = field(default_factory=dict)
    tensors: Sequence[tuple[str, tuple[int, ...], int, int]] = ()
    version: int = 3
    alignment: int = 32

    def header(self) -> bytes:
        parts = [b"GGUF", struct.pack("<IQQ", self.version, len(self.tensors), len(self.metadata))]
        for key, value in self.metadata.items():
            parts += [text(key), typed(value)]
        offset = 0
        for name, shape, kind, size in self.tensors:
            parts += [text(name), struct.pack(f"<I{len(shape)}Q", len(shape), *shape)]
            parts.append(struct.pack("<IQ", kind, offset))
            offset += padded(size, self.alignment)
        return b"".join(parts)

    def content(self) -> bytes:
        header = self.header()
        data = sum(padded(size, self.alignment) for *_, size in self.tensors)
        return header.ljust(padded(len(header), self.alignment), b"\0") + b"\0" * data


def padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def typed(value: object) -> bytes:
    """The bytes of a value, its type number first: uint32 for int, float32 for float."""
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", _STRING) + text(value)
        case [*entries]:
            return struct.pack("<I", _ARRAY) + _array(entries)
        case _:
            raise TypeError(f"no GGUF type for {value!r}")


def _array(entries: Sequence[object]) -> bytes:
    if entries and isinstance(entries[0], str):
        body = b"".join(text(str(entry)) for entry in entries)
        return struct.pack("<IQ", _STRING, len(entries)) + body
    number = 7 if entries and isinstance(entries[0], bool) else 4
    body = b"".join(struct.pack(_SCALARS[number], entry) for entry in entries)
    return struct.pack("<IQ", number, len(entries)) + body


LLAMA: Mapping[str, object] = {
    "general.architecture": "llama",
    "llama.context_length": 2048,
    "llama.embedding_length": 256,
    "llama.block_count": 4,
    "llama.feed_forward_length": 768,
    "llama.attention.head_count": 8,
    "llama.attention.head_count_kv": 2,
    "tokenizer.ggml.tokens": [f"t{number}" for number in range(300)],
}
TENSORS = (
    ("token_embd.weight", (256, 300), 0, 256 * 300 * 4),
    ("blk.0.attn_q.weight", (256, 256), 8, 256 * 256 // 32 * 34),
)


class Folder:
    """A folder that model files are written into."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(
        self,
        name: str = "model.gguf",
        extra: Mapping[str, object] | None = None,
        *,
        without: Sequence[str] = (),
        tensors: Sequence[tuple[str, tuple[int, ...], int, int]] = TENSORS,
        base: Mapping[str, object] = LLAMA,
        version: int = 3,
    ) -> Path:
        """Write a small llama model, changed as told, and return its path."""
        metadata = {**base, **(extra or {})}
        for key in without:
            del metadata[key]
        return self.raw(name, Gguf(metadata, tensors, version).content())

    def raw(self, name: str, content: bytes) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)
