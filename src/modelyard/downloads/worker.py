"""The download process: one job on stdin, news on stdout, and nothing left when it ends.

Laws of this file:
- It ends when its stdin does, at once and wherever it is: what was fetched so far stays on the disk
  and is where the next attempt goes on.
- One process at a time works on one version of a repository; the system frees the lock when that
  process is gone.
- Whatever goes wrong is one `Failed` with a sentence that says what to do.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

import httpx2
import msgspec

from modelyard.downloads import fetch, huggingface, modelscope
from modelyard.downloads.choose import RemoteFile, Selection, choose
from modelyard.downloads.job import Chosen, Failed, Finished, Job, Moved, News, PullFailed, Waits
from modelyard.downloads.listing import Listing
from modelyard.downloads.names import HUGGING_FACE
from modelyard.downloads.places import (
    FILES,
    Receipt,
    Unfinished,
    missing_from,
    need_space,
    only_one,
    put_in_place,
    read_receipt,
    refuse_to_replace,
    remove_if_empty,
    staging_of,
    target_of,
)

FILES_AT_ONCE = 4
TELL_EVERY_S = 0.2
_TELLING = threading.Lock()


def main() -> None:
    """Do the job that stdin holds."""
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    threading.Thread(target=_end_with_stdin, name="end", daemon=True).start()
    try:
        _pull(job)
    except Exception as error:
        _tell(_failed(job, error))
    sys.stdout.flush()
    os._exit(0)  # threads that still fetch other files have nobody to fetch them for


def _pull(job: Job) -> None:
    target = target_of(Path(job.folder), job.repo)
    if job.offline:
        _offline(job, target)
        return
    look = huggingface.look if job.hub == HUGGING_FACE else modelscope.look
    listing = look(job)
    chosen = choose(
        listing.files,
        quantization=job.quantization,
        globs=job.files,
        pickle=job.pickle,
        prefers_gguf=job.prefers_gguf,
    )
    staging = staging_of(Path(job.folder), job.hub, job.repo, _version(listing, chosen))
    with only_one(staging.with_name(f"{staging.name}.lock"), lambda: _tell(Waits())):
        missing = missing_from(target, chosen.files)  # another process may have fetched it
        refuse_to_replace(target, missing)
        (staging / FILES).mkdir(parents=True, exist_ok=True)
        try:
            _fetch_all(job, listing, chosen, missing, staging, target)
        finally:
            remove_if_empty(staging / FILES)
            remove_if_empty(staging)
    remove_if_empty(staging.parent)
    _tell(Finished(str(target)))


def _fetch_all(
    job: Job,
    listing: Listing,
    chosen: Selection,
    missing: list[RemoteFile],
    staging: Path,
    target: Path,
) -> None:
    files = staging / FILES
    total = sum(file.size or 0 for file in chosen.files)
    here = {file.path: fetch.bytes_here(files, file) for file in missing}
    to_come = sum(max((file.size or 0) - here[file.path], 0) for file in missing)
    done = total - to_come
    notes = chosen.notes + listing.notes
    paths = tuple(file.path for file in chosen.files)
    _tell(Chosen(paths, total, done, str(target), listing.commit, notes))
    need_space(staging, to_come)
    _note(job, staging, total)
    progress = _Progress(done, total)
    with ThreadPoolExecutor(FILES_AT_ONCE, thread_name_prefix="fetch") as pool:
        running = [pool.submit(_fetch_one, job, listing, file, files, progress) for file in missing]
        ended, waiting = wait(running, return_when=FIRST_EXCEPTION)
        for each in waiting:
            each.cancel()
        for each in ended:
            if (error := each.exception()) is not None:
                _tell(_failed(job, error))
                sys.stdout.flush()
                os._exit(0)  # leaving the pool would wait for the other files
    put_in_place(files, target, missing, _receipt(job, listing, chosen, files, target))
    shutil.rmtree(staging, ignore_errors=True)


def _version(listing: Listing, chosen: Selection) -> str:
    """What tells this state of the repository from others, so that their bytes are not mixed."""
    for file in chosen.files:
        if file.size is None:
            raise PullFailed("bad_listing", f"the hub does not tell the size of {file.path}")
    if listing.commit:
        return listing.commit
    told = "".join(f"{file.path} {file.size} {file.sha256}\n" for file in chosen.files)
    return hashlib.sha256(told.encode()).hexdigest()


def _fetch_one(
    job: Job, listing: Listing, file: RemoteFile, staging: Path, progress: _Progress
) -> None:
    moved = partial(progress.moved, file.path)
    if job.hub == HUGGING_FACE and (file.size or 0) > job.http_most_bytes:
        with huggingface.told(job):
            fetch.fetch_large(job, listing.commit, file, staging, moved)
        return
    with huggingface.told(job):
        fetch.fetch(file, listing.address(file.path), listing.headers, staging, moved)


def _receipt(job: Job, listing: Listing, chosen: Selection, staging: Path, target: Path) -> Receipt:
    sizes = {}
    for file in chosen.files:
        place = staging / file.path
        sizes[file.path] = (place if place.is_file() else target / file.path).stat().st_size
    digests = {file.path: file.sha256 or file.git_sha1 or "" for file in chosen.files}
    return Receipt(
        hub=job.hub,
        repo=job.repo,
        revision=job.revision,
        commit=listing.commit,
        files=sizes,
        digests={path: digest for path, digest in digests.items() if digest},
    )


def _offline(job: Job, target: Path) -> None:
    """What is here has to do."""
    receipt = read_receipt(target)
    if receipt is not None and receipt.whole and _is_of(receipt, job):
        same = job.revision in (None, receipt.revision, receipt.commit)
        there = [RemoteFile(path, size) for path, size in receipt.files.items()]
        if same and there and not missing_from(target, there):
            chosen = choose(
                there,
                quantization=job.quantization,
                globs=job.files,
                pickle=True,
                prefers_gguf=job.prefers_gguf,
            )
            paths, total = (
                tuple(f.path for f in chosen.files),
                sum(f.size or 0 for f in chosen.files),
            )
            notes = ("it is here; being offline, the hub was not asked for news",)
            _tell(Chosen(paths, total, total, str(target), receipt.commit, notes))
            _tell(Finished(str(target)))
            return
    raise PullFailed(
        "offline",
        f"{job.repo} is not in {Path(job.folder)}, and Modelyard is offline",
        hint="take back downloads.offline and HF_HUB_OFFLINE to download it",
    )


def _is_of(receipt: Receipt, job: Job) -> bool:
    return (receipt.repo, receipt.hub) == (job.repo, job.hub)


def _note(job: Job, staging: Path, total: int) -> None:
    """What this is, for whoever finds it unfinished."""
    name = f"{job.repo}:{job.quantization}" if job.quantization else job.repo
    note = Unfinished(name, job.hub, job.revision, list(job.files), total)
    (staging / "job.json").write_bytes(msgspec.json.encode(note))


class _Progress:
    """Bytes on the disk, told now and then. Usable from several threads."""

    def __init__(self, done: int, total: int) -> None:
        self._done = done
        self._total = total
        self._lock = threading.Lock()
        self._told_at = 0.0

    def moved(self, name: str, n_bytes: int) -> None:
        with self._lock:
            self._done += n_bytes
            now = time.monotonic()
            if now - self._told_at < TELL_EVERY_S and self._done < self._total:
                return
            self._told_at, done = now, self._done
        _tell(Moved(done, name))


def _failed(job: Job, error: BaseException) -> Failed:
    if isinstance(error, PullFailed):
        return Failed(error.code, str(error))
    if isinstance(error, httpx2.HTTPError):
        told = huggingface.unreachable(job, error)
        return Failed(told.code, str(told))
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failed("no_space", f"the disk of {job.folder} is full; what was fetched is kept")
    if isinstance(error, OSError) and error.errno is not None:
        where = error.filename or job.folder
        return Failed("cannot_write", f"{where}: {error.strerror or error}")
    if isinstance(error, OSError):
        hint = "the hub or a proxy breaks connections off; what was fetched is kept, try again"
        return Failed("interrupted", f"{' '.join(str(error).split())[:300]} ({hint})")
    return Failed("internal_error", f"a bug in Modelyard: {error!r}"[:500])


def _tell(news: News) -> None:
    line = msgspec.json.encode(news) + b"\n"
    with _TELLING:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


def _end_with_stdin() -> None:
    while sys.stdin.buffer.read(4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
