"""What the tests of launchers share: both event loops, real processes, and a look for leaks."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import psutil
import pytest
import uvloop

from modelyard.core.specs import Command
from modelyard.launchers.base import LogLine
from modelyard.launchers.local import LocalLauncher

PATIENCE_S = 60.0


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


class Lines:
    """A listener that remembers, and waits for what an engine says as `word value`."""

    def __init__(self) -> None:
        self.heard: list[LogLine] = []
        self._more = asyncio.Event()

    def __call__(self, line: LogLine) -> None:
        self.heard.append(line)
        self._more.set()

    @property
    def texts(self) -> list[str]:
        return [line.text for line in self.heard]

    async def value(self, word: str) -> str:
        """What followed `word` on the first line that began with it."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for text in self.texts:
                    if text.startswith(f"{word} "):
                        return text.removeprefix(f"{word} ")
                self._more.clear()
                await self._more.wait()

    async def pid(self, word: str) -> int:
        return int(await self.value(word))


class Server:
    """Another process with a launcher of its own, to be killed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def read_pids(self) -> dict[str, int]:
        """The next line the server prints: `name=pid name=pid …`."""
        assert self.process.stdout is not None
        words = (word.split("=") for word in self.process.stdout.readline().split())
        return {name: int(pid) for name, pid in words}


SERVER = """
import asyncio, sys
from pathlib import Path
from modelyard.core.specs import Command
from modelyard.launchers.local import LocalLauncher

async def main():
    launcher = LocalLauncher(Path(sys.argv[1]))
    pids = {}
    for n, code in enumerate(sys.argv[2:]):
        def hear(line):
            name, _, pid = line.text.partition(" ")
            pids[name] = int(pid)
        await launcher.start(Command((sys.executable, "-c", code)), label=str(n), on_line=hear)
    while len(pids) < len(sys.argv[2:]):
        await asyncio.sleep(0.01)
    guard = None
    while True:
        if launcher.guard_pid != guard:
            guard = launcher.guard_pid
            print(f"guard={guard}", *(f"{name}={pid}" for name, pid in pids.items()), flush=True)
        if Path(sys.argv[1], "leave").exists():
            return
        await asyncio.sleep(0.02)

asyncio.run(main())
"""


def is_running(pid: int) -> bool:
    """Whether the process lives; a zombie that process 1 has yet to collect does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def running() -> Callable[[int], bool]:
    return is_running


@pytest.fixture
def gone() -> Callable[..., bool]:
    """Wait until none of the pids runs; False if some still do."""

    def wait(*pids: int) -> bool:
        deadline = time.monotonic() + PATIENCE_S
        while any(map(is_running, pids)):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    return wait


@pytest.fixture
def python() -> Callable[[str], Command]:
    """A command that runs Python code."""
    return lambda code: Command((sys.executable, "-c", code))


@pytest.fixture
def lines() -> Lines:
    return Lines()


def _threads() -> set[threading.Thread]:
    return set(threading.enumerate())


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (iterdir keeps a descriptor open)


@pytest.fixture
async def launcher(tmp_path: Path) -> AsyncIterator[LocalLauncher]:
    """A launcher that must give back every process, thread and descriptor."""
    threads, children, descriptors = _threads(), _children(), _descriptors()
    launcher = LocalLauncher(tmp_path / "logs", ring_lines=100)
    yield launcher
    await launcher.close()

    assert _threads() <= threads
    assert _children() <= children
    assert _descriptors() == descriptors


@pytest.fixture
def other_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start a server whose engines run the given codes, each of which prints `name pid`."""
    servers: list[Server] = []

    def start(*codes: str) -> Server:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(tmp_path / "logs"), *codes],
            stdout=subprocess.PIPE,
            text=True,
        )
        servers.append(Server(process))
        return servers[-1]

    yield start
    for server in servers:
        server.process.kill()
        server.process.communicate()
