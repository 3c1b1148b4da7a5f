"""The header of a GGUF file: what the model is and how large, without reading its tensors.

Laws of this file:
- A model file is hostile input. Counts, lengths and the header as a whole are bounded, so that no
  file costs more than a fraction of a second and a few MiB, whatever it claims.
- Token lists and other long values are skipped and remembered as `Omitted(type, length)`.
- Every refusal is a `BadModelFile` that names the file, the field and the byte.

The layout is that of the GGUF specification (ggml-org/ggml, docs/gguf.md); the limits of what a
loader accepts (four dimensions, no array of arrays, an alignment that is a power of two, no key
twice) are those of llama.cpp's own loader (ggml/src/gguf.cpp).
"""

from __future__ import annotations

import itertools
import math
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, NoReturn, TypeAlias

from modelyard.catalog.errors import BadModelFile
from modelyard.catalog.ggml import REMOVED_TYPES, GgmlType, ggml_type
from modelyard.catalog.scanner import Scanner

MAX_METADATA: Final = 16_384
MAX_TENSORS: Final = 16_384
MAX_DIMENSIONS: Final = 4
MAX_KEPT_STRING: Final = 64 * 1024
MAX_KEPT_ARRAY: Final = 1024
"""Elements. Arrays with one number per layer are kept, token lists are not."""
DEFAULT_ALIGNMENT: Final = 32

_VERSIONS: Final = (2, 3)


@dataclass(frozen=True, slots=True)
class Omitted:
    """A value that is in the file and was not kept: its type and its length."""

    type: str
    length: int


Scalar: TypeAlias = str | int | float | bool
Value: TypeAlias = Scalar | tuple[int | float | bool, ...] | Omitted


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as the header describes it; `offset` counts from the start of the tensor data."""

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    offset: int
    n_bytes: int

    @property
    def numbers(self) -> int:
        """How many weights it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file says about itself. Sizes are in bytes."""

    path: Path
    version: int
    architecture: str | None
    """None in the second and later files of a split model."""
    metadata: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...]
    alignment: int
    data_offset: int
    expected_bytes: int
    """Size the file must at least have to hold every tensor of its header."""
    file_bytes: int

    @property
    def tensor_bytes(self) -> int:
        return sum(tensor.n_bytes for tensor in self.tensors)

    def of_model(self, key: str) -> Value | None:
        """The value of `{architecture}.{key}`."""
        return self.metadata.get(f"{self.architecture}.{key}")

    def count(self, key: str) -> int | None:
        """`{architecture}.{key}` as a number of things, None where the file does not say.

        Raises BadModelFile where the value cannot be a count.
        """
        return self._counted(key, self.of_model(key))

    def counts(self, key: str, layers: int) -> tuple[int, ...] | None:
        """`{architecture}.{key}` for each layer; a single number stands for every layer.

        Raises BadModelFile where a value cannot be a count or a layer has none.
        """
        value = self.of_model(key)
        if not isinstance(value, tuple):
            single = self._counted(key, value)
            return None if single is None else (single,) * layers
        if len(value) < layers:
            self._refuse(key, f"has {len(value)} entries for {layers} layers")
        return tuple(self._counted(key, entry) or 0 for entry in value[:layers])

    def _counted(self, key: str, value: Value | None) -> int | None:
        if value is None:
            return None
        if not isinstance(value, int) or not 0 <= value < 2**32:
            self._refuse(key, f"is {value!r}, which is no count")
        return int(value)

    def _refuse(self, key: str, problem: str) -> NoReturn:
        raise BadModelFile(self.path, f"{self.architecture}.{key} {problem}")


def read_header(path: Path) -> GgufHeader:
    """Read and check the header of the GGUF file at `path`.

    Raises BadModelFile when the file cannot be read, is not little-endian GGUF version 2 or 3, is
    damaged, or is smaller than its header says.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            # Opening a pipe would wait for its writer for ever.
            raise BadModelFile(path, "it is not a regular file")
        with path.open("rb", buffering=0) as file:
            return _Header(Scanner(file, path, status.st_size)).read()
    except OSError as error:
        raise BadModelFile(path, f"it cannot be read: {error.strerror or error}") from error


