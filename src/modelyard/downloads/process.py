"""The download process from the other side: started, listened to, ended.

Laws of this file:
- The process dies with its stdin, so it cannot outlive us; leaving the block ends it.
- It has a session of its own: Ctrl-C is for the program that started it, which ends it in order.
- A process that says nothing sensible is a failed download, never an error of ours.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping

import msgspec

from modelyard.downloads.job import Failed, Finished, Job, News

END_GRACE_S = 5.0
_LINE_BYTES = 16 * 2**20
_TAIL_LINES = 5


async def news_of(job: Job, env: Mapping[str, str]) -> AsyncGenerator[News, None]:
    """Do the job in a process with the environment `env`, and tell how it goes.

    The last news is `Finished` or `Failed`. Closing the iterator ends the process.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "modelyard.downloads.worker",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=dict(env),
        limit=_LINE_BYTES,
        start_new_session=True,
    )
    try:
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(job) + b"\n")
        async for news in _read(process):
            yield news
            if isinstance(news, Failed):
                return
    finally:
        ending = asyncio.ensure_future(_ended(process))
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            await ending  # whoever ends us waits until nothing is left
            raise


async def _read(process: asyncio.subprocess.Process) -> AsyncIterator[News]:
    assert process.stdout is not None
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    last: News | None = None
    while True:
        try:
            line = await process.stdout.readline()
        except ValueError:
            line = b""  # longer than any news can be
        if not line:
            break
        try:
            last = msgspec.json.decode(line, type=News)
        except (msgspec.DecodeError, UnicodeDecodeError):
            tail.append(line.decode("utf-8", "replace").strip()[:300])
            continue
        yield last
    if not isinstance(last, Finished | Failed):
        said = f": {' '.join(tail)}" if tail else ""
        code = await process.wait()
        yield Failed("internal_error", f"the download process ended with code {code}{said}")


async def _ended(process: asyncio.subprocess.Process) -> None:
    """The process is gone, and its pipes with it."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(END_GRACE_S):
            await process.communicate()
    except TimeoutError:
        process.kill()
        await process.communicate()
