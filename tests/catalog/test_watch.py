"""News of changes under the models folders."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

from modelyard.catalog.watch import changes

PATIENCE_S = 20.0


async def news(found: AsyncIterator[None]) -> None:
    """Wait for the next change."""
    async with asyncio.timeout(PATIENCE_S):
        await anext(found)


async def keep_writing(path: Path) -> None:
    """Change a file until somebody notices; a watch takes a moment to begin."""
    number = 0
    while True:
        await asyncio.to_thread(path.write_text, str(number))
        number += 1
        await asyncio.sleep(0.05)


async def noticed(found: AsyncIterator[None], path: Path) -> None:
    writing = asyncio.create_task(keep_writing(path))
    try:
        await news(found)
    finally:
        writing.cancel()


async def test_a_new_file_in_a_folder_below_is_news(tmp_path: Path) -> None:
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)

    async with aclosing(changes([tmp_path], stop=asyncio.Event(), presence_s=0.1)) as found:
        await news(found)  # that the watch began
        await noticed(found, below / "model.gguf")

    assert (below / "model.gguf").exists()


async def test_the_coming_going_and_return_of_a_folder_is_news(tmp_path: Path) -> None:
    models = tmp_path / "models"

    async with aclosing(changes([models], stop=asyncio.Event(), presence_s=0.1)) as found:
        appeared = asyncio.ensure_future(anext(found))
        await asyncio.sleep(0)
        models.mkdir()
        async with asyncio.timeout(PATIENCE_S):
            await appeared
        await news(found)  # that the watch began
        await noticed(found, models / "first.gguf")
        shutil.rmtree(models)
        await news(found)
        models.mkdir()
        await noticed(found, models / "second.gguf")

    assert (models / "second.gguf").exists()


async def test_it_ends_when_it_is_told_to_whether_or_not_the_folder_exists(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        stop = asyncio.Event()
        waiting = asyncio.ensure_future(anext(changes([folder], stop=stop), "ended"))
        await asyncio.sleep(0.05)
        stop.set()

        async with asyncio.timeout(PATIENCE_S):
            assert await waiting == "ended"
