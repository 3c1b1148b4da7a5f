"""Notices that something under the models folders changed.

Laws of this file:
- News says only "look again"; what changed is found by a scan, so nothing can be missed twice.
- A folder may not exist yet, vanish or be replaced; it is looked for every few seconds, and its
  coming and going is news as well.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Final, TypeAlias

import watchfiles

PRESENCE_S: Final = 2.0
"""How often folders are checked for having appeared, vanished or been replaced."""
DEBOUNCE_S: Final = 1.0
"""Changes that follow one another are reported once, at the latest after this time."""

_Presence: TypeAlias = Mapping[Path, tuple[int, int]]
"""The folders that exist, each with its device and inode: a new folder of the same name is
another one, and the old watch does not see it."""


async def changes(
    dirs: Iterable[Path], *, stop: asyncio.Event, presence_s: float = PRESENCE_S
) -> AsyncGenerator[None, None]:
    """Yield whenever something under `dirs` changed, until `stop` is set.

    Yields once more soon after a watch began, for what changed between the last scan and then.
    `presence_s` is the time between two checks of the folders' existence. Cancelling sets `stop`,
    which also ends the thread that waits for the system's news. Raises OSError or RuntimeError
    where the system cannot watch (a limit on watches is reached).
    """
    folders = tuple(dirs)
    present = await asyncio.to_thread(_present, folders)
    while not stop.is_set():
        async with aclosing(_until_presence_differs(folders, present, stop, presence_s)) as news:
            async for _ in news:
                yield
        now = await asyncio.to_thread(_present, folders)
        if now != present and not stop.is_set():
            present = now
            yield


async def _until_presence_differs(
    folders: tuple[Path, ...], present: _Presence, stop: asyncio.Event, presence_s: float
) -> AsyncGenerator[None, None]:
    if not present:
        await _stopped_within(stop, presence_s)
        return
    watching = watchfiles.awatch(
        *present,
        watch_filter=None,
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
                if _lost(found, present) or await asyncio.to_thread(_present, folders) != present:
                    return
    except FileNotFoundError:
        # A folder vanished between the look and the watch; the next look sees that.
        await _stopped_within(stop, presence_s)


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
