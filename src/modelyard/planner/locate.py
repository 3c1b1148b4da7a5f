"""Finds the models at a path, for a plan of something that no configuration names.

Laws of this file:
- Reads headers only, and nothing outside the folder.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from modelyard.catalog.checkpoint import HeaderCache
from modelyard.catalog.discover import scan
from modelyard.catalog.errors import BadModelFile
from modelyard.catalog.found import FoundModel
from modelyard.planner.plan import ENGINES


def models_at(
    path: Path, *, headers: HeaderCache | None = None, engines: Collection[str] = ENGINES
) -> tuple[FoundModel, Sequence[FoundModel]]:
    """The model at `path`, a GGUF file or a folder, and those beside it.

    Of a folder with several models the first is meant if they are quantisations of one.
    Raises BadModelFile where there is no model, several, or a broken one.
    """
    place = path.expanduser().absolute()
    if not place.exists():
        raise BadModelFile(place, "there is no such file or folder")
    folder = place.parent if place.is_file() else place
    catalog = scan([folder], headers=headers, engines=engines)
    exact = [found for found in catalog.found if found.source in {place, place.resolve()}]
    within = exact or ([] if place.is_file() else list(catalog.found))
    if not within:
        told = [
            problem
            for problem in catalog.problems
            if place.is_dir() or problem.path in {place, place.resolve()}
        ]
        reason = told[0].reason if told else "there is no model that an engine here can run"
        raise BadModelFile(told[0].path if told else place, reason)
    if len({found.base for found in within}) > 1:
        names = ", ".join(found.id for found in within[:5])
        more = f" and {len(within) - 5} more" if len(within) > 5 else ""
        raise BadModelFile(
            place, f"there are several models: {names}{more}", hint="name one of their files"
        )
    return within[0], catalog.found
