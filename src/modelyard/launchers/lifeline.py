"""The server's end of the guard: starts it, tells it what runs, and replaces it when it dies.

Laws of this file:
- A run is registered before its process exists, so that no moment is unguarded.
- The guard's stdin is the only copy of the pipe outside the server; engines never inherit it.
- Everything here blocks (briefly) and is called from threads, never from the event loop.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from modelyard.core.errors import LaunchError
from modelyard.launchers import guard
from modelyard.launchers.environment import inherited

_log = logging.getLogger(__name__)

RESTART_PAUSE_S, LONGEST_PAUSE_S = 0.2, 30.0
"""Pauses before a guard is replaced that did not last; they double."""

STEADY_S = 1.0
"""A guard that lived longer is replaced at once."""

CLOSE_PATIENCE_S = 5.0


class Lifeline:
    """Keeps one guard alive from the first registration until `close`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: int | None = None
        self._watch: threading.Thread | None = None
        self._closing = threading.Event()

    @property
    def guard_pid(self) -> int | None:
        """The guard's process id; None before the first run and after `close`."""
        with self._lock:
            return self._process.pid if self._process else None

    def add(self, run: str, group: int = 0) -> None:
        """Have `run` ended with the server; `group` is its process group once there is one.

        Raises LaunchError when there is no guard and none can be started: an engine that nobody
        would end is not started.
        """
        with self._lock:
            self._runs[run] = group
            if self._process is not None:
                self._send(f"+{run} {group}\n")
                return
            try:
                self._begin()
            except (OSError, RuntimeError) as error:
                del self._runs[run]
                raise LaunchError(
                    f"cannot start the guard process that ends engines with the server: {error}"
                ) from error

    def remove(self, run: str) -> None:
        """Forget a run that is over."""
        with self._lock:
            if self._runs.pop(run, None) is not None:
                self._send(f"-{run}\n")

    def close(self) -> None:
        """Let the guard go: what is still registered is ended by it. Returns when it has gone."""
        self._closing.set()
        with self._lock:
            self._hang_up()
            process, watch = self._process, self._watch
        if process is None or watch is None:
            return
        watch.join(CLOSE_PATIENCE_S)
        if watch.is_alive():
            process.kill()
            watch.join()
        with self._lock:
            self._process = self._watch = None

    def _begin(self) -> None:
        self._start()
        watch = threading.Thread(target=self._replace, name="guard", daemon=True)
        try:
            watch.start()
        except RuntimeError:
            self._hang_up()
            self._process = None
            raise
        self._watch = watch

    def _start(self) -> None:
        """Start a guard and tell it all that runs. The caller holds the lock."""
        program = str(Path(guard.__file__).resolve())
        reading, writing = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", program, str(os.getpid())],
                stdin=reading,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=inherited(os.environ),
                start_new_session=True,
            )
        except OSError:
            os.close(writing)
            raise
        finally:
            os.close(reading)
        os.set_blocking(writing, False)
        self._pipe = writing
        for run, group in self._runs.items():
            self._send(f"+{run} {group}\n")

    def _send(self, line: str) -> None:
        """Write one line, which a pipe takes whole or not at all (PIPE_BUF, pipe(7))."""
        if self._pipe is None or self._process is None:
            return
        try:
            os.write(self._pipe, line.encode())
        except BrokenPipeError:
            # It has just died: its successor is told everything.
            return
        except BlockingIOError:
            _log.warning("the guard process %d does not listen: replacing it", self._process.pid)
            self._process.kill()

    def _hang_up(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None

    def _replace(self) -> None:
        """Wait for the guard's death; start another as long as the server wants one."""
        pause = 0.0
        while self._process is not None:
            since = time.monotonic()
            code = self._process.wait()
            if self._closing.is_set():
                return
            _log.warning("the guard process %d ended (%d)", self._process.pid, code)
            lasted = time.monotonic() - since > STEADY_S
            pause = 0.0 if lasted else min(max(pause * 2, RESTART_PAUSE_S), LONGEST_PAUSE_S)
            if self._closing.wait(pause):
                return
            with self._lock:
                if self._closing.is_set():
                    return
                self._hang_up()
                try:
                    self._start()
                except OSError as error:
                    _log.error("cannot start the guard process: %s (trying again)", error)
