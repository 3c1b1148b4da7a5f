"""The machine that imports, as far as it matters, and the pieces every importer is handed.

Laws of this file:
- Importers look at the machine through `Surroundings` alone, so that a test can say what is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modelyard.config.tree import Plain
from modelyard.importers.draft import Draft
from modelyard.importers.report import Book
from modelyard.importers.source import Source


@dataclass(frozen=True, slots=True)
class Surroundings:
    """`cards_mib` is the memory of each graphics card here, NVIDIA's first; `home` the user's."""

    cards_mib: tuple[int, ...] = ()
    windows: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    home: Path = Path("/")

    @property
    def gpus(self) -> int:
        return len(self.cards_mib)


@dataclass(frozen=True, slots=True)
class Work:
    """One import: what is read, what is written, and what is said about it."""

    source: Source
    tree: Plain
    draft: Draft
    book: Book
    here: Surroundings
