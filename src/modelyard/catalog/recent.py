"""Remembers what was read of files that have not changed.

Laws of this file:
- A file is unchanged as long as its path, size and time of change are.
- Refusals are remembered too, except those of permissions and disks, which recover by themselves.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

from modelyard.catalog.errors import BadModelFile

T = TypeVar("T")

Stamp: TypeAlias = tuple[str, int, int]
"""Path, size and time of change in ns: equal as long as a file is unchanged."""


def stamp_of(path: Path) -> Stamp:
    """The stamp of the file at `path`. Raises BadModelFile where it cannot be looked at."""
    try:
        status = path.stat()
    except OSError as error:
        raise BadModelFile(path, f"it cannot be read: {error.strerror or error}") from error
    return (str(path), status.st_size, status.st_mtime_ns)


def stamps_of(paths: Iterable[Path]) -> tuple[Stamp, ...]:
    """The stamps of those files that are there."""
    found: list[Stamp] = []
    for path in paths:
        try:
            found.append(stamp_of(path))
        except BadModelFile:
            # A link to nowhere: whoever reads the file tells so.
            found.append((str(path), -1, -1))
    return tuple(found)


class Recent(Generic[T]):
    """The last `size` results, by key; the longest unused goes first. Safe to share by threads."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._known: OrderedDict[Hashable, T | BadModelFile] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gave for this key, or gives now. Raises the BadModelFile that it raised."""
        with self._lock:
            known = self._known.get(key)
            if known is not None:
                self._known.move_to_end(key)
        if known is None:
            known = _outcome(make)
            with self._lock:
                self._known[key] = known
                while len(self._known) > self.size:
                    self._known.popitem(last=False)
        if isinstance(known, BadModelFile):
            # A new one: the traceback of an exception that is raised again grows each time.
            raise BadModelFile(known.path, known.reason, hint=known.hint)
        return known


def _outcome(make: Callable[[], T]) -> T | BadModelFile:
    try:
        return make()
    except BadModelFile as error:
        if isinstance(error.__cause__, OSError):
            raise
        return error
