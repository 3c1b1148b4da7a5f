"""What an engine prints: read at once, split into lines, kept in a file and in a bounded ring.

Laws of this file:
- Reading has a thread of its own and waits neither for the event loop nor for a listener; a disk
  that is full or refuses is not asked again for a while. The engine never blocks on its output.
- Everything is bounded. A line has at most `LINE_BYTES` (longer ones are continued on the next),
  the ring has `ring_lines`, and a listener that cannot keep up is given the newest `ring_lines`:
  the gap shows in the numbers. The file has every line.
- Lines end at LF, CR LF, or CR (progress bars). Bytes that are not UTF-8 are replaced.
"""

from __future__ import annotations

import asyncio
import os
import re
import select
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path

from modelyard.launchers.base import LogLine
from modelyard.launchers.logfile import LogFile

LINE_BYTES = 16 * 1024
READ_BYTES = 64 * 1024
LINES_PER_TURN = 256
"""Lines a listener is given before other work of the event loop has its turn."""

_END_OF_LINE = re.compile(rb"\r\n|\n|\r")


class LineSplitter:
    """Turns a stream of bytes into lines."""

    def __init__(self) -> None:
        self._rest = b""
        self._open_cr = False
        self._blank_before_cr = False

    @property
    def unfinished(self) -> str:
        """What has come of a line that has not ended yet."""
        return _decode(self._rest)

    def feed(self, data: bytes) -> list[str]:
        """Return the lines that `data` completes."""
        lines: list[str] = []
        if self._open_cr and data.startswith(b"\n"):
            # The second half of CR LF: the line itself went out with the first, unless blank.
            lines += [""] if self._blank_before_cr else []
            data = data[1:]
            self._open_cr = False
        start = 0
        if data:
            self._open_cr = data.endswith(b"\r")
        data = self._rest + data
        for match in _END_OF_LINE.finditer(data, len(self._rest)):
            piece = data[start : match.start()]
            self._blank_before_cr = not piece
            # A progress bar begins with the CR that others end with: no line of its own.
            if piece or match.group() != b"\r":
                lines += map(_decode, _pieces(piece))
            start = match.end()
        *full, self._rest = _pieces(data[start:])
        return lines + [_decode(piece) for piece in full]

    def finish(self) -> list[str]:
        """Return the last line if no line end followed it."""
        rest, self._rest = self._rest, b""
        return [_decode(rest)] if rest else []


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _pieces(line: bytes) -> list[bytes]:
    """Cut a long line between characters; at least one piece, the last one at most full."""
    pieces = []
    while len(line) > LINE_BYTES:
        cut = LINE_BYTES
        # Bytes 10xxxxxx continue a character; a valid one has at most three of them.
        while cut > LINE_BYTES - 4 and line[cut] & 0xC0 == 0x80:
            cut -= 1
        pieces.append(line[:cut])
        line = line[cut:]
    return [*pieces, line]


class RunLog:
    """The output of one run (an `EngineLog`): reads `source` until its end or until `finish`."""

    def __init__(
        self,
        file: LogFile,
        *,
        ring_lines: int,
        loop: asyncio.AbstractEventLoop,
        on_line: Callable[[LogLine], None],
    ) -> None:
        self._file = file
        self._loop = loop
        self._on_line = on_line
        self._lock = threading.Lock()
        self._ring: deque[LogLine] = deque(maxlen=ring_lines)
        self._undelivered: deque[LogLine] = deque(maxlen=ring_lines)
        self._delivering = False
        self._count = 0
        self._splitter = LineSplitter()
        self._thread: threading.Thread | None = None
        self._source = self._wake_reading = self._wake_writing = -1
        self._opened = False

    @property
    def path(self) -> Path:
        return self._file.path

    def tail(self, count: int) -> Sequence[LogLine]:
        """The newest `count` lines, oldest first; a line still being printed is the last."""
        with self._lock:
            lines = list(self._ring)
            if unfinished := self._splitter.unfinished:
                lines.append(LogLine(self._count + 1, unfinished))
        return lines[-count:] if count > 0 else []

    def note(self, text: str) -> None:
        """Add a line of ours to what the engine printed."""
        self._keep([f"modelyard: {text}"], to_file=False)

    def head(self, text: str) -> None:
        """Open the file and write a line to it alone: where a run begins."""
        self._file.acquire()
        self._opened = True
        if complaint := self._file.write([text]):
            self.note(complaint)

    def begin(self, source: int, name: str) -> None:
        """Read `source`, which is ours from now on, in a thread of that name.

        Raises OSError or RuntimeError when the system refuses a pipe or a thread; `source` is
        closed in that case too.
        """
        self._source = source
        try:
            self._wake_reading, self._wake_writing = os.pipe()
            thread = threading.Thread(target=self._read, name=name, daemon=True)
            thread.start()
        except (OSError, RuntimeError):
            self._close()
            raise
        self._thread = thread

    def finish(self, patience_s: float) -> None:
        """Wait for the end of the output, but not for a stranger who still holds the pipe."""
        if self._thread is not None:
            self._thread.join(patience_s)
            os.write(self._wake_writing, b"x")
            self._thread.join()
            self._close()
        if self._opened:
            self._opened = False
            self._file.release()

    def _read(self) -> None:
        poll = select.poll()
        poll.register(self._source, select.POLLIN)
        poll.register(self._wake_reading, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._source not in ready:
                break
            data = os.read(self._source, READ_BYTES)
            if not data:
                break
            with self._lock:
                lines = self._splitter.feed(data)
            self._keep(lines)
            if self._wake_reading in ready:
                break
        with self._lock:
            lines = self._splitter.finish()
        self._keep(lines)

    def _keep(self, lines: Iterable[str], *, to_file: bool = True) -> None:
        texts = list(lines)
        if not texts:
            return
        with self._lock:
            numbered = [LogLine(self._count + n, text) for n, text in enumerate(texts, start=1)]
            self._count += len(numbered)
            self._ring.extend(numbered)
            self._undelivered.extend(numbered)
            call, self._delivering = not self._delivering, True
        if call:
            self._wake_listener()
        if to_file and (complaint := self._file.write(texts)):
            self.note(complaint)

    def _wake_listener(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:
            # The loop is closed: there is no listener any more. The file goes on.
            return

    def _deliver(self) -> None:
        with self._lock:
            batch = list(islice(self._undelivered, LINES_PER_TURN))
            for _ in batch:
                self._undelivered.popleft()
            self._delivering = bool(self._undelivered)
            again = self._delivering
        for line in batch:
            try:
                self._on_line(line)
            except Exception as error:
                self._loop.call_exception_handler(
                    {"message": f"a listener failed on line {line.number}", "exception": error}
                )
        if again:
            self._loop.call_soon(self._deliver)

    def deliver_rest(self) -> None:
        """Hand out every line that is still undelivered. Called on the event loop."""
        while self._undelivered:
            self._deliver()

    def _close(self) -> None:
        for fd in (self._source, self._wake_reading, self._wake_writing):
            if fd >= 0:
                os.close(fd)
        self._source = self._wake_reading = self._wake_writing = -1
