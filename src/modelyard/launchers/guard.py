"""The guard: a small process that ends every engine when the server is gone, even by SIGKILL.

The server starts `python -I -S guard.py SERVER_PID` and keeps the write end of its stdin. It writes
a line for each run it begins (`+RUN GROUP`, group 0 while the process is not yet there) and for
each that is over (`-RUN`). End of file means that the server is dead: whatever is still registered
is asked to end, and killed a moment later.

Laws of this file:
- It stands alone: standard library only, no import from the project, so that it starts in a few
  milliseconds, weighs a few MiB and cannot be broken by what breaks the server.
- The process table is read afresh before every signal. A run is its process group, its session,
  whatever carries its marker in the environment, and the descendants of all these.
- Only Linux lets us read other processes' groups, sessions and environments in one pass (proc(5));
  elsewhere a run is its process group.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

RUN_VARIABLE = "MODELYARD_RUN"
"""Every process of a run inherits this variable; its value is unique to the run."""

GRACE_S = 0.7
"""Time between asking and killing after the server's death; nobody is left to wait for more."""

KILL_PATIENCE_S = 10.0
"""How long a killed process may take to vanish. A driver can hold one in the kernel for ever."""

PARENT_CHECK_S = 1.0
"""A second way to notice the server's death, should a stranger have inherited its pipe."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.01, 0.1
_MARK = RUN_VARIABLE.encode() + b"="
PROC = "/proc"
HAS_TABLE = sys.platform == "linux"


class Entry(NamedTuple):
    """One process: whom it belongs to."""

    pid: int
    parent: int
    group: int
    session: int
    run: str
    """The marker it carries; empty if it has none, has ended, or is not ours to look into."""
    ended: bool
    """Whether it only waits to be collected by its parent (a zombie)."""


def table() -> list[Entry]:
    """All processes; empty where there is no proc(5).

    The pids are listed again until nobody new is among them. Otherwise a process that forks and
    ends after the listing, but before its own turn, would hide its child.
    """
    entries = []
    seen: set[str] = set()
    while HAS_TABLE and (new := set(filter(str.isdigit, os.listdir(PROC))) - seen):  # noqa: PTH208
        entries += [entry for pid in new if (entry := _entry(pid))]
        seen |= new
    return entries


def _entry(pid: str) -> Entry | None:
    # The name of a program may contain blanks and brackets; the last bracket ends it.
    fields = _read(f"{PROC}/{pid}/stat").rpartition(b")")[2].split()
    if len(fields) < 4:
        return None
    parent, group, session = map(int, fields[1:4])
    return Entry(int(pid), parent, group, session, _run(pid), fields[0] in (b"Z", b"X"))


def _run(pid: str) -> str:
    for variable in _read(f"{PROC}/{pid}/environ").split(b"\0"):
        if variable.startswith(_MARK):
            return variable.removeprefix(_MARK).decode("ascii", "replace")
    return ""


def members(runs: Mapping[str, int]) -> set[int]:
    """What `os.kill` must be given to reach every living process of the runs.

    `runs` maps each marker to its process group, 0 if that is not known. Where there is no
    process table the result names the groups (as negative numbers) that still exist.
    Raises OSError when the table cannot be read.
    """
    groups = {group for group in runs.values() if group}
    if not HAS_TABLE:
        return {-group for group in groups if _exists(-group)}
    if not runs:
        return set()
    entries = [entry for entry in table() if not entry.ended]
    found = {
        entry.pid
        for entry in entries
        if entry.run in runs or entry.group in groups or entry.session in groups
    }
    while more := {entry.pid for entry in entries if entry.parent in found} - found:
        found |= more
    return found


def end(find: Callable[[], set[int]], deadline: Callable[[], float]) -> set[int]:
    """Ask what `find` finds to end, kill it at `deadline` (monotonic), return what is left.

    Both are called again and again: processes fork while they are being ended, and a deadline
    may be brought forward.
    """
    asked: set[int] = set()
    pause = FIRST_PAUSE_S
    while left := _look(find):
        remaining = deadline() - time.monotonic()
        if remaining <= 0:
            return kill(find)
        for target in left - asked:
            send(target, signal.SIGTERM)
        asked |= left
        time.sleep(min(pause, remaining))
        pause = min(pause * 1.5, LONGEST_PAUSE_S)
    return set()


def kill(find: Callable[[], set[int]]) -> set[int]:
    """Kill what `find` finds until it finds nothing more; return what does not go away."""
    give_up = time.monotonic() + KILL_PATIENCE_S
    pause = FIRST_PAUSE_S
    while left := _look(find):
        if time.monotonic() >= give_up:
            return left
        for target in left:
            send(target, signal.SIGKILL)
        time.sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE_S)
    return set()


def _look(find: Callable[[], set[int]]) -> set[int]:
    """What `find` finds, nothing only if it says so twice.

    A process that is just executing another program has no readable environment for a moment.
    """
    found = find()
    if not found:
        time.sleep(FIRST_PAUSE_S)
        found = find()
    return found


def send(target: int, number: int) -> None:
    """Signal a process (or, negative, a group); one that is already gone is what we want."""
    try:
        os.kill(target, number)
    except (ProcessLookupError, PermissionError):
        # No permission: the process has changed its user, and is no longer ours to end.
        return


def _exists(target: int) -> bool:
    try:
        os.kill(target, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _read(path: str) -> bytes:
    """A file of proc(5); empty if its process has ended or belongs to somebody else.

    Any other failure (no descriptor left) is raised: not to see a process is not its end.
    """
    try:
        with open(path, "rb") as file:  # noqa: PTH123 (pathlib would slow down the guard's start)
            return file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def _register(runs: dict[str, int], line: str) -> None:
    run, _, group = line[1:].partition(" ")
    if line.startswith("+"):
        runs[run] = int(group)
    else:
        runs.pop(run, None)


def _listen(pipe: int, server: int) -> dict[str, int]:
    """Return the runs that are registered when the server dies."""
    runs: dict[str, int] = {}
    orphaned = False
    rest = b""
    while not orphaned:
        # What the server wrote before it died is read in any case.
        orphaned = os.getppid() != server
        while select.select([pipe], [], [], 0 if orphaned else PARENT_CHECK_S)[0]:
            data = os.read(pipe, 65536)
            if not data:
                return runs
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                _register(runs, line.decode())
    return runs


def main() -> None:
    """Wait for the server's death, then end its engines."""
    # Service managers and terminals signal everybody at once; the guard goes last.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    runs = _listen(sys.stdin.fileno(), server=int(sys.argv[1]))
    deadline = time.monotonic() + GRACE_S
    end(lambda: members(runs), lambda: deadline)
    # A process that was just being started when the server died shows its marker only now.
    while 0 in runs.values() and time.monotonic() < deadline:
        time.sleep(LONGEST_PAUSE_S)
        end(lambda: members(runs), lambda: deadline)


if __name__ == "__main__":
    main()
