"""Configurations of other programs, converted into ours.

Laws of this package:
- A source is recognised by its content, read within bounds, and never run.
- Every setting of it is converted, or reported with why not and what to do: nothing is dropped.
- What comes out passes `modelyard config check`; a model that could not be made to is a comment.
- Secrets of the source are neither written nor shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from modelyard.importers.draft import Draft
from modelyard.importers.errors import CannotImport
from modelyard.importers.kinds import KINDS, read_as, recognise
from modelyard.importers.report import Book, Fate, Finding
from modelyard.importers.source import read_source
from modelyard.importers.surroundings import Surroundings, Work
from modelyard.importers.verify import EngineProblems, problems, set_aside
from modelyard.importers.yaml_text import render

__all__ = [
    "KINDS",
    "CannotImport",
    "EngineProblems",
    "Fate",
    "Finding",
    "Imported",
    "Surroundings",
    "import_path",
]


@dataclass(frozen=True, slots=True)
class Imported:
    """What came of an import. `text` is the new configuration."""

    kind: str
    title: str
    text: str
    findings: tuple[Finding, ...]
    models: tuple[str, ...]
    left_out: tuple[str, ...]
    """Ids of models that are comments in `text`."""


def import_path(
    path: Path, here: Surroundings, engines: EngineProblems, kind: str | None = None
) -> Imported:
    """The configuration at `path` as ours.

    `kind` names what it is (a key of KINDS); None recognises it. `engines` says what the engines
    find wrong with a configuration. Raises CannotImport where the file cannot be used at all.
    """
    source = read_source(path)
    name, tree = (kind, read_as(kind, source)) if kind else recognise(source)
    work = Work(source, tree, Draft(), Book(tree), here)
    KINDS[name].convert(work)
    refused = set_aside(work.draft, engines)
    for model in refused:
        work.draft.notes.append(f"the model {model.id} is left out: it would be refused")
    findings = work.book.findings()
    title = KINDS[name].title
    text = render(work.draft, [*_header(source.name, title), *_lost(findings), ""])
    wrong = problems(text, engines)
    if wrong:
        raise CannotImport(f"{path}: what came of it would be refused: {'; '.join(wrong[:3])}")
    return Imported(
        kind=name,
        title=title,
        text=text,
        findings=findings,
        models=tuple(model.id for model in work.draft.models if not model.aside),
        left_out=tuple(model.id for model in work.draft.models if model.aside),
    )


def _header(name: str, title: str) -> list[str]:
    return [
        f"Made by `modelyard import` from {name} ({title}).",
        "What stands behind a # beside a key is the setting that it came from.",
    ]


def _lost(findings: tuple[Finding, ...]) -> list[str]:
    """Everything that is not in the file, as comments at its top."""
    lines = []
    for fate in (Fate.NO_EQUAL, Fate.KEPT_ASIDE, Fate.NOT_NEEDED):
        found = [finding for finding in findings if finding.fate is fate]
        if found:
            lines += ["", f"{fate.value.capitalize()}:"]
            lines += [f"- {finding.setting}: {finding.text}" for finding in found]
    return lines
