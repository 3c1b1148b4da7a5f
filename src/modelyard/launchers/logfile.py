"""Log files of engines: appended to, rotated by size, never in anybody's way.

Laws of this file:
- Writing never raises: a full disk is reported once, by return value, and tried again later.
- A line is never split over two files.
- All runs of one model share one `LogFile`, so that rotation has one owner.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Iterable
from pathlib import Path

RETRY_S = 60.0
"""Time between attempts to write after one has failed."""

_UNSAFE = re.compile(r"[^\w.@+=-]+")
_LONGEST_NAME = 100


def log_name(label: str) -> str:
    """A file name for a model's log: readable, without a path in it, different for every label."""
    name = _UNSAFE.sub("_", label).lstrip(".")[:_LONGEST_NAME]
    if name and name == label:
        return f"{name}.log"
    digest = hashlib.blake2b(label.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return f"{name or 'engine'}-{digest}.log"


class LogFile:
    """`path` and its older parts `path.1`, `path.2` …; `files` is the number of all of them."""

    def __init__(self, path: Path, *, max_bytes: int, files: int) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._files = files
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._size = 0
        self._users = 0
        self._retry_at: float | None = None

    def acquire(self) -> None:
        """Count one more run that writes here."""
        with self._lock:
            self._users += 1
            self._retry_at = None

    def release(self) -> None:
        """Count one run less; the last one closes the file."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._close()

    def write(self, lines: Iterable[str]) -> str | None:
        """Append lines. Returns why that failed if it did and nobody has been told yet."""
        with self._lock:
            failed_before = self._retry_at is not None
            if self._retry_at is not None and time.monotonic() < self._retry_at:
                return None
            try:
                self._append(lines)
            except OSError as error:
                self._close()
                self._retry_at = time.monotonic() + RETRY_S
                if failed_before:
                    return None
                return f"the log file {self.path} cannot be written: {error.strerror or error}"
            self._retry_at = None
            return None

    def _append(self, lines: Iterable[str]) -> None:
        block = bytearray()
        for line in lines:
            data = line.encode("utf-8", "replace") + b"\n"
            if self._size + len(block) + len(data) > self._max_bytes and self._size + len(block):
                self._flush(block)
                self._rotate()
            block += data
        self._flush(block)

    def _flush(self, block: bytearray) -> None:
        while block:
            written = os.write(self._open(), block)
            self._size += written
            del block[:written]

    def _open(self) -> int:
        if self._fd is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Prompts may appear in an engine's output: nobody else's business.
            self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            self._size = os.fstat(self._fd).st_size
        return self._fd

    def _rotate(self) -> None:
        self._close()
        parts = [self.path, *(Path(f"{self.path}.{n}") for n in range(1, self._files))]
        if len(parts) == 1:
            self.path.unlink(missing_ok=True)
        for older, newer in zip(reversed(parts), reversed(parts[:-1]), strict=False):
            if newer.exists():
                newer.replace(older)

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        self._size = 0
