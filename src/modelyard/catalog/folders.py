"""Walks models folders for model files.

Laws of this file:
- The walk ends: depth and number of entries are bounded, and a folder is entered once, however
  many links lead to it.
- The order is that of the names, so two walks of the same folders see the same.
- What cannot be looked at is reported, except what is hidden: that is nobody's business.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

SUFFIX: Final = ".gguf"
MAX_DEPTH: Final = 6
"""Folders below a models folder that are looked into, one inside the other."""
MAX_ENTRIES: Final = 100_000
"""Files and folders that are looked at in one walk."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A file or folder that cannot be used, and why."""

    path: Path
    reason: str


@dataclass(slots=True)
class Walk:
    """One walk over all models folders; `problems` grows while `files` runs."""

    max_depth: int = MAX_DEPTH
    max_entries: int = MAX_ENTRIES
    problems: list[Problem] = field(default_factory=list)
    _entered: set[tuple[int, int]] = field(default_factory=set)
    _entries: int = 0

    def files(self, dirs: Iterable[Path]) -> Iterator[Path]:
        """The absolute paths of all model files below `dirs`."""
        for folder in dirs:
            root = folder.expanduser().absolute()
            yield from self._below(root, 0)
            if self._entries > self.max_entries:
                reason = f"more than {self.max_entries} entries; the rest was not looked at"
                self.problems.append(Problem(root, reason))
                return

    def _below(self, folder: Path, depth: int) -> Iterator[Path]:
        try:
            if not self._enter(folder):
                return
            with os.scandir(folder) as found:
                entries = sorted(self._visible(found), key=lambda entry: entry.name)
        except OSError as error:
            self._report(folder, error)
            return
        for entry in entries:
            path = folder / entry.name
            try:
                is_folder = entry.is_dir()
            except OSError as error:
                self._report(path, error)
                continue
            if is_folder:
                if depth < self.max_depth:
                    yield from self._below(path, depth + 1)
            elif path.suffix.lower() == SUFFIX:
                yield path

    def _visible(self, found: Iterator[os.DirEntry[str]]) -> Iterator[os.DirEntry[str]]:
        for entry in found:
            self._entries += 1
            if self._entries > self.max_entries:
                return
            if not entry.name.startswith("."):
                yield entry

    def _enter(self, folder: Path) -> bool:
        status = folder.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in self._entered:
            return False
        self._entered.add(identity)
        return True

    def _report(self, path: Path, error: OSError) -> None:
        self.problems.append(Problem(path, f"it cannot be read: {error.strerror or error}"))
