"""Taking a model's files off the disk while a server runs, or without one.

Laws of this file:
- A model that runs keeps its files. One of the configuration keeps them unless the order insists.
- What would be removed can be asked for without removing it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from modelyard.catalog.found import FoundModel
from modelyard.config.pulling import Removal
from modelyard.core.errors import Forbidden, ModelyardError
from modelyard.core.specs import ModelSpec
from modelyard.downloads.removal import Doomed, describe, doomed, refuse_declared, remove

AT_REST = frozenset({"stopped", "failed"})
"""States in which no engine reads a model's files."""


class StillRuns(ModelyardError):
    """The model is in use."""

    code = "forbidden"

    def __init__(self, model: str, state: str) -> None:
        super().__init__(
            f"{model!r} is {state}, and its files are in use",
            hint=f"`modelyard stop {model}` stops it",
        )


class CannotRemove(ModelyardError):
    """The system refused to remove a file."""

    code = "cannot_remove"


class Removals:
    """Removes files of models; the functions tell what there is at present."""

    def __init__(
        self,
        found: Callable[[], Sequence[FoundModel]],
        declared: Callable[[], Collection[str]],
        dirs: Callable[[], Sequence[Path]],
        state: Callable[[str], str],
    ) -> None:
        """`declared` are the ids of the configuration's models, `state` that of a model by id."""
        self._found = found
        self._declared = declared
        self._dirs = dirs
        self._state = state

    async def remove(self, spec: ModelSpec, *, force: bool, dry_run: bool) -> Removal:
        """Remove the model's files, or say what that would mean.

        Raises StillRuns, Forbidden for files that are not ours to remove, InvalidRequest for a
        declared model without `force`, CannotRemove where the system refuses.
        """
        state = self._state(spec.id)
        if state not in AT_REST:
            raise StillRuns(spec.id, state)
        if spec.id in self._declared():
            refuse_declared(spec.id, force=force)
        return await asyncio.to_thread(self._remove, spec, dry_run)

    def _remove(self, spec: ModelSpec, dry_run: bool) -> Removal:
        what = self._doomed(spec)
        if dry_run:
            return describe(what, what.freed_bytes, removed=False)
        try:
            return remove(what)
        except OSError as error:
            where = error.filename or spec.id
            raise CannotRemove(f"cannot remove {where}: {error.strerror or error}") from None

    def _doomed(self, spec: ModelSpec) -> Doomed:
        found = self._found()
        source = None if spec.source is None else Path(spec.source)
        for model in found:
            if model.id == spec.id or model.source == source:
                return doomed(model, found, self._dirs())
        place = f"{spec.source} is outside the models folders" if source else "it has no file"
        raise Forbidden(
            f"the files of {spec.id!r} are not removed: {place}", hint="remove them by hand"
        )
