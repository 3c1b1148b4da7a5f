"""Engines of servers that are dead: found by their marker when the next server starts, and ended.

Laws of this file:
- A process is a leftover only if it names a server that certainly no longer lives. In doubt
  (another user, another PID namespace, an unreadable marker) it is left alone.
- A server is named by its pid and the moment of its birth, because pids are used again.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from modelyard.launchers import guard
from modelyard.launchers.environment import OWNER_VARIABLE


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that outlived its server and was ended."""

    pid: int
    cmdline: tuple[str, ...]
    run: str
    """The marker of the run it belonged to; empty if it had none."""


def this_server() -> str:
    """How this process is named in the environment of the engines it starts."""
    return f"{os.getpid()}:{_birth(os.getpid())}"


def end_leftovers(grace_s: float) -> list[Ended]:
    """End the engines that a server left behind; kill after `grace_s` those that do not end.

    Blocks until they are gone; call it in a thread. Returns what was ended; a process that the
    kernel does not let go is not among it.
    """
    found: dict[int, Ended] = {}
    deadline = time.monotonic() + grace_s

    def find() -> set[int]:
        now = {process.pid: process for process in _leftovers()}
        found.update(now)
        return set(now)

    left = guard.end(find, lambda: deadline)
    return [ended for pid, ended in found.items() if pid not in left]


def _leftovers() -> list[Ended]:
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    leftovers = []
    alive: dict[str, bool] = {}
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            owner = environment.get(OWNER_VARIABLE)
            if owner is None or process.pid in spared or not _is_near(process):
                continue
            if owner not in alive:
                alive[owner] = _may_live(owner)
            if alive[owner] or process.status() == psutil.STATUS_ZOMBIE:
                continue
            run = environment.get(guard.RUN_VARIABLE, "")
            leftovers.append(Ended(process.pid, tuple(process.cmdline()), run))
        except psutil.Error:
            # Gone meanwhile, or not ours to look into.
            continue
    return leftovers


def _is_near(process: psutil.Process) -> bool:
    """Whether its pids are ours to judge: same user, and on Linux the same PID namespace."""
    if process.uids().real != os.getuid():
        return False
    if not guard.HAS_TABLE:
        return True
    try:
        return (
            Path(f"/proc/{process.pid}/ns/pid").readlink() == Path("/proc/self/ns/pid").readlink()
        )
    except OSError:
        return False


def _may_live(owner: str) -> bool:
    pid, _, birth = owner.partition(":")
    if not pid.isdigit() or not birth:
        return True
    return _birth(int(pid)) == birth


def _birth(pid: int) -> str:
    """When a process began, in words that never change while it lives; empty if there is none.

    On Linux in clock ticks after boot (proc(5), field 22): the time of day that is computed from
    them moves when the system's clock is set.
    """
    if guard.HAS_TABLE:
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            return ""
        fields = stat.rpartition(b")")[2].split()
        return "" if fields[0] in (b"Z", b"X") else fields[19].decode()
    try:
        return f"{psutil.Process(pid).create_time():.3f}"
    except psutil.Error:
        return ""
