"""What is going on while a command waits: a line that is rewritten, or a few plain lines.

Laws of this file:
- A line that is rewritten leaves nothing on the terminal when it is over.
- Live news is read in a thread of its own, because the command itself waits for an answer.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import TextIO

from modelyard.cli.output import is_terminal
from modelyard.cli.words import clean, doing, span
from modelyard.client import Client
from modelyard.core.errors import ModelyardError
from modelyard.core.views import Event, ModelView

TICK_S = 0.2
STEP_PERCENT = 25
"""How far a percentage moves between two plain lines."""
CLOSE_PATIENCE_S = 2.0
"""Longest wait for the thread that reads the news; it ends with the process in any case."""
ERASE_LINE = "\r\x1b[2K"


class Progress:
    """Says what is going on, and for how long. Usable from several threads."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """Write to `stream`; None is stderr."""
        self._stream = stream or sys.stderr
        self.live = is_terminal(self._stream)
        self._lock = threading.Lock()
        self._text = ""
        self._since = time.monotonic()
        self._ended = threading.Event()
        self._ticker: threading.Thread | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def show(self, text: str) -> None:
        """What is going on now. Said once where lines cannot be rewritten."""
        with self._lock:
            if self._ended.is_set() or text == self._text:
                return
            if not self.live:
                print(clean(text), file=self._stream, flush=True)
            self._text = text
            if self.live and self._ticker is None:
                self._ticker = threading.Thread(target=self._tick, name="progress", daemon=True)
                self._ticker.start()

    def keep(self, text: str) -> None:
        """A line that stays."""
        self.write(clean(text) + "\n")

    def write(self, text: str) -> None:
        """Text that stays, without the end of a line. Nothing is written once it is over."""
        with self._lock:
            if not self._ended.is_set():
                self._erase()
                self._stream.write(text)
                self._stream.flush()
                self._since = time.monotonic()

    def close(self) -> None:
        """It is over. Closing it again does nothing."""
        self._ended.set()
        if self._ticker is not None:
            self._ticker.join()
        with self._lock:
            self._erase()

    def _tick(self) -> None:
        while True:
            with self._lock:
                if self._text:
                    self._draw()
            if self._ended.wait(TICK_S):
                return

    def _draw(self) -> None:
        from rich.cells import cell_len, set_cell_size

        text, passed = clean(self._text), f"  {span(time.monotonic() - self._since)}"
        room = shutil.get_terminal_size().columns - len(passed) - 1
        if cell_len(text) > room:  # a line that wraps could not be erased
            text = set_cell_size(text, max(room, 0))
        self._stream.write(ERASE_LINE + text + passed)
        self._stream.flush()

    def _erase(self) -> None:
        if self.live and self._text:
            self._stream.write(ERASE_LINE)
            self._stream.flush()
        self._text = ""


class Listener:
    """Hands the models' live news to `hear`, in a thread, until it is closed or the server ends.

    `over` is called in the end, with the error if there was one. It has a client of its own, so
    that nothing it waits for depends on what its owner was interrupted in.
    """

    def __init__(
        self,
        url: str,
        hear: Callable[[Event], None],
        over: Callable[[ModelyardError | None], None] | None = None,
    ) -> None:
        self._hear = hear
        self._over = over
        self._client = Client(url)
        self._events = self._client.events(("models", "removed"))
        self._thread = threading.Thread(target=self._read, name="news", daemon=True)
        self._thread.start()

    def __enter__(self) -> Listener:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._events.close()
        self._thread.join(CLOSE_PATIENCE_S)

    def _read(self) -> None:
        ended: ModelyardError | None = None
        try:
            for event in self._events:
                self._hear(event)
        except ModelyardError as error:
            ended = error
        finally:
            self._client.close()
        if self._over is not None:
            self._over(ended)


def describe(view: ModelView) -> str:
    """What keeps a model from answering, for a line of progress."""
    if view.waiting_for and view.state not in ("starting", "restarting"):
        return f"{view.id}: {view.waiting_for}"
    if view.percent is not None and not is_terminal(sys.stderr):
        view = replace(view, percent=STEP_PERCENT * (view.percent // STEP_PERCENT))
    return f"{view.id}: {doing(view)}"