def size_text(n_bytes: int) -> str:
    """Bytes as a person reads them: 512 bytes, 3.9 MiB, 4.1 GiB."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if n_bytes >= unit:
            return f"{n_bytes / unit:.1f} {name}"
    return f"{n_bytes} bytes"


_SCALARS: Final[Mapping[int, tuple[str, struct.Struct]]] = MappingProxyType(
    {
        0: ("uint8", struct.Struct("<B")),
        1: ("int8", struct.Struct("<b")),
        2: ("uint16", struct.Struct("<H")),
        3: ("int16", struct.Struct("<h")),
        4: ("uint32", struct.Struct("<I")),
        5: ("int32", struct.Struct("<i")),
        6: ("float32", struct.Struct("<f")),
        7: ("bool", struct.Struct("<?")),
        10: ("uint64", struct.Struct("<Q")),
        11: ("int64", struct.Struct("<q")),
        12: ("float64", struct.Struct("<d")),
    }
)
_STRING: Final = 8
_ARRAY: Final = 9


class _Header:
    """Reads the parts of a header in their order."""

    def __init__(self, scanner: Scanner) -> None:
        self._scanner = scanner

    def read(self) -> GgufHeader:
        scanner = self._scanner
        version = self._preamble()
        n_tensors = self._bounded_count("the number of tensors", MAX_TENSORS)
        n_metadata = self._bounded_count("the number of metadata entries", MAX_METADATA)
        metadata = self._metadata(n_metadata)
        raw_tensors = self._tensors(n_tensors)
        alignment = self._alignment(metadata)
        data_offset = -(-scanner.position // alignment) * alignment
        tensors = self._sized(raw_tensors, scanner.file_bytes - data_offset, alignment)
        data_end = max((tensor.offset + tensor.n_bytes for tensor in tensors), default=0)
        expected = data_offset + data_end if tensors else scanner.position
        if expected > scanner.file_bytes:
            raise BadModelFile(
                scanner.path,
                f"the file is truncated: its header describes {size_text(data_end)} of tensors"
                f" and the file has {size_text(max(0, scanner.file_bytes - data_offset))} of them"
                f" ({expected - scanner.file_bytes} bytes are missing)",
                hint="let the download finish, or fetch the file again",
            )
        architecture = metadata.get("general.architecture")
        if architecture is not None and not isinstance(architecture, str):
            scanner.fail(f"general.architecture is {architecture!r} where text belongs")
        return GgufHeader(
            path=scanner.path,
            version=version,
            architecture=architecture,
            metadata=MappingProxyType(metadata),
            tensors=tensors,
            alignment=alignment,
            data_offset=data_offset,
            expected_bytes=expected,
            file_bytes=scanner.file_bytes,
        )

    def _preamble(self) -> int:
        scanner = self._scanner
        magic = scanner.take(4, "the magic number")
        if magic != b"GGUF":
            scanner.fail(f"it is no GGUF file: it begins with {magic!r}, not b'GGUF'")
        version = scanner.u32("the format version")
        if version & 0xFFFF == 0:
            scanner.fail("it is big-endian GGUF; only little-endian files can be loaded here")
        if version == 1:
            raise BadModelFile(
                scanner.path,
                "it is GGUF version 1, which llama.cpp no longer loads",
                hint="convert the model again with a current llama.cpp",
            )
        if version not in _VERSIONS:
            scanner.fail(f"it is GGUF version {version}; versions 2 and 3 are understood")
        return version

    def _bounded_count(self, what: str, most: int) -> int:
        at = self._scanner.position
        count = self._scanner.u64(what)
        if count > most:
            self._scanner.fail(f"{what} at byte {at} is {count}; at most {most} are accepted")
        return count

    def _metadata(self, count: int) -> dict[str, Value]:
        scanner = self._scanner
        metadata: dict[str, Value] = {}
        for index in range(count):
            at = scanner.position
            key = self._name(f"the key of metadata entry {index + 1} of {count}")
            if key in metadata:
                scanner.fail(f"the key {key!r} at byte {at} is there twice")
            metadata[key] = self._value(key, scanner.u32(f"the type of {key!r}"))
        return metadata

    def _name(self, what: str) -> str:
        scanner = self._scanner
        at = scanner.position
        length = scanner.u64(f"the length of {what}")
        if length > MAX_KEPT_STRING:
            scanner.fail(
                f"{what} at byte {at} is {length} bytes long; names have {MAX_KEPT_STRING}"
            )
        scanner.keep(length, what)
        return scanner.take(length, what).decode("utf-8", errors="replace")

    def _value(self, key: str, type_id: int) -> Value:
        scanner = self._scanner
        if type_id == _STRING:
            length = scanner.u64(f"the length of {key!r}")
            if length > MAX_KEPT_STRING:
                scanner.skip(length, repr(key))
                return Omitted("string", length)
            scanner.keep(length, repr(key))
            return scanner.take(length, repr(key)).decode("utf-8", errors="replace")
        if type_id == _ARRAY:
            return self._array(key)
        if type_id not in _SCALARS:
            scanner.fail(f"{key!r} at byte {scanner.position} has the unknown type {type_id}")
        layout = _SCALARS[type_id][1]
        value: int | float | bool = layout.unpack(scanner.take(layout.size, repr(key)))[0]
        return value

    def _array(self, key: str) -> Value:
        scanner = self._scanner
        at = scanner.position
        element = scanner.u32(f"the element type of {key!r}")
        length = scanner.u64(f"the length of {key!r}")
        if element == _STRING:
            scanner.skip_strings(length, repr(key))
            return Omitted("string", length)
        if element == _ARRAY:
            scanner.fail(f"{key!r} at byte {at} is an array of arrays, which llama.cpp cannot load")
        if element not in _SCALARS:
            scanner.fail(f"{key!r} at byte {at} is an array of the unknown type {element}")
        name, layout = _SCALARS[element]
        if length > MAX_KEPT_ARRAY:
            scanner.skip(length * layout.size, repr(key))
            return Omitted(name, length)
        scanner.keep(length * 32, repr(key))
        content = scanner.take(length * layout.size, repr(key))
        return tuple(value for (value,) in layout.iter_unpack(content))

    def _alignment(self, metadata: Mapping[str, Value]) -> int:
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 1 <= alignment < 2**32:
            self._scanner.fail(f"general.alignment is {alignment!r} where a size in bytes belongs")
        if alignment & (alignment - 1):
            self._scanner.fail(f"general.alignment is {alignment}, which is no power of two")
        return alignment

    def _tensors(self, count: int) -> list[tuple[str, tuple[int, ...], int, int]]:
        scanner = self._scanner
        found: list[tuple[str, tuple[int, ...], int, int]] = []
        names: set[str] = set()
        for index in range(count):
            at = scanner.position
            name = self._name(f"the name of tensor {index + 1} of {count}")
            if name in names:
                scanner.fail(f"the tensor {name!r} at byte {at} is there twice")
            names.add(name)
            what = f"the description of tensor {name!r}"
            dimensions = scanner.u32(what)
            if dimensions > MAX_DIMENSIONS:
                scanner.fail(f"tensor {name!r} at byte {at} has {dimensions} dimensions, 4 at most")
            shape = struct.unpack(f"<{dimensions}Q", scanner.take(8 * dimensions, what))
            found.append((name, shape, scanner.u32(what), scanner.u64(what)))
        return found

    def _sized(
        self, raw: list[tuple[str, tuple[int, ...], int, int]], data_bytes: int, alignment: int
    ) -> tuple[TensorInfo, ...]:
        """Give each tensor its size: by its type, or up to its neighbour where the type is new."""
        ends = sorted({offset for *_, offset in raw} | {max(0, data_bytes)})
        following = dict(itertools.pairwise(ends))
        tensors: list[TensorInfo] = []
        for name, shape, type_id, offset in raw:
            if type_id in REMOVED_TYPES:
                raise BadModelFile(
                    self._scanner.path,
                    f"tensor {name!r} has ggml type {type_id}, which llama.cpp no longer loads",
                    hint="quantise the model again with a current llama.cpp",
                )
            if offset % alignment:
                self._scanner.fail(
                    f"tensor {name!r} begins at {offset}, not at a multiple of {alignment}"
                )
            kind = ggml_type(type_id)
            if kind.block_bytes:
                n_bytes = self._by_type(name, shape, kind)
            else:
                n_bytes = following.get(offset, offset) - offset
            tensors.append(TensorInfo(name, shape, kind, offset, n_bytes))
        return tuple(tensors)

    def _by_type(self, name: str, shape: tuple[int, ...], kind: GgmlType) -> int:
        row = shape[0] if shape else 1
        if row % kind.block:
            self._scanner.fail(
                f"tensor {name!r} has rows of {row}, and {kind.name} packs blocks of {kind.block}"
            )
        n_bytes = row // kind.block * kind.block_bytes
        for size in shape[1:]:
            n_bytes *= size
        if n_bytes >= 2**63:
            self._scanner.fail(f"tensor {name!r} is larger than any file: its shape is {shape}")
        return n_bytes
