"""Where other programs keep models: the caches of Hugging Face's hub and of ModelScope.

Laws of this file:
- Read only: nothing is written, moved or repaired in a folder that another program owns.
- A repository is one model, in the revision its `main` names; older snapshots are history.
- What our own downloads left beside a model (`.modelyard-pull.json`) tells whose it is, and nothing
  else is believed of it.

Layouts: the hub's cache (huggingface.co/docs/hub/local-cache: `models--ORG--NAME` with `refs`,
`blobs` and `snapshots/COMMIT`, whose files link to blobs; blobs that are being fetched end in
`.incomplete`); ModelScope's cache (`hub/models/ORG/NAME` or `hub/ORG/NAME`, dots of the name
written `___`, and hidden files `.msc`, `.mv` and `.mdl` beside the model; since 1.39 also
`models/ORG--NAME/snapshots/REVISION`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelyard.catalog.errors import BadModelFile
from modelyard.catalog.folders import Folder
from modelyard.catalog.json_object import read_object

_MODELSCOPE_FILES: Final = frozenset({".msc", ".mv", ".mdl"})
_REF_BYTES: Final = 256
RECEIPT: Final = ".modelyard-pull.json"
"""What downloads leave beside a model; no hub may write it."""
_RECEIPT_BYTES: Final = 2**24
_REPO: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository in a cache: its id (`ORG/NAME`), and the snapshot that counts."""

    id: str
    snapshot: Path | None
    """None where nothing was fetched yet."""
    unfinished: bool = False
    """Some of its blobs are still being fetched, or the fetch was cut off."""
    is_model: bool = True


def repository_of(folder: Folder) -> Repository | None:
    """The repository that `folder` is in the layout of the hub's cache; None if it is none."""
    if "snapshots" not in folder.folders or "--" not in folder.path.name:
        return None
    kind, _, rest = folder.path.name.partition("--")
    if kind not in {"models", "datasets", "spaces"}:
        rest, kind = folder.path.name, "models"
    name = rest.replace("--", "/", 1)
    unfinished = any(child.name.endswith(".incomplete") for child in _children(folder, "blobs"))
    return Repository(name, _snapshot(folder), unfinished, kind == "models")


def modelscope_id(folder: Folder) -> str | None:
    """The id of the model in `folder` if ModelScope put it there."""
    if not folder.hidden & _MODELSCOPE_FILES:
        return None
    return f"{folder.path.parent.name}/{folder.path.name}".replace("___", ".")


def pulled_from(folder: Folder) -> str | None:
    """The repository that the files in `folder` were downloaded from by `modelyard pull`."""
    if RECEIPT not in folder.hidden:
        return None
    try:
        repo = read_object(folder.path / RECEIPT, most_bytes=_RECEIPT_BYTES).text("repo")
    except BadModelFile:
        return None  # the files are what they are without it
    return repo if repo is not None and _REPO.fullmatch(repo) else None


def _snapshot(folder: Folder) -> Path | None:
    """What `main` (or `master`) names; without it the snapshot that changed last."""
    snapshots = {child.name: child for child in _children(folder, "snapshots")}
    for ref in ("main", "master"):
        try:
            with (folder.path / "refs" / ref).open("rb") as file:
                named = file.read(_REF_BYTES).decode("utf-8", errors="replace").strip()
        except OSError:
            continue  # a cache of one pinned revision has no such ref
        if named in snapshots:
            return snapshots[named]
    return max(snapshots.values(), key=lambda child: (_changed(child), child.name), default=None)


def _children(folder: Folder, name: str) -> list[Path]:
    try:
        return sorted((folder.path / name).iterdir())[:4096]
    except OSError:
        return []  # what is not there holds nothing


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return -1  # it vanished meanwhile
