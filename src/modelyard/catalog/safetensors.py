"""The header of a safetensors file: its tensors and how large they are, without reading them.

Laws of this file:
- A model file is hostile input: the header's length and the number of its tensors are bounded
  before it is parsed, and what it says must agree with the size of the file.
- Every refusal is a `BadModelFile` that names the file and the tensor.

The layout is that of the format's own description (huggingface/safetensors, README.md, "Format"):
eight bytes of length, that many bytes of JSON, and the tensors end to end without holes.
"""

from __future__ import annotations

import math
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import msgspec

from modelyard.catalog.errors import BadModelFile
from modelyard.catalog.gguf import size_text
from modelyard.catalog.json_object import is_pointer, pointer_error

MAX_HEADER_BYTES: Final = 24 * 2**20
"""A model of 100,000 tensors in one file needs about 14 MiB; the format itself allows 100 MB."""
MAX_TENSORS: Final = 131_072
MAX_DIMENSIONS: Final = 16

DTYPE_BITS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "BOOL": 8,
        "F4": 4,
        "F6_E2M3": 6,
        "F6_E3M2": 6,
        "U8": 8,
        "I8": 8,
        "F8_E5M2": 8,
        "F8_E4M3": 8,
        "F8_E8M0": 8,
        "F8_E4M3FNUZ": 8,
        "F8_E5M2FNUZ": 8,
        "I16": 16,
        "U16": 16,
        "F16": 16,
        "BF16": 16,
        "I32": 32,
        "U32": 32,
        "F32": 32,
        "C64": 64,
        "F64": 64,
        "I64": 64,
        "U64": 64,
    }
)
"""Bits of one number by the format's names (safetensors/src/tensor.rs, `Dtype`)."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as the header describes it. `numbers` is how many numbers it holds as stored:
    packed formats put several weights into one."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    n_bytes: int

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """What a safetensors file says about itself."""

    path: Path
    tensors: tuple[StoredTensor, ...]
    metadata: Mapping[str, str]
    file_bytes: int

    @property
    def tensor_bytes(self) -> int:
        return sum(tensor.n_bytes for tensor in self.tensors)


class _Entry(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


_LENGTH: Final = struct.Struct("<Q")
_DECODER: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ENTRY: Final = msgspec.json.Decoder(_Entry)
_METADATA: Final = msgspec.json.Decoder(dict[str, str])


def read_safetensors(path: Path) -> SafetensorsHeader:
    """Read and check the header of the safetensors file at `path`.

    Raises BadModelFile when the file cannot be read, is no safetensors file, is damaged, is
    smaller than its header says, or is a git-lfs pointer.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadModelFile(path, "it is not a regular file")
        with path.open("rb") as file:
            beginning = file.read(64)
            if is_pointer(beginning):
                raise pointer_error(path)
            length = _header_length(path, beginning, status.st_size)
            file.seek(_LENGTH.size)
            header = file.read(length)
    except OSError as error:
        raise BadModelFile(path, f"it cannot be read: {error.strerror or error}") from error
    if len(header) < length:
        raise BadModelFile(path, "the file became shorter while its header was read")
    return parse_header(path, header, status.st_size)


def _header_length(path: Path, beginning: bytes, file_bytes: int) -> int:
    if len(beginning) < _LENGTH.size:
        raise BadModelFile(path, f"it is no safetensors file: it has {len(beginning)} bytes")
    length = int(_LENGTH.unpack_from(beginning)[0])
    if length > MAX_HEADER_BYTES:
        raise BadModelFile(
            path,
            f"it is no safetensors file, or a damaged one: it announces a header of {length} bytes"
            f" and at most {MAX_HEADER_BYTES} are accepted",
        )
    if _LENGTH.size + length > file_bytes:
        raise BadModelFile(
            path,
            f"the file is truncated: its header needs {_LENGTH.size + length} bytes and the file"
            f" has {file_bytes}",
            hint="let the download finish, or fetch the file again",
        )
    if beginning[_LENGTH.size : _LENGTH.size + 1] != b"{":
        raise BadModelFile(path, "it is no safetensors file: its header does not begin with '{'")
    return length


def parse_header(path: Path, header: bytes, file_bytes: int) -> SafetensorsHeader:
    """The header in `header`, checked against the file's size; `path` is for messages."""
    announced = header.count(b'"data_offsets"')
    if announced > MAX_TENSORS:
        raise BadModelFile(path, f"it has {announced} tensors; {MAX_TENSORS} are accepted")
    allowed = announced + 1024
    if header.count(b":") > 8 * allowed or header.count(b",") > 24 * allowed:
        # Three colons belong to a tensor and a comma to each dimension; without this bound a header
        # of nothing but keys or numbers fills memory before it is refused.
        raise BadModelFile(path, "its header holds many more entries than tensors")
    try:
        # RecursionError: msgspec walks nested values by calls, as deep as Python allows.
        raw = _DECODER.decode(header)
        metadata = _METADATA.decode(raw.pop("__metadata__", msgspec.Raw(b"{}")))
        tensors = tuple(_tensor(path, name, entry) for name, entry in raw.items())
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadModelFile(path, f"its header is damaged: {error}") from error
    return _checked(SafetensorsHeader(path, tensors, metadata, file_bytes), len(header))


def _tensor(path: Path, name: str, raw: msgspec.Raw) -> StoredTensor:
    entry = _ENTRY.decode(raw)
    begin, end = entry.data_offsets
    if not 0 <= begin <= end:
        raise BadModelFile(path, f"tensor {name!r} reaches from byte {begin} to byte {end}")
    if len(entry.shape) > MAX_DIMENSIONS or any(not 0 <= size < 2**48 for size in entry.shape):
        raise BadModelFile(path, f"tensor {name!r} has a shape that cannot be")
    bits = DTYPE_BITS.get(entry.dtype)
    wanted = end - begin if bits is None else -(-math.prod(entry.shape) * bits // 8)
    if wanted != end - begin:
        raise BadModelFile(
            path,
            f"tensor {name!r} has {end - begin} bytes where {entry.dtype} and its shape need"
            f" {wanted}",
        )
    return StoredTensor(name, entry.dtype, tuple(entry.shape), end - begin)


def _checked(header: SafetensorsHeader, header_bytes: int) -> SafetensorsHeader:
    expected = _LENGTH.size + header_bytes + header.tensor_bytes
    if expected > header.file_bytes:
        missing = expected - header.file_bytes
        raise BadModelFile(
            header.path,
            f"the file is truncated: its header describes {size_text(header.tensor_bytes)} of"
            f" tensors and {size_text(missing)} of them are missing",
            hint="let the download finish, or fetch the file again",
        )
    return header
