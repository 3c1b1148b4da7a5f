"""What became of every setting of the source: nothing is dropped in silence.

Laws of this file:
- A setting is a leaf of the source's tree: a scalar, a list without mappings, an empty mapping.
- A finding speaks for its path and for all below it. Settings that no finding speaks for are
  reported by `Book.findings` as unknown, so an importer that forgets a key says so itself.
- Findings never hold a setting's value: it may be a secret.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from modelyard.config.tree import Plain, show
from modelyard.config.values import KeyPath

UNKNOWN = "this importer does not know the setting; look it up in docs/config.md"
MAX_FINDINGS = 20_000


class Fate(StrEnum):
    """What became of a setting."""

    CONVERTED = "converted"
    NO_EQUAL = "has no equal here"
    NOT_NEEDED = "not needed here"
    KEPT_ASIDE = "kept aside"


@dataclass(frozen=True, slots=True)
class Finding:
    """The fate of one setting. `to` is the key of our configuration that it became."""

    path: KeyPath
    fate: Fate
    text: str = ""
    to: str = ""
    model: str = ""

    @property
    def setting(self) -> str:
        """The path as people write it."""
        return show(self.path) or "(the whole file)"


class Book:
    """Findings about one source. `model` is the id of the model they are about, if any."""

    def __init__(self, tree: Plain) -> None:
        self._tree = tree
        self._findings: list[Finding] = []
        self.model = ""

    def converted(self, path: KeyPath, to: str, text: str = "") -> None:
        self._add(Finding(path, Fate.CONVERTED, text, to, self.model))

    def no_equal(self, path: KeyPath, why: str) -> None:
        """`why` also says what to do."""
        self._add(Finding(path, Fate.NO_EQUAL, why, model=self.model))

    def not_needed(self, path: KeyPath, why: str) -> None:
        self._add(Finding(path, Fate.NOT_NEEDED, why, model=self.model))

    def kept_aside(self, path: KeyPath, where: str) -> None:
        """Something that Modelyard has no place for yet; `where` it is meanwhile."""
        self._add(Finding(path, Fate.KEPT_ASIDE, where, model=self.model))

    def spoken(self) -> set[KeyPath]:
        """Paths that a finding speaks for."""
        return {finding.path for finding in self._findings}

    def findings(self) -> tuple[Finding, ...]:
        """All findings, and one for each setting that none speaks for."""
        spoken = self.spoken()
        unknown = [
            Finding(path, Fate.NO_EQUAL, UNKNOWN)
            for path in leaves(self._tree)
            if not any(path[:length] in spoken for length in range(len(path) + 1))
        ]
        return (*dict.fromkeys(self._findings), *unknown)

    def _add(self, finding: Finding) -> None:
        if len(self._findings) < MAX_FINDINGS:
            self._findings.append(finding)


def leaves(tree: Plain, path: KeyPath = ()) -> Iterator[KeyPath]:
    """The path of every setting in `tree`, in its order."""
    if isinstance(tree, dict) and tree:
        for key, below in tree.items():
            yield from leaves(below, (*path, key))
    elif isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        for at, item in enumerate(tree):
            yield from leaves(item, (*path, at))
    elif path:
        yield path
