"""Engines as processes of this machine, none of which outlives its server.

Laws of this file:
- Every run has a session of its own and a thread that starts it, waits for it, ends whatever it
  leaves behind, and only then reaps it: until that moment its pid, which is the group's id, cannot
  be given to a stranger, and nothing we signal can be anybody else's.
- A run is over when its process and all its descendants are gone and its output has been read.
- Four things end engines after the server: the guard (any death, within about a second), the
  kernel's parent-death signal, the end of their stdin, and `end_leftovers` at the next start.
- Nothing here blocks the event loop, and it does not matter which loop it is: processes are started
  by `subprocess` in the run's thread (vfork: no copy of the server's memory, no child watcher).
- POSIX only. Windows needs a job object instead of groups and signals, and a launcher of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import shlex
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from modelyard.core.errors import LaunchError
from modelyard.core.specs import Command
from modelyard.launchers import guard
from modelyard.launchers.base import Exit, LogLine
from modelyard.launchers.environment import engine_environment
from modelyard.launchers.leash import Leash
from modelyard.launchers.leftovers import this_server
from modelyard.launchers.lifeline import Lifeline
from modelyard.launchers.logfile import LogFile, log_name
from modelyard.launchers.output import RunLog
from modelyard.launchers.program import explain, resolve

_log = logging.getLogger(__name__)

MIB = 1024 * 1024

LEFTOVER_GRACE_S = 2.0
"""Time that descendants of a process which ended by itself are given to end."""

CLOSE_GRACE_S, CLOSE_PATIENCE_S = 5.0, 20.0
"""Time that engines still running when the launcher closes are given to end, and to be gone."""

OUTPUT_PATIENCE_S = 0.5
"""How long the end of the output is awaited once no process of the run is left."""


class LocalProcess:
    """One run: a process, its descendants and their output (a `Process`)."""

    def __init__(
        self, command: Command, *, label: str, log: RunLog, lifeline: Lifeline, leash: Leash
    ) -> None:
        self.run = uuid.uuid4().hex
        self.label = label
        self.log = log
        self._command = command
        self._lifeline = lifeline
        self._leash = leash
        self._loop = asyncio.get_running_loop()
        self._started: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[Exit] = self._loop.create_future()
        self._killing: asyncio.TimerHandle | None = None
        self._lock = threading.Lock()
        self._popen: subprocess.Popen[bytes] | None = None
        self._signalable = False
        self._deadline: float | None = None
        self._stdin = -1
        self._thread = threading.Thread(target=self._live, name=f"run {label}", daemon=True)

    def __repr__(self) -> str:
        pid = self._popen.pid if self._popen else None
        state = str(self._ended.result()) if self._ended.done() else "running"
        return f"<LocalProcess {self.label} pid={pid} {state}>"

    @property
    def pid(self) -> int:
        """The process id, which is also the id of its group and session."""
        return self._started_popen.pid

    @property
    def _started_popen(self) -> subprocess.Popen[bytes]:
        assert self._popen is not None, "only a started process is handed out"
        return self._popen

    def pids(self) -> set[int]:
        """The processes of the run that live now."""
        return set() if self._ended.done() else guard.members({self.run: self.pid})

    async def started(self) -> None:
        """Start the process. Raises LaunchError; if cancelled, the process is ended."""
        try:
            self._thread.start()
        except RuntimeError as error:
            self._is_over(Exit())
            raise LaunchError(f"no thread is left for the engine of {self.label}") from error
        try:
            await asyncio.shield(self._started)
        except asyncio.CancelledError:
            self._ask_to_end(0.0)
            raise

    def when_over(self, act: Callable[[], None]) -> None:
        """Have `act` called on the event loop once, when the run is over or has failed to start."""
        self._ended.add_done_callback(lambda _: act())

    async def wait(self) -> Exit:
        """Return when the process and its descendants have ended and its output has been read."""
        return await asyncio.shield(self._ended)

    async def stop(self, grace_s: float) -> Exit:
        """Ask the group to end, kill after `grace_s` what is left of the run, return its exit.

        May be called at any time and by several tasks: the earliest deadline counts.
        """
        if not self._ended.done():
            self._ask_to_end(grace_s)
        return await self.wait()

    def join(self) -> None:
        """Wait for the thread of a run that is over; it has nothing left to do but to return."""
        if self._ended.done() and self._thread.ident is not None:
            self._thread.join()

    def _ask_to_end(self, grace_s: float) -> None:
        deadline = time.monotonic() + grace_s
        with self._lock:
            first = self._deadline is None
            if self._deadline is not None and self._deadline <= deadline:
                return
            self._deadline = deadline
        if first:
            self._signal_group(signal.SIGTERM)
        if self._killing is not None:
            self._killing.cancel()
        self._killing = self._loop.call_later(grace_s, self._signal_group, signal.SIGKILL)

    def _signal_group(self, number: int) -> None:
        with self._lock:
            if self._signalable:
                guard.send(-self.pid, number)

    # What follows runs in the run's own thread.

    def _live(self) -> None:
        try:
            self._start()
        except Exception as error:
            self._lifeline.remove(self.run)
            self._give_back()
            self._tell(self._not_started, error)
            return
        self._tell(self._is_started)
        self._await_exit()
        try:
            self._end_descendants()
        finally:
            ended = self._reap()
            self._give_back()
            self._tell(self._is_over, ended)

    def _start(self) -> None:
        """Start the process. Raises LaunchError."""
        command = self._command
        env = engine_environment(os.environ, command.env, run=self.run, owner=this_server())
        argv = resolve(command, env)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        shown = shlex.join(argv).replace("\r", "\\r").replace("\n", "\\n")
        self.log.head(f"=== {now} run {self.run} {shown}")
        self._lifeline.add(self.run)
        try:
            self._spawn(argv, env)
        except OSError as error:
            raise explain(error, argv[0]) from error
        except (ValueError, RuntimeError, subprocess.SubprocessError) as error:
            raise LaunchError(f"{argv[0]} could not be started: {error}") from error
        self._lifeline.add(self.run, self.pid)

    def _spawn(self, argv: tuple[str, ...], env: dict[str, str]) -> None:
        theirs: list[int] = []
        try:
            # Nothing is ever written to it: it ends when we do, and our own servers watch that.
            stdin, self._stdin = os.pipe()
            theirs.append(stdin)
            output, printed = os.pipe()
            theirs.append(printed)
            self.log.begin(output, f"output {self.label}")
            popen = subprocess.Popen(
                self._leash.on(argv),
                stdin=stdin,
                stdout=printed,
                stderr=subprocess.STDOUT,
                cwd=self._command.cwd,
                env=env,
                start_new_session=True,
            )
        finally:
            for fd in theirs:
                os.close(fd)
        with self._lock:
            self._popen = popen
            self._signalable = True
            unwanted = self._deadline is not None
        if unwanted:
            self._signal_group(signal.SIGKILL)

    def _await_exit(self) -> None:
        """Wait for the leader's end, without reaping it where the system can do that."""
        if not hasattr(os, "waitid"):
            self._started_popen.wait()
            return
        try:
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            # Somebody in this process ignores SIGCHLD, so the kernel has reaped it.
            return

    def _end_descendants(self) -> None:
        """End what is left of the run: by the deadline of `stop`, or soon after a crash."""
        crashed = self._deadline is None
        latest = time.monotonic() + LEFTOVER_GRACE_S if crashed else math.inf
        seen: set[int] = set()

        def find() -> set[int]:
            try:
                found = guard.members({self.run: self.pid})
            except OSError:
                # No descriptor left to read the process table: at least the group is reached.
                return {-self.pid}
            seen.update(found)
            return found

        stuck = guard.end(find, lambda: min(latest, self._deadline or math.inf))
        if stuck:
            pids = ", ".join(str(abs(target)) for target in stuck)
            self.log.note(f"killed, but not seen to end (held in the kernel?): {pids}")
            # By its marker alone: the group's id can be a stranger's when the server ends.
            self._lifeline.add(self.run)
        else:
            self._lifeline.remove(self.run)
        self._collect_adopted(seen)

    def _collect_adopted(self, seen: set[int]) -> None:
        """Collect descendants that were handed to us, as happens where we are process 1.

        What cannot be collected now (no descriptor, somebody was faster) stays a zombie: a pid, no
        memory, and no reason to fail the run.
        """
        with contextlib.suppress(OSError):
            for entry in guard.table():
                ours = entry.pid != self.pid and (entry.session == self.pid or entry.pid in seen)
                if ours and entry.ended and entry.parent == os.getpid():
                    os.waitpid(entry.pid, os.WNOHANG)

    def _reap(self) -> Exit:
        with self._lock:
            self._signalable = False
        code = self._started_popen.wait()
        return Exit(code=code) if code >= 0 else Exit(signal=_signal_name(-code))

    def _give_back(self) -> None:
        """Close everything this run held."""
        self.log.finish(OUTPUT_PATIENCE_S)
        if self._stdin >= 0:
            os.close(self._stdin)
            self._stdin = -1

    def _tell(self, news: Callable[..., None], *values: object) -> None:
        try:
            self._loop.call_soon_threadsafe(news, *values)
        except RuntimeError:
            # The loop is closed, nobody is left to be told; the work itself is done.
            return

    # News from the thread, on the event loop.

    def _is_started(self) -> None:
        self._started.set_result(None)

    def _not_started(self, error: Exception) -> None:
        self._started.set_exception(error)
        self._is_over(Exit())

    def _is_over(self, ended: Exit) -> None:
        if self._killing is not None:
            self._killing.cancel()
        self.log.deliver_rest()
        self._ended.set_result(ended)


