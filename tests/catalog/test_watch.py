"""News of changes under the models folders."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from modelyard.catalog.watch import changes

PATIENCE_S = 60.0
PRESENCE_S = 0.05
QUIET_S = 0.25
"""Longer than news of something that has already happened can take."""


class News:
    """Counts what `changes` yields."""

    def __init__(self) -> None:
        self.count = 0
        self.stop = asyncio.Event()

    async def gather(self, folders: Sequence[Path]) -> None:
        async for _ in changes(folders, stop=self.stop, presence_s=PRESENCE_S):
            self.count += 1

    async def quiet(self) -> int:
        """Wait until nothing more comes, and return the count."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                before = self.count
                await asyncio.sleep(QUIET_S)
                if self.count == before:
                    return before

    async def after(self, change: Callable[[], object]) -> bool:
        """Whether `change` is news. Waits for it as long as it takes."""
        before = await self.quiet()
        await asyncio.to_thread(change)
        async with asyncio.timeout(PATIENCE_S):
            while self.count == before:
                await asyncio.sleep(0.01)
        return True


@asynccontextmanager
async def watching(*folders: Path) -> AsyncIterator[News]:
    news = News()
    task = asyncio.create_task(news.gather(folders))
    yield news
    news.stop.set()
    async with asyncio.timeout(PATIENCE_S):
        await task


async def test_files_that_come_change_and_go_are_news(tmp_path: Path) -> None:
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    file = below / "model.gguf"

    async with watching(tmp_path) as news:
        assert await news.after(lambda: file.write_text("one"))
        assert await news.after(lambda: file.write_text("other"))
        assert await news.after(file.unlink)


async def test_what_happens_in_a_hidden_folder_is_no_news(tmp_path: Path) -> None:
    """Downloads are put together in one; the watched folder itself may lie in another."""
    models = tmp_path / ".cache" / "models"
    staging = models / ".modelyard-pulls" / "a"
    staging.mkdir(parents=True)

    async with watching(models) as news:
        before = await news.quiet()
        for number in range(3):
            (staging / f"part-{number}").write_text("x")
        assert await news.quiet() == before
        assert await news.after((models / "whole.gguf").touch)


async def test_a_folder_may_come_go_and_come_again(tmp_path: Path) -> None:
    models = tmp_path / "models"

    async with watching(models, tmp_path / "never") as news:
        assert await news.after(models.mkdir)
        assert await news.after((models / "first.gguf").touch)
        assert await news.after(lambda: shutil.rmtree(models))
        assert await news.after(models.mkdir)
        assert await news.after((models / "second.gguf").touch)


async def test_a_folder_that_is_replaced_at_once_is_watched_again(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()

    def replace() -> None:
        shutil.rmtree(models)
        models.mkdir()

    async with watching(models) as news:
        assert await news.after(replace)
        assert await news.after((models / "new.gguf").touch)


async def test_it_ends_when_it_is_told_to_whether_or_not_the_folder_exists(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        async with watching(folder) as news:
            await news.quiet()

        assert news.stop.is_set()


async def test_a_declared_file_outside_the_folders_is_watched_too(tmp_path: Path) -> None:
    single = tmp_path / "home/model.gguf"
    single.parent.mkdir()
    found = 0
    stop = asyncio.Event()

    async def gather() -> None:
        nonlocal found
        async for _ in changes((), files=[single], stop=stop, presence_s=PRESENCE_S):
            found += 1

    async with asyncio.timeout(PATIENCE_S):
        watching = asyncio.create_task(gather(), name="watching")
        for change in (b"first", b"second, longer"):
            before = found
            while found == before:
                single.write_bytes(change + bytes(found))
                await asyncio.sleep(PRESENCE_S)
        before = found
        single.unlink()
        while found == before:
            await asyncio.sleep(PRESENCE_S)
        stop.set()
        await watching


async def test_the_files_of_a_declared_folder_are_watched(tmp_path: Path) -> None:
    place = tmp_path / "model"
    place.mkdir()
    stop = asyncio.Event()
    news = changes((), files=[place], stop=stop, presence_s=PRESENCE_S)

    async with asyncio.timeout(PATIENCE_S):
        first = asyncio.create_task(anext(news), name="news")
        number = 0
        while not first.done():
            (place / "config.json").write_bytes(bytes(number))
            number += 1
            await asyncio.sleep(PRESENCE_S)
        await first
        stop.set()
        assert [item async for item in news] == []
