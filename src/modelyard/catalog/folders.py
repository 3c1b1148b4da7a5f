"""Walks models folders.

Laws of this file:
- The walk ends: depth and number of entries are bounded, and a folder is entered once, however
  many links lead to it.
- The order is that of the names, so two walks of the same folders see the same.
- What cannot be looked at is reported, except what is hidden: that is nobody's business.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

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
class Folder:
    """A folder on the way. Set `below` to False before the walk goes on to pass over what is in
    its sub-folders."""

    path: Path
    root: Path
    """The models folder that the walk began in."""
    files: Mapping[str, Path]
    """Absolute paths by name; links among them may lead nowhere."""
    folders: Sequence[str]
    hidden: frozenset[str] = frozenset()
    """Names that begin with a dot; they are not entered."""
    below: bool = True


@dataclass(slots=True)
class Walk:
    """One walk over all models folders; `problems` grows while `folders` runs."""

    max_depth: int = MAX_DEPTH
    max_entries: int = MAX_ENTRIES
    problems: list[Problem] = field(default_factory=list)
    _entered: set[tuple[int, int]] = field(default_factory=set)
    _entries: int = 0

    def folders(self, dirs: Iterable[Path]) -> Iterator[Folder]:
        """Every folder from `dirs` on, outer ones first."""
        for folder in dirs:
            root = folder.expanduser().absolute()
            yield from self._from(root, root, 0)
            if self._entries > self.max_entries:
                reason = f"more than {self.max_entries} entries; the rest was not looked at"
                self.problems.append(Problem(root, reason))
                return

    def look(self, path: Path) -> Folder | None:
        """One folder by itself; None where it is not there or was entered already."""
        return self._listed(path, path)

    def _from(self, path: Path, root: Path, depth: int) -> Iterator[Folder]:
        folder = self._listed(path, root)
        if folder is None:
            return
        yield folder
        if folder.below and depth < self.max_depth:
            for name in folder.folders:
                yield from self._from(path / name, root, depth + 1)

    def _listed(self, path: Path, root: Path) -> Folder | None:
        try:
            if not self._enter(path):
                return None
            with os.scandir(path) as found:
                entries = sorted(self._counted(found), key=lambda entry: entry.name)
        except OSError as error:
            self._report(path, error)
            return None
        files: dict[str, Path] = {}
        folders: list[str] = []
        for entry in entries:
            try:
                is_folder = entry.is_dir()
            except OSError as error:
                self._report(path / entry.name, error)
                continue
            if entry.name.startswith("."):
                continue
            if is_folder:
                folders.append(entry.name)
            else:
                files[entry.name] = path / entry.name
        hidden = frozenset(entry.name for entry in entries if entry.name.startswith("."))
        return Folder(path, root, MappingProxyType(files), folders, hidden)

    def _counted(self, found: Iterator[os.DirEntry[str]]) -> Iterator[os.DirEntry[str]]:
        for entry in found:
            self._entries += 1
            if self._entries > self.max_entries:
                return
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
