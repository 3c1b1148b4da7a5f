"""What a server does while the demo asks it something, told as its news come in.

Laws of this file:
- Nothing is told that was not seen in the news.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from modelyard.cli.progress import Progress, describe
from modelyard.cli.words import counted, memory, span
from modelyard.core.errors import ModelyardError
from modelyard.core.views import Event, ModelView

NEWS_PATIENCE_S = 5.0
"""How long the news of a load may come after the answer that needed it."""
_SHOWN = frozenset({"starting", "suspending", "waking", "stopping"})


@dataclass
class Step:
    """One request of the demo and what it took."""

    name: str
    model: str
    seconds: float = 0.0
    load_s: float | None = None
    """How long the model's engine took to start, if it had to."""
    wake_s: float | None = None
    """How long it took to wake up, if it slept."""
    slept: list[str] = field(default_factory=list)
    """Models that were put to sleep to make room."""
    stopped: list[str] = field(default_factory=list)
    """Models whose engines were stopped to make room."""


@dataclass
class Report:
    """What `--json` prints of every demo."""

    url: str = ""
    seconds: float = 0.0
    swaps: int = 0
    """Engines that were stopped to make room."""
    steps: list[Step] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """What it took, for a last line."""
        return counted(self.swaps, "swap")


class NoAnswer(ModelyardError):
    """A model of the demo answered with nothing."""

    code = "no_answer"


class Story:
    """Tells what the server loads, puts to sleep, wakes and stops, as another thread hears it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._news = threading.Condition()
        self._states: dict[str, str] = {}
        self._since: dict[str, float] = {}
        self._loads: dict[str, float] = {}
        self._wakes: dict[str, float] = {}
        self._slept: list[str] = []
        self._stopped: list[str] = []

    def hear(self, event: Event) -> None:
        """One piece of news."""
        if isinstance(event.data, ModelView):
            with self._news:
                self._turn(event.data)
                self._news.notify_all()

    def step(self, name: str, model: str, began: float) -> Step:
        """What the request took that `model` has begun to answer, once the news of it have come."""
        with self._news:
            self._news.wait_for(lambda: self._states.get(model) == "ready", NEWS_PATIENCE_S)
            slept, self._slept = self._slept, []
            stopped, self._stopped = self._stopped, []
            load_s, wake_s = self._loads.pop(model, None), self._wakes.pop(model, None)
        seconds = round(time.monotonic() - began, 3)
        return Step(name, model, seconds, load_s, wake_s, slept, stopped)

    def _turn(self, view: ModelView) -> None:
        before = self._states.get(view.id)
        if view.state != before:
            now = time.monotonic()
            took = now - self._since.get(view.id, now)
            self._states[view.id] = view.state
            self._since[view.id] = now
            told = self._told(view, before, took)
            if told:
                self._progress.keep(f"   {told}")
        if self._progress.live and view.state in _SHOWN:
            self._progress.show(f"   {describe(view)}")

    def _told(self, view: ModelView, before: str | None, took: float) -> str:
        """What has happened to a model that was `before` for so long; empty for small news."""
        held = memory(sum(view.memory_mib.values()))
        match before, view.state:
            case "starting", "ready":
                self._loads[view.id] = round(took, 3)
                return f"loaded {view.id} in {span(took)} ({held})"
            case "waking", "ready":
                self._wakes[view.id] = round(took, 3)
                return f"woke {view.id} in {span(took)} ({held})"
            case "suspending", "asleep":
                self._slept.append(view.id)
                return (
                    f"put {view.id} to sleep in {span(took)} to make room "
                    f"(level {view.sleep_level}, keeps {held})"
                )
            case "stopping", _:
                self._stopped.append(view.id)
                return f"stopped {view.id} in {span(took)} to make room"
            case _, "backoff" | "failed":
                return f"{view.id} failed: {view.reason}"
        return ""
