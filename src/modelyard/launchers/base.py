"""Where a process runs. A launcher starts a command and reports its exit exactly once.

Laws of this file:
- A process that cannot be started is a `LaunchError` with the reason; everything later is a value.
- Output is never lost and never blocks the engine; it is kept in a rotated file and a bounded ring.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from modelyard.core.specs import Command


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: its code, or the signal that ended it."""

    code: int | None = None
    signal: str | None = None

    def __str__(self) -> str:
        return f"killed by {self.signal}" if self.signal else f"exit code {self.code}"


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line an engine printed; `number` counts the lines of one run from 1."""

    number: int
    text: str


class EngineLog(Protocol):
    """The output of one run."""

    @property
    def path(self) -> Path: ...

    def tail(self, count: int) -> Sequence[LogLine]:
        """The newest `count` lines still in the ring, oldest first."""
        ...


class Process(Protocol):
    """A started engine: its process and all its descendants."""

    @property
    def pid(self) -> int: ...

    @property
    def log(self) -> EngineLog: ...

    def pids(self) -> set[int]:
        """The process and its descendants that live now. Reads the process table: may block."""
        ...

    async def wait(self) -> Exit:
        """Return when the process has ended. May be awaited by several tasks."""
        ...

    async def stop(self, grace_s: float) -> Exit:
        """Ask the whole process group to end, kill it after `grace_s`, and return its exit."""
        ...


class Launcher(Protocol):
    async def start(
        self, command: Command, *, label: str, on_line: Callable[[LogLine], None]
    ) -> Process:
        """Start `command`; `label` (the model's id) names its log file.

        `on_line` is called on the event loop for every line of output; one that cannot keep up
        misses lines, which their numbers show.
        Raises LaunchError when the process cannot be started.
        """
        ...

    async def close(self) -> None:
        """End what is left and give back everything the launcher holds."""
        ...
