"""What a hub says of a repository.

Laws of this file:
- What a hub says is checked before it is used: paths stay inside the repository, sizes are sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from modelyard.catalog.stores import RECEIPT
from modelyard.downloads.choose import RemoteFile
from modelyard.downloads.job import PullFailed

MOST_FILES = 20_000
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one commit."""

    commit: str | None
    files: tuple[RemoteFile, ...]
    address: Callable[[str], str]
    """Where the file of a path is fetched from."""
    headers: Mapping[str, str]
    """What a request for a file has to carry."""
    notes: tuple[str, ...] = ()


def remote_file(
    path: object, size: object, sha256: object = None, git_sha1: object = None
) -> RemoteFile:
    """A checked entry of a listing. Raises PullFailed for one that cannot be meant well."""
    if not isinstance(path, str) or not is_inside(path):
        raise PullFailed(
            "bad_listing",
            f"the hub names a file that lies outside of its repository: {str(path)[:200]!r}",
            hint="do not use this repository",
        )
    known = size if isinstance(size, int) and size >= 0 and not isinstance(size, bool) else None
    return RemoteFile(path, known, _digest(sha256, 64), _digest(git_sha1, 40))


def is_inside(path: str) -> bool:
    """Whether a path is one of a file below where it starts, on every system."""
    steps = PurePosixPath(path).parts
    return (
        0 < len(path) <= 1024
        and path.isprintable()
        and not path.startswith("/")
        and not set(path) & set('\\:*?"<>|')
        and all(step not in ("", ".", "..") and len(step.encode()) <= 240 for step in steps)
        and not path.endswith("/")
        and steps[-1:] != (RECEIPT,)
    )


def not_too_many(count: int) -> None:
    """Raises PullFailed for a listing without a sensible end."""
    if count > MOST_FILES:
        raise PullFailed("bad_listing", f"the repository has more than {MOST_FILES} files")


def _digest(value: object, length: int) -> str | None:
    if isinstance(value, str) and len(value) == length and set(value.lower()) <= _HEX:
        return value.lower()
    return None
