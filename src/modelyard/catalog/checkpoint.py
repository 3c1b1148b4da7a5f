"""A model on disk: one GGUF file, or several that belong together.

Laws of this file:
- A split model is opened by its first file and is whole or not there at all.
- What was read of an unchanged file or folder is not read again (`HeaderCache`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from modelyard.catalog.classify import Shard, Verdict, classify, shard_of
from modelyard.catalog.errors import BadModelFile
from modelyard.catalog.folder_checkpoint import FolderCheckpoint
from modelyard.catalog.gguf import GgufHeader, read_header
from modelyard.catalog.recent import Recent, stamp_of

CACHED_HEADERS: Final = 256
_NAMED_MISSING: Final = 3


class HeaderCache:
    """GGUF headers and folders already read. Safe to share between threads."""

    def __init__(self, size: int = CACHED_HEADERS) -> None:
        self._headers: Recent[GgufHeader] = Recent(size)
        self.folders: Recent[FolderCheckpoint] = Recent(4 * size)

    def __repr__(self) -> str:
        return f"<HeaderCache {len(self._headers)} of {self._headers.size}>"

    def read(self, path: Path) -> GgufHeader:
        """The header of the file at `path`. Raises BadModelFile, as `read_header` does."""
        return self._headers.get(stamp_of(path), lambda: read_header(path))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's header (with the tensors of all its files), its files, and what it is for."""

    header: GgufHeader
    files: tuple[Path, ...]
    file_bytes: int
    verdict: Verdict
    revision: str
    """Another one when a file of the model was replaced or rewritten."""


def open_checkpoint(path: Path, headers: HeaderCache) -> Checkpoint:
    """Read the model whose file, or first file of several, is at `path`.

    Raises BadModelFile where a file is missing or damaged, or `path` is a later file.
    """
    shard = shard_of(path.name)
    files = (path,) if shard is None else _files_of(path, shard)
    stamps = [stamp_of(file) for file in files]
    parts = [headers.read(file) for file in files]
    whole = replace(parts[0], tensors=tuple(tensor for part in parts for tensor in part.tensors))
    declared = whole.metadata.get("split.count")
    if isinstance(declared, int) and declared > 1 and declared != len(files):
        raise BadModelFile(
            path,
            f"it belongs to a split model of {declared} files and its name does not say so",
            hint="give the files their names back: NAME-00001-of-00003.gguf and so on",
        )
    return Checkpoint(
        header=whole,
        files=files,
        file_bytes=sum(size for _, size, _ in stamps),
        verdict=classify(whole, path.name),
        revision=hashlib.blake2b(repr(stamps).encode(), digest_size=8).hexdigest(),
    )


def _files_of(path: Path, shard: Shard) -> tuple[Path, ...]:
    if shard.number != 1:
        raise BadModelFile(
            path,
            f"it is file {shard.number} of {shard.count} of a split model",
            hint=f"name the first one, {shard.file_name(1, path.suffix)}",
        )
    names = [shard.file_name(number, path.suffix) for number in range(1, shard.count + 1)]
    present = {entry.name for entry in path.parent.iterdir()}
    missing = [name for name in names[1:] if name not in present]
    if missing:
        listed = ", ".join(missing[:_NAMED_MISSING])
        more = f" and {len(missing) - _NAMED_MISSING} more" if len(missing) > _NAMED_MISSING else ""
        raise BadModelFile(
            path,
            f"{len(missing)} of its {shard.count} files are missing: {listed}{more}",
            hint="put all files of a split model in one folder",
        )
    return tuple(path.with_name(name) for name in names)
