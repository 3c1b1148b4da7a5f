"""A model on disk: one GGUF file, or several that belong together.

Laws of this file:
- A split model is opened by its first file and is whole or not there at all.
- What was read of an unchanged file is not read again (`HeaderCache`).
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

from modelyard.catalog.classify import Shard, Verdict, classify, shard_of
from modelyard.catalog.errors import BadModelFile
from modelyard.catalog.gguf import GgufHeader, read_header

CACHED_HEADERS: Final = 256
_NAMED_MISSING: Final = 3

_Stamp: TypeAlias = tuple[str, int, int]
"""Path, size and time of change in ns: equal as long as a file is unchanged."""


class HeaderCache:
    """Headers already read, by path, size and time of change; the longest unused goes first.

    Refusals are remembered too. Safe to share between threads.
    """

    def __init__(self, size: int = CACHED_HEADERS) -> None:
        self._size = size
        self._headers: OrderedDict[_Stamp, GgufHeader | BadModelFile] = OrderedDict()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<HeaderCache {len(self._headers)} of {self._size}>"

    def read(self, path: Path) -> GgufHeader:
        """The header of the file at `path`. Raises BadModelFile, as `read_header` does."""
        stamp = _stamp(path)
        with self._lock:
            known = self._headers.get(stamp)
            if known is not None:
                self._headers.move_to_end(stamp)
        if known is None:
            known = _outcome(path)
            with self._lock:
                self._headers[stamp] = known
                while len(self._headers) > self._size:
                    self._headers.popitem(last=False)
        if isinstance(known, BadModelFile):
            # A new one: the traceback of an exception that is raised again grows each time.
            raise BadModelFile(path, known.reason, hint=known.hint)
        return known


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
    stamps = [_stamp(file) for file in files]
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


def _stamp(path: Path) -> _Stamp:
    try:
        status = path.stat()
    except OSError as error:
        raise BadModelFile(path, f"it cannot be read: {error.strerror or error}") from error
    return (str(path), status.st_size, status.st_mtime_ns)


def _outcome(path: Path) -> GgufHeader | BadModelFile:
    try:
        return read_header(path)
    except BadModelFile as error:
        if isinstance(error.__cause__, OSError):
            # Permissions and disks recover without a change of the file.
            raise
        return error
