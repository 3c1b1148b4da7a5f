"""Where files go: the models folder for downloads, the hidden place of unfinished ones, receipts.

Laws of this file:
- Files of other programs' stores are not ours: nothing is put into them.
- A file that a person put where a download wants to go is never replaced.
- A receipt beside the model says what was fetched from where, so that the same need not be fetched
  twice, and a newer revision may replace it.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import msgspec

from modelyard.catalog.stores import RECEIPT
from modelyard.downloads.choose import PICKLED, RemoteFile
from modelyard.downloads.job import PullFailed

UNFINISHED = ".modelyard-pulls"
"""Hidden folder in a models folder; the catalog does not look into hidden folders."""
FILES = "files"
"""Within the place of an unfinished download: its files, beside the note of what it is for."""
_KEPT_FREE = 64 * 2**20
_STORES = re.compile(r"(models|datasets|spaces)--.+")


class Receipt(msgspec.Struct, forbid_unknown_fields=False):
    """What was fetched into a folder, and from where."""

    hub: str
    repo: str
    revision: str | None = None
    commit: str | None = None
    files: dict[str, int] = {}
    """Sizes in bytes by path."""
    digests: dict[str, str] = {}
    """SHA-256, or Git's SHA-1, by path, where the hub tells them."""
    whole: bool = True
    """False while files are being put into the folder."""


class Unfinished(msgspec.Struct):
    """What an interrupted download was for."""

    model: str
    hub: str
    revision: str | None = None
    files: list[str] = []
    total_bytes: int = 0


def own_folder(dirs: Sequence[Path], chosen: Path | None, state_dir: Path) -> Path:
    """The models folder that downloads go to: `chosen`, else the first of `dirs` that is no other
    program's store, else one in Modelyard's own folder."""
    if chosen is not None:
        return chosen
    for folder in dirs:
        if not is_store(folder):
            return folder
    return state_dir / "models"


def is_store(folder: Path) -> bool:
    """Whether the folder is the cache of Hugging Face's hub, ModelScope's, or Ollama's store."""
    if folder.parts[-2:] in {("huggingface", "hub"), (".ollama", "models")}:
        return True
    if "modelscope" in folder.parts[-2:] and any(part.startswith(".") for part in folder.parts):
        return True
    try:
        names = {child.name for child in folder.iterdir()}
    except OSError:
        return False
    return {"blobs", "manifests"} <= names or any(_STORES.fullmatch(name) for name in names)


def target_of(folder: Path, repo: str) -> Path:
    """Where the files of a repository are, once they are whole."""
    return folder.joinpath(*repo.split("/"))


def staging_of(folder: Path, hub: str, repo: str, version: str) -> Path:
    """Where files of one version of a repository are until they are whole."""
    name = f"{hub}--{repo.replace('/', '--')}@{re.sub(r'[^A-Za-z0-9_.-]', '_', version)[:40]}"
    return folder / UNFINISHED / name


def read_receipt(target: Path) -> Receipt | None:
    """The receipt in a folder; None where there is none that can be read."""
    try:
        return msgspec.json.decode((target / RECEIPT).read_bytes(), type=Receipt)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def write_receipt(target: Path, receipt: Receipt) -> None:
    """Leave the receipt, whole or not at all."""
    fresh = target / f"{RECEIPT}.new"
    fresh.write_bytes(msgspec.json.encode(receipt))
    fresh.replace(target / RECEIPT)


def missing_from(target: Path, files: Iterable[RemoteFile]) -> list[RemoteFile]:
    """Those of `files` that are not in the folder yet, by its receipt and the files' sizes."""
    receipt = read_receipt(target)
    return [file for file in files if not _is_there(target, file, receipt)]


def refuse_to_replace(target: Path, files: Iterable[RemoteFile]) -> None:
    """Raises PullFailed where a file of somebody else's is in the way."""
    receipt = read_receipt(target)
    ours = receipt.files if receipt is not None else {}
    for file in files:
        if file.path not in ours and os.path.lexists(target / file.path):
            raise PullFailed(
                "exists",
                f"{target / file.path} exists, and no download of Modelyard put it there",
                hint="move it away, or pull into another folder with --to",
            )


