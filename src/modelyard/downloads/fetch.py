"""Fetching one file, and going on where an earlier attempt stopped.

Laws of this file:
- A file has its name only when all of it is here and its checksum is right; until then it is
  `NAME.part`, to which bytes are only appended.
- Attempts that bring nothing are counted; those that bring bytes are not, so a bad line is slow
  and not fatal.
- No more is written than the hub's listing promised.

Source: `huggingface_hub.file_download.http_get` makes the request, goes on with a Range, starts
over where a server ignores that, and tries again when a connection ends. The library itself keeps
no partial files since 2.0 (its pull request 4228), therefore they are kept here. Git names a file
by the SHA-1 of `blob SIZE\\0` and its content.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import hf_hub_download, http_get

from modelyard.downloads.choose import RemoteFile
from modelyard.downloads.job import Job, PullFailed

CHUNK_BYTES = 1 << 18
ATTEMPTS = 3
"""Of ours that bring nothing in a row; each of them is up to five of the library's."""
PAUSE_S = 0.5
_HASH_BYTES = 1 << 22

# The library reads 10 MiB before it tells anybody: on a slow line that is minutes of silence, and
# as much to fetch anew after an interruption.
constants.DOWNLOAD_CHUNK_SIZE = CHUNK_BYTES

Moved = Callable[[int], None]
"""Told the bytes that came, less those that were thrown away."""


def fetch(
    file: RemoteFile, url: str, headers: Mapping[str, str], folder: Path, moved: Moved
) -> Path:
    """Have the whole, checked file below `folder`. Raises PullFailed, OSError or httpx2's errors.

    A checksum that is wrong is tried once more from the beginning.
    """
    done = folder / file.path
    if done.is_file():
        return done
    part = part_of(folder, file)
    part.parent.mkdir(parents=True, exist_ok=True)
    for is_last in (False, True):
        _complete(file, url, headers, part, moved)
        wrong = mismatch(part, file)
        if wrong is None:
            part.replace(done)
            return done
        moved(-part.stat().st_size)
        part.unlink()
        if is_last:
            raise PullFailed(
                "checksum",
                f"{file.path} arrived damaged twice: {wrong}",
                hint="try again later; a proxy or mirror may alter files",
            )
    raise AssertionError("the loop ends by itself")


def fetch_large(job: Job, commit: str | None, file: RemoteFile, folder: Path, moved: Moved) -> Path:
    """A file that the hub does not serve over plain HTTP, by its own protocol (Xet).

    The library goes on from its cache of chunks after an interruption, not from a partial file.
    """
    done, apart = folder / file.path, folder / ".large"
    if not done.is_file():
        hf_hub_download(
            job.repo, file.path, revision=commit, endpoint=job.endpoint, local_dir=apart
        )
        came = apart / file.path
        if (wrong := mismatch(came, file)) is not None:
            came.unlink()
            raise PullFailed("checksum", f"{file.path} arrived damaged: {wrong}")
        moved(came.stat().st_size)
        done.parent.mkdir(parents=True, exist_ok=True)
        came.replace(done)
    return done


def part_of(folder: Path, file: RemoteFile) -> Path:
    """Where the bytes of an unfinished file are."""
    return folder / f"{file.path}.part"


def bytes_here(folder: Path, file: RemoteFile) -> int:
    """How much of the file an earlier attempt has brought."""
    for path in (folder / file.path, part_of(folder, file)):
        try:
            return path.stat().st_size
        except FileNotFoundError:
            continue
    return 0


def mismatch(path: Path, file: RemoteFile) -> str | None:
    """What is wrong with the file at `path`, by the hub's checksum; None if it is right."""
    if file.sha256 is not None:
        return _differs("SHA-256", _digest(path, hashlib.sha256()), file.sha256)
    if file.git_sha1 is not None:
        head = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        return _differs("Git's SHA-1", _digest(path, head), file.git_sha1)
    return None


def _differs(kind: str, is_now: str, should: str) -> str | None:
    return None if is_now == should else f"its {kind} is {is_now} and should be {should}"


def _digest(path: Path, digest: hashlib._Hash) -> str:
    with path.open("rb") as content:
        while block := content.read(_HASH_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _complete(
    file: RemoteFile, url: str, headers: Mapping[str, str], part: Path, moved: Moved
) -> None:
    """Append to `part` until it has the promised size."""
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        if file.size is not None and before > file.size:
            part.unlink()
            moved(-before)
            before = 0
        try:
            with part.open("ab", buffering=0) as target:
                _get(file, url, headers, target, before, moved)
            if file.size is not None and part.stat().st_size != file.size:
                raise OSError(f"{file.path} ended after {part.stat().st_size} bytes")
            return
        except (httpx2.TransportError, OSError, PullFailed) as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code == 416:
                raise _wrong_size(file.path, "smaller", file.size) from None
            if not _may_pass(error):
                raise
            failures = 0 if part.stat().st_size > before else failures + 1
            if failures >= ATTEMPTS:
                raise
            time.sleep(PAUSE_S * failures)


def _get(
    file: RemoteFile, url: str, headers: Mapping[str, str], target: object, have: int, moved: Moved
) -> None:
    class Bar(_Bar):
        promised = file.size
        name = file.path
        told = staticmethod(moved)

    asked = dict(headers) | {"Accept-Encoding": "identity"}
    # The library refuses larger ones, because Hugging Face's storage does; ModelScope's does not.
    is_too_large = (file.size or 0) > constants.MAX_HTTP_DOWNLOAD_SIZE
    http_get(
        url,
        target,  # type: ignore[arg-type]  # a raw file is written whole where it is a regular one
        resume_size=have,
        headers=asked,
        expected_size=None if is_too_large else file.size,
        displayed_filename=file.path,
        tqdm_class=Bar,
    )


def _may_pass(error: Exception) -> bool:
    """Whether the same request can do better later."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 429, 500, 502, 503, 504)
    if isinstance(error, httpx2.ProxyError | httpx2.UnsupportedProtocol | PullFailed):
        return False
    if isinstance(error, httpx2.TransportError):
        return "CERTIFICATE" not in str(error).upper()
    # The library's word for a connection that ended early has no number; the system's errors do.
    return isinstance(error, OSError) and error.errno is None


def _wrong_size(path: str, how: str, promised: int | None) -> PullFailed:
    return PullFailed(
        "wrong_size",
        f"{path} is {how} than the {promised} bytes that the hub lists",
        hint="the repository or the mirror is broken",
    )


class _Bar:
    """What the library believes to be a progress bar."""

    promised: int | None = None
    name = ""
    told: Moved

    def __init__(self, *, initial: int = 0, **_: object) -> None:
        self.n = initial

    def update(self, n: int) -> None:
        """`n` is negative where the library starts over."""
        self.n += n
        if self.promised is not None and self.n > self.promised:
            raise _wrong_size(self.name, "larger", self.promised)
        self.told(n)

    def close(self) -> None:
        """There is nothing on a screen."""

    def __enter__(self) -> _Bar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
