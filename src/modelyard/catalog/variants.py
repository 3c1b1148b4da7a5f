"""GGUF files that lie together: quantisations of one model, and projectors for it.

Laws of this file:
- Every quantisation is a model of its own; their common name means the one that a person would
  take without thinking.
- A projector is given to a model only where it can belong to no other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from modelyard.catalog.classify import Input, shard_of
from modelyard.catalog.gguf import GgufHeader
from modelyard.catalog.quantization import without_quantization

PREFERRED: Final = ("Q4_K_M", "UD-Q4_K_XL", "MXFP4", "Q5_K_M", "Q4_K_S", "Q6_K", "Q8_0", "Q4_0")
"""llama.cpp's own `-hf` takes Q4_K_M where nothing is said; the rest is by nearness to it."""
_PROJECTOR_ORDER: Final = ("F16", "BF16", "Q8_0", "F32")
_PROJECTOR_WORD: Final = re.compile(r"[-_.]?mmproj[-_.]?(model[-_.]?)?", re.I)


def stem_of(path: Path) -> str:
    """The name of a model file without suffix and shard number."""
    shard = shard_of(path.name)
    return path.stem if shard is None else shard.stem


def base_name(path: Path) -> str:
    """What the quantisations of one model have in common."""
    return without_quantization(stem_of(path))[0]


def preferred(paths: Iterable[Path]) -> Path:
    """The quantisation that the common name means."""

    def rank(path: Path) -> tuple[int, str]:
        quantization = without_quantization(stem_of(path))[1]
        known = quantization in PREFERRED
        return (PREFERRED.index(quantization) if known and quantization else 99, path.name)

    return min(paths, key=rank)


def projector_for(model: Path, others: Sequence[Path], projectors: Sequence[Path]) -> Path | None:
    """The projector of `model`, which lies beside the models `others` (with itself)."""
    base = _folded(base_name(model))
    bases = {_folded(base_name(path)) for path in others}
    named = [path for path in projectors if base in _folded(_bare(path))]
    if not named and len(bases) == 1:
        named = list(projectors)

    def rank(path: Path) -> tuple[int, str]:
        quantization = without_quantization(f"-{path.stem}")[1] or ""
        order = _PROJECTOR_ORDER
        return (order.index(quantization) if quantization in order else len(order), path.name)

    return min(named, key=rank, default=None)


def projector_inputs(header: GgufHeader) -> frozenset[Input]:
    """What a projector lets its model take in (`clip.has_vision_encoder`, …, in llama.cpp's
    gguf-py constants); a file that does not say is of the time when there were only images."""
    said: Mapping[str, Input] = {
        "clip.has_vision_encoder": Input.IMAGE,
        "clip.has_audio_encoder": Input.AUDIO,
    }
    found = {kind for key, kind in said.items() if header.metadata.get(key) is True}
    return frozenset(found or {Input.IMAGE})


def _bare(path: Path) -> str:
    return _PROJECTOR_WORD.sub("", without_quantization(path.stem)[0])


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