class LocalLauncher:
    """Starts engines on this machine (a `Launcher`).

    `log_dir` gets one rotated file for each label, of at most `log_bytes`, `log_files` of them;
    `ring_lines` are kept in memory for each run.
    """

    def __init__(
        self,
        log_dir: Path,
        *,
        ring_lines: int = 2000,
        log_bytes: int = 10 * MIB,
        log_files: int = 3,
    ) -> None:
        self._log_dir = log_dir
        self._ring_lines = ring_lines
        self._log_bytes = log_bytes
        self._log_files = log_files
        self._lifeline = Lifeline()
        self._leash = Leash()
        self._files: dict[str, LogFile] = {}
        self._runs: set[LocalProcess] = set()
        self._closed = False

    def __repr__(self) -> str:
        return f"<LocalLauncher {self._log_dir} runs={len(self._runs)}>"

    @property
    def guard_pid(self) -> int | None:
        """The process that ends all engines when this one dies; None before the first start."""
        return self._lifeline.guard_pid

    async def start(
        self, command: Command, *, label: str, on_line: Callable[[LogLine], None]
    ) -> LocalProcess:
        """Start `command` with its output in the log file named after `label`.

        `on_line` is called on this event loop for every line, in order and before `wait` returns;
        one that cannot keep up misses lines, which their numbers show.
        Raises LaunchError. If cancelled, nothing stays behind.
        """
        if self._closed:
            raise LaunchError("the launcher is closed", hint="the server is shutting down")
        log = RunLog(
            self._log_file(label),
            ring_lines=self._ring_lines,
            loop=asyncio.get_running_loop(),
            on_line=on_line,
        )
        process = LocalProcess(
            command, label=label, log=log, lifeline=self._lifeline, leash=self._leash
        )
        self._runs.add(process)
        process.when_over(lambda: self._runs.discard(process))
        await process.started()
        return process

    async def close(self) -> None:
        """End every run, wait for the guard to go, refuse further starts.

        An engine that the kernel does not let go is logged and left to the guard.
        """
        self._closed = True
        runs = list(self._runs)
        try:
            async with asyncio.timeout(CLOSE_PATIENCE_S):
                await asyncio.gather(*(run.stop(CLOSE_GRACE_S) for run in runs))
        except TimeoutError:
            _log.error("not ended, left to the guard: %s", ", ".join(map(repr, self._runs)))
        finally:
            for run in runs:
                run.join()
            with ThreadPoolExecutor(1, thread_name_prefix="close") as aside:
                await asyncio.get_running_loop().run_in_executor(aside, self._lifeline.close)

    def _log_file(self, label: str) -> LogFile:
        name = log_name(label)
        if name not in self._files:
            self._files[name] = LogFile(
                self._log_dir / name, max_bytes=self._log_bytes, files=self._log_files
            )
        return self._files[name]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