def need_space(folder: Path, n_bytes: int) -> None:
    """Raises PullFailed unless so many more bytes fit beside the folder's."""
    free = shutil.disk_usage(folder).free
    if n_bytes + _KEPT_FREE > free:
        raise PullFailed(
            "no_space",
            f"{_gib(n_bytes)} are still to be fetched, and {folder} has {_gib(free)} free",
            hint="free some space (`modelyard rm MODEL`), or pull into another folder with --to",
        )


def put_in_place(staging: Path, target: Path, files: Sequence[RemoteFile], new: Receipt) -> None:
    """Move whole files from the staging place to the model's folder, weights last, and leave the
    receipt. Weights of an older revision that the new one does not have are removed."""
    old = read_receipt(target)
    target.mkdir(parents=True, exist_ok=True)
    write_receipt(target, _unsettled(old, new, files))
    for file in sorted(files, key=lambda file: (_is_weight(file.path), file.path)):
        place = target / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        (staging / file.path).replace(place)
    stays: dict[str, int] = {}
    digests: dict[str, str] = {}
    if old is not None:
        renewed = any(file.path.endswith(".safetensors") for file in files)
        for path, size in old.files.items():
            if old.commit != new.commit and renewed and _is_stale(path, new):
                (target / path).unlink(missing_ok=True)
            else:
                stays[path] = size
        digests = {path: old.digests[path] for path in stays if path in old.digests}
    new.files = stays | new.files
    new.digests = digests | new.digests
    write_receipt(target, new)


def _unsettled(old: Receipt | None, new: Receipt, files: Sequence[RemoteFile]) -> Receipt:
    """What holds while files are moved: they are ours, and not known to be right."""
    moving = {file.path for file in files}
    before = old if old is not None else Receipt(new.hub, new.repo)
    return Receipt(
        hub=new.hub,
        repo=new.repo,
        files=before.files | new.files,
        digests={path: d for path, d in before.digests.items() if path not in moving},
        whole=False,
    )


@contextmanager
def only_one(path: Path, busy: Callable[[], None]) -> Iterator[None]:
    """A block that one process at a time is in; `busy` is called before waiting for another one.

    The system takes the lock from a process that is gone. The file goes with the last block, so
    whoever gets a lock has to look whether it is still the file of that name.
    """
    while True:
        with _opened(path) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                busy()
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_open_as(lock, path):
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _opened(path: Path) -> IO[bytes]:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return path.open("ab")
        except FileNotFoundError:
            continue  # whoever was here before has just removed the empty folder


def _is_open_as(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def remove_if_empty(folder: Path) -> None:
    """Remove a folder that holds nothing."""
    try:
        folder.rmdir()
    except OSError:
        return  # it is not empty, or not there


def unfinished_in(folder: Path) -> list[tuple[Unfinished, int]]:
    """Interrupted downloads in a models folder, each with its bytes on the disk."""
    found = []
    for note in sorted((folder / UNFINISHED).glob("*/job.json")):
        try:
            job = msgspec.json.decode(note.read_bytes(), type=Unfinished)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            continue  # somebody else's file, or one that is being written
        here = sum(path.stat().st_size for path in note.parent.rglob("*") if path.is_file())
        found.append((job, here - note.stat().st_size))
    return found


def _is_there(target: Path, file: RemoteFile, receipt: Receipt | None) -> bool:
    if receipt is None or file.path not in receipt.files:
        return False
    digest = file.sha256 or file.git_sha1
    if digest is not None and receipt.digests.get(file.path) != digest:
        return False
    try:
        size = (target / file.path).stat().st_size
    except OSError:
        return False
    return size == receipt.files[file.path] and file.size in (None, size)


def _is_stale(path: str, new: Receipt) -> bool:
    return path.endswith((".safetensors", ".safetensors.index.json")) and path not in new.files


def _is_weight(path: str) -> bool:
    return path.endswith((".gguf", ".safetensors", *PICKLED))


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
