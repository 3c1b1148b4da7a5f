"""The weights of a Hugging Face folder: which files, whether all are there, and how large.

Laws of this file:
- Sizes are summed over the files' headers, never reckoned from a number of parameters: headers
  count packing, scales and zero points as they are stored.
- Only the files that the index names are read; consolidated copies and `.bin` duplicates beside
  them are not weights.
- Everything that is missing is told at once, with the names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from modelyard.catalog.errors import BadModelFile
from modelyard.catalog.json_object import JsonObject, is_pointer, pointer_error, read_object
from modelyard.catalog.safetensors import SafetensorsHeader, StoredTensor, read_safetensors

INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
_INDEX_BYTES: Final = 16 * 2**20
_MOST_SHARDS: Final = 2048
_NAMED: Final = 3

_SHARD: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.(safetensors|bin)")
_PICKLED: Final = re.compile(r"pytorch_model(-\d{5}-of-\d{5})?\.bin")
_OTHER_WEIGHTS: Final = re.compile(r"(adapter_model|optimizer|consolidated|training_args)")
_UNFINISHED: Final = (".incomplete", ".part", ".partial", ".crdownload", ".aria2", ".tmp")

_PACKED_BITS: Final = frozenset({"U8", "I8", "I32", "U32"})
_SCALES: Final = re.compile(
    r"(scales?|zeros?|zero_point|g_idx|absmax|quant_map|quant_state|bias|scale_inv|_shape)\b"
    r"|weight_scale|input_scale|quant_state"
)


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of one model, as stored. Sizes are bytes."""

    files: tuple[Path, ...]
    n_bytes: int
    by_dtype: Mapping[str, int]
    """Bytes by the format's name of the number (`BF16`, `U8`)."""
    parameters: int
    """How many weights there are, packed ones counted singly."""
    pickled: bool = False
    """They are pickles: loading them runs code, and nothing but their size is known."""
    largest_layer: int = 0
    """Bytes of the largest transformer block, which cannot be split over devices."""
    embedding: int = 0
    """Bytes of the table of words."""
    experts: int = 0
    """Bytes of experts, which could lie in host memory."""
    vision: int = 0
    """Bytes of what sees and hears."""
    layer_bytes: tuple[int, ...] = ()
    """Bytes of each transformer block of the language model, in their order."""


def read_weights(folder: Path, files: Mapping[str, Path], *, pack_factor: int = 1) -> Weights:
    """What the headers of the weights among `files` say; `folder` is for messages.

    `pack_factor` is how many weights a packed integer holds (GPTQ and AWQ of 4 bits: 8 in 32).
    Raises BadModelFile where a file is missing, truncated or no safetensors file.
    """
    names = weight_files(folder, files)
    if not names[0].endswith(".safetensors"):
        return _pickled([files[name] for name in names])
    headers = [read_safetensors(files[name]) for name in names]
    return _summed(headers, pack_factor)


def has_weights(files: Mapping[str, Path]) -> bool:
    """Whether a folder seems to hold a model's weights, whole or not."""
    return any(name == INDEX or _PICKLED.fullmatch(name) or _is_weights(name) for name in files)


def weight_files(folder: Path, files: Mapping[str, Path]) -> list[str]:
    """Names of the files that hold the weights, all present. Raises BadModelFile otherwise."""
    if INDEX in files:
        wanted = _of_index(read_object(files[INDEX], most_bytes=_INDEX_BYTES))
    elif SINGLE in files:
        wanted = [SINGLE]
    else:
        shards = sorted(name for name in files if _is_weights(name))
        wanted = shards or sorted(name for name in files if _PICKLED.fullmatch(name))
        wanted = list(_completed(wanted))
    if not wanted:
        unfinished = sorted(name for name in files if name.endswith(_UNFINISHED))
        why = f"; {unfinished[0]} is not finished" if unfinished else ""
        raise BadModelFile(folder, f"it has no weights (model.safetensors){why}")
    missing = [name for name in wanted if name not in files]
    if missing:
        raise BadModelFile(
            folder,
            f"{len(missing)} of its {len(wanted)} weight files are missing: {_listed(missing)}",
            hint="let the download finish, or fetch the files again",
        )
    return wanted


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors") and "/" not in name and not _OTHER_WEIGHTS.match(name)


def _of_index(index: JsonObject) -> list[str]:
    mapping = index.part("weight_map")
    if mapping is None or not mapping.values:
        raise BadModelFile(index.path, "it has no weight_map, which names the files of the weights")
    names = {name for name in mapping.values.values() if isinstance(name, str)}
    outside = [name for name in names if "/" in name or "\\" in name or name.startswith(".")]
    if outside or len(names) > _MOST_SHARDS:
        raise BadModelFile(index.path, f"its weight_map names {_listed(outside or list(names))}")
    return sorted(names)


def _completed(names: Sequence[str]) -> Iterator[str]:
    """The names, and those of the files that their numbering promises."""
    matches = [_SHARD.fullmatch(name) for name in names]
    promised = {(match["stem"], match["count"], match[4]) for match in matches if match}
    if not promised:
        yield from names
    for stem, count, suffix in sorted(promised):
        for number in range(1, min(int(count), _MOST_SHARDS) + 1):
            yield f"{stem}-{number:05d}-of-{count}.{suffix}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _pickled(paths: Sequence[Path]) -> Weights:
    total = 0
    for path in paths:
        try:
            with path.open("rb") as file:
                if is_pointer(file.read(64)):
                    raise pointer_error(path)
            total += path.stat().st_size
        except OSError as error:
            raise BadModelFile(path, f"it cannot be read: {error.strerror or error}") from error
    return Weights(tuple(paths), total, MappingProxyType({}), 0, pickled=True)


_LAYER: Final = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d{1,4})\.")
_SEES: Final = re.compile(r"(vision|visual|audio|image|vit|multi_modal|mm_|projector)", re.I)
_EXPERT: Final = re.compile(r"\bexperts?\b")


def _summed(headers: Sequence[SafetensorsHeader], pack_factor: int) -> Weights:
    by_dtype: Counter[str] = Counter()
    layers: Counter[int] = Counter()
    parameters = embedding = experts = vision = 0
    for tensor in (tensor for header in headers for tensor in header.tensors):
        by_dtype[tensor.dtype] += tensor.n_bytes
        parameters += _parameters(tensor, pack_factor)
        layer = _LAYER.search(tensor.name)
        if _SEES.search(tensor.name):
            vision += tensor.n_bytes
        elif layer is not None:
            layers[int(layer[1])] += tensor.n_bytes
            experts += tensor.n_bytes if _EXPERT.search(tensor.name) else 0
        elif "embed" in tensor.name or tensor.name.endswith("wte.weight"):
            embedding += tensor.n_bytes
    return Weights(
        files=tuple(header.path for header in headers),
        n_bytes=sum(by_dtype.values()),
        by_dtype=MappingProxyType(dict(by_dtype)),
        parameters=parameters,
        largest_layer=max(layers.values(), default=0),
        embedding=embedding,
        experts=experts,
        vision=vision,
        layer_bytes=tuple(layers[number] for number in sorted(layers)),
    )


def _parameters(tensor: StoredTensor, pack_factor: int) -> int:
    """Weights in a tensor; scales, zero points and the like are no weights."""
    if _SCALES.search(tensor.name) and not tensor.name.endswith((".weight", ".bias")):
        return 0
    if tensor.dtype in _PACKED_BITS:
        return tensor.numbers * pack_factor
    return tensor.numbers
