"""Notices that something under the models folders, or a declared model's file, changed.

Laws of this file:
- News says only "look again"; what changed is found by a scan, so nothing can be missed twice.
- What happens in hidden folders is no news: no model is looked for there, and downloads write
  there.
- A folder may not exist yet, vanish or be replaced; it is looked for every few seconds, and its
  coming and going is news as well.
- Files outside the folders are looked at every few seconds, because the system watches folders
  with all that is below them, and a model's file may lie in somebody's home.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, TypeAlias

import watchfiles

from modelyard.catalog.classify import shard_of
from modelyard.catalog.recent import Stamp, stamps_of

PRESENCE_S: Final = 2.0
"""How often folders are checked for having appeared, vanished or been replaced."""
DEBOUNCE_S: Final = 1.0
"""Changes that follow one another are reported once, at the latest after this time."""

_Presence: TypeAlias = Mapping[Path, tuple[int, int]]
"""The folders that exist, each with its device and inode: a new folder of the same name is
another one, and the old watch does not see it."""

_MOST_FILES: Final = 4096


@dataclass(frozen=True, slots=True)
class _Seen:
    folders: _Presence
    files: tuple[Stamp, ...]


async def changes(
    dirs: Iterable[Path],
    *,
    stop: asyncio.Event,
    files: Iterable[Path] = (),
    presence_s: float = PRESENCE_S,
) -> AsyncGenerator[None, None]:
    """Yield whenever something under `dirs` or one of `files` changed, until `stop` is set.

    An entry of `files` may be a split model's first file, which stands for all of them, or a
    folder, whose own files are looked at.

    Yields once more soon after a watch began, for what changed between the last scan and then.
    `presence_s` is the time between two checks of the folders' existence. Cancelling sets `stop`,
    which also ends the thread that waits for the system's news. Raises OSError or RuntimeError
    where the system cannot watch (a limit on watches is reached).
    """
    watched = (tuple(dirs), tuple(files))
    seen = await asyncio.to_thread(_look, *watched)
    while not stop.is_set():
        async with aclosing(_until_it_differs(watched, seen, stop, presence_s)) as news:
            async for _ in news:
                yield
        now = await asyncio.to_thread(_look, *watched)
        if now != seen and not stop.is_set():
            seen = now
            yield


async def _until_it_differs(
    watched: tuple[tuple[Path, ...], tuple[Path, ...]],
    seen: _Seen,
    stop: asyncio.Event,
    presence_s: float,
) -> AsyncGenerator[None, None]:
    present = seen.folders
    if not present:
        await _stopped_within(stop, presence_s)
        return
    watching = watchfiles.awatch(
        *present,
        watch_filter=lambda _, path: not _is_hidden(Path(path), present),
        debounce=int(DEBOUNCE_S * 1000),
        rust_timeout=int(presence_s * 1000),
        yield_on_timeout=True,
        stop_event=stop,
        ignore_permission_denied=True,
    )
    began = True
    try:
        async with aclosing(watching):
            async for found in watching:
                if found or began:
                    began = False
                    yield
                if _lost(found, present) or await asyncio.to_thread(_look, *watched) != seen:
                    return
    except FileNotFoundError:
        # A folder vanished between the look and the watch; the next look sees that.
        await _stopped_within(stop, presence_s)


def _is_hidden(path: Path, folders: Iterable[Path]) -> bool:
    """Whether a hidden folder lies between the watched folder and the path."""
    for folder in folders:
        if path.is_relative_to(folder):
            between = path.relative_to(folder).parts[:-1]
            if not any(part.startswith(".") for part in between):
                return False
    return True


def _lost(found: Iterable[tuple[watchfiles.Change, str]], present: _Presence) -> bool:
    """Whether a watched folder itself was removed, and its watch with it. A folder that takes its
    place at once may even have the same inode."""
    return any(
        change is watchfiles.Change.deleted and Path(path) in present for change, path in found
    )


async def _stopped_within(stop: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()


def _look(folders: Iterable[Path], files: Iterable[Path]) -> _Seen:
    paths = (path for file in files for path in _all_of(file))
    return _Seen(_present(folders), stamps_of(islice(paths, _MOST_FILES)))


def _all_of(path: Path) -> Iterator[Path]:
    """The files that a declared model's source stands for."""
    yield path
    shard = shard_of(path.name)
    if shard is not None:
        for number in range(2, min(shard.count, _MOST_FILES) + 1):
            yield path.with_name(shard.file_name(number, path.suffix))
    elif path.is_dir():
        try:
            yield from sorted(path.iterdir())
        except OSError:
            return  # what cannot be listed is told by whoever reads the model


def _present(folders: Iterable[Path]) -> _Presence:
    found: dict[Path, tuple[int, int]] = {}
    for folder in folders:
        try:
            status = folder.stat()
        except OSError:
            continue
        if folder.is_dir():
            found[folder] = (status.st_dev, status.st_ino)
    return found
