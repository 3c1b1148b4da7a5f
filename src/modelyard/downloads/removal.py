"""Which files a model on the disk consists of, and taking them off it.

Laws of this file:
- Only what lies inside the folders that were given is removed; a link is removed as a link.
- Files of other models stay, also where they lie in the same folder.
- Another program's store is taken apart only as that program would: a repository of the hub's cache
  goes as a whole or file by file with its blob; Ollama's store is left to Ollama.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelyard.catalog.checkpoint import Checkpoint
from modelyard.catalog.found import FoundModel, Origin
from modelyard.catalog.stores import RECEIPT
from modelyard.config.pulling import Removal
from modelyard.core.errors import Forbidden, InvalidRequest
from modelyard.downloads.choose import is_of_model
from modelyard.downloads.places import read_receipt, remove_if_empty, write_receipt


@dataclass(frozen=True, slots=True)
class Doomed:
    """What would be removed of one model."""

    model: str
    files: tuple[Path, ...]
    whole: Path | None = None
    """A folder that goes as a whole, with everything in it."""
    notes: tuple[str, ...] = ()

    @property
    def freed_bytes(self) -> int:
        """What the disk gets back: links and files with another name elsewhere give nothing."""
        return sum(_frees(path) for path in self.files)


def doomed(model: FoundModel, others: Iterable[FoundModel], roots: Sequence[Path]) -> Doomed:
    """What removing `model` means, given all `others` that were found.

    Raises Forbidden for files outside `roots`, and for those that another program has to remove.
    """
    if model.origin is Origin.OLLAMA:
        raise Forbidden(
            f"{model.id!r} is in Ollama's store, which only Ollama may change",
            hint=f"`ollama rm {model.id}` removes it",
        )
    kept = {path for other in others if other.id != model.id for path in _own_files(other)}
    repository = _repository(model.source, roots)
    if repository is not None:
        return _of_cache(model, repository, kept)
    own = [path for path in _own_files(model) if path not in kept]
    _inside(own, roots, model.id)
    if model.source.is_dir() and model.source.resolve() in {root.resolve() for root in roots}:
        raise Forbidden(
            f"{model.id!r} is the models folder {model.source} itself", hint="remove it by hand"
        )
    strangers = set(_below(model.source)) - set(own) - kept if model.source.is_dir() else set()
    notes = (f"{len(strangers)} other files in {model.source} stay",) if strangers else ()
    return Doomed(model.id, tuple(own), notes=notes)


def remove(what: Doomed) -> Removal:
    """Remove the files, and the folders that are empty then. Raises OSError where the system
    refuses; what was removed until then is gone."""
    freed = what.freed_bytes
    for path in what.files:
        path.unlink(missing_ok=True)
    if what.whole is not None:
        shutil.rmtree(what.whole)
        locks = what.whole.parent / ".locks" / what.whole.name
        shutil.rmtree(locks, ignore_errors=True)
    else:
        for folder in {path.parent for path in what.files}:
            _tidy(folder)
    return describe(what, freed, removed=True)


def describe(what: Doomed, freed: int, *, removed: bool) -> Removal:
    """The same in the words of the admin API."""
    files = [str(path) for path in what.files]
    return Removal(what.model, files, freed, removed, list(what.notes))


# ------------------------------------------------------------------------------------ whose files


def _own_files(model: FoundModel) -> list[Path]:
    """All files that make up the model."""
    if isinstance(model.checkpoint, Checkpoint):
        files = list(model.checkpoint.files)
        return files + ([model.projector] if model.projector is not None else [])
    return [
        path for path in _below(model.source) if is_of_model(str(path.relative_to(model.source)))
    ]


def _below(top: Path) -> list[Path]:
    """All files below a folder, without following links to folders."""
    return sorted(
        Path(folder, name) for folder, _, names in os.walk(top, followlinks=False) for name in names
    )


def _of_cache(model: FoundModel, repository: Path, kept: Collection[Path]) -> Doomed:
    """A model in the hub's cache: all of its repository, or its own files and their blobs."""
    others_there = [path for path in kept if path.is_relative_to(repository)]
    if not others_there:
        note = f"the whole repository in the cache, {repository.name}"
        return Doomed(model.id, tuple(_below(repository)), repository, (note,))
    own = [path for path in _own_files(model) if path not in kept]
    shared = {path.resolve() for path in others_there}
    blobs = {
        blob
        for path in own
        if path.is_symlink()
        and (blob := path.resolve()).is_relative_to((repository / "blobs").resolve())
        and blob not in shared
    }
    return Doomed(model.id, (*own, *sorted(blobs)))


def _repository(source: Path, roots: Sequence[Path]) -> Path | None:
    """The repository's folder in the layout of the hub's cache that `source` lies in."""
    for folder in source.parents:
        if folder.name == "snapshots" and (folder.parent / "blobs").is_dir():
            _inside([folder.parent], roots, folder.parent.name)
            return folder.parent
    return None


def _inside(paths: Iterable[Path], roots: Sequence[Path], model: str) -> None:
    real_roots = [root.resolve() for root in roots]
    for path in paths:
        place = path.parent.resolve() / path.name
        if not any(place.is_relative_to(root) and place != root for root in real_roots):
            raise Forbidden(
                f"{path} of {model!r} is outside the models folders, and stays",
                hint="remove it by hand if you mean it",
            )


def _frees(path: Path) -> int:
    try:
        status = path.lstat()
    except OSError:
        return 0
    return status.st_size if status.st_nlink == 1 and not path.is_symlink() else 0


def _tidy(folder: Path) -> None:
    """Forget removed files in the receipt, and go up from an empty folder as far as it is one that
    a download has made."""
    receipt = read_receipt(folder)
    if receipt is not None:
        receipt.files = {p: size for p, size in receipt.files.items() if (folder / p).exists()}
        if receipt.files:
            write_receipt(folder, receipt)
        else:
            (folder / RECEIPT).unlink(missing_ok=True)
    remove_if_empty(folder)
    if receipt is not None and not folder.exists():
        remove_if_empty(folder.parent)


def refuse_declared(model: str, *, force: bool) -> None:
    """Raises InvalidRequest for a model of the configuration, unless the order insists."""
    if not force:
        raise InvalidRequest(
            f"{model!r} is declared in the configuration, which would name a missing file then",
            hint="take it out of the configuration first, or insist with --force",
        )
