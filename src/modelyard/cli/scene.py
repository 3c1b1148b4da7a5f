"""The demo on GPUs that do not exist: models of nearly half a GPU each, and one too many.

Laws of this file:
- Everything but the GPUs is real: the server, its engine processes, their routes and their memory
  books, so that what is shown is what happens.
- Every answer is checked: a model that woke without its weights would answer garbage.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modelyard.cli.demo_server import Settings
from modelyard.cli.exits import BadUsage
from modelyard.cli.progress import Listener, Progress
from modelyard.cli.story import NoAnswer, Report, Story
from modelyard.cli.words import bar, counted, memory
from modelyard.client import Client
from modelyard.config.units import parse_mib
from modelyard.core.leaving import RESIDUE_MIB
from modelyard.core.specs import ModelSpec, Task
from modelyard.core.views import DeviceView
from modelyard.testing.fake_books import FOLDER_VARIABLE, Book

MOST_GPUS = 4
SMALLEST_MIB, LARGEST_MIB = 4 * 1024, 1024 * 1024
CONTEXT_MIB = 300
"""What a fake vLLM takes beside its budget: its context, and no graphs."""
NAME = "Modelyard Fake GPU"
QUESTION = "Who are you?"

_GPUS = re.compile(r"(?:(\d{1,4})\s*[x×*]\s*)?(\S.*)")


@dataclass
class SceneReport(Report):
    """What `--json` prints."""

    sleeps: int = 0
    """How often a model was put to sleep."""
    wakes: int = 0
    answers: list[str] = field(default_factory=list)
    """One for each request, in their order."""
    models: list[str] = field(default_factory=list)
    gpus: list[int] = field(default_factory=list)
    """MiB of each GPU."""

    @property
    def summary(self) -> str:
        return f"{counted(self.sleeps, 'sleep')} and {counted(self.wakes, 'wake')}"


class GpuScene:
    """Two models for each GPU and one more. Raises BadUsage for GPUs that cannot be made up."""

    def __init__(self, gpus: str) -> None:
        count, self._size_mib = parse_gpus(gpus)
        self._sizes = [self._size_mib] * count
        names = [f"fake-{chr(ord('a') + at)}" for at in range(2 * count + 1)]
        self.models = [ModelSpec(name, "command", frozenset({Task.CHAT})) for name in names]
        self._model_mib = (self._size_mib - RESIDUE_MIB) // 2
        """Two of them run beside a third that sleeps."""

    def settings(self, folder: Path) -> Settings:
        """The configuration; also makes the GPUs."""
        books = Book.create(_books(folder), self._sizes, names=[NAME]).folder
        return {
            # All of a GPU is for the models: there is no screen to keep memory for.
            "devices": {"reserve": 0, "sample_every": "250ms"},
            "models": {spec.id: self._model(spec.id, books) for spec in self.models},
        }

    def environment(self, folder: Path) -> Mapping[str, str]:
        return {FOLDER_VARIABLE: str(_books(folder))}

    def play(self, url: str, progress: Progress) -> SceneReport:
        """Ask each model once and the first one again. Raises ModelyardError, NoAnswer."""
        names = [spec.id for spec in self.models]
        report = SceneReport(url, models=names, gpus=self._sizes)
        story = Story(progress)
        progress.keep(
            f"Modelyard serves {len(names)} models of {memory(self._model_mib)} each at {url},\n"
            f"on {counted(len(self._sizes), 'GPU')} of {memory(self._size_mib)} that "
            f"{'does' if len(self._sizes) == 1 else 'do'} not exist.\n"
            "The engines are real processes that behave like vLLM and only pretend to compute."
        )
        with Client(url) as client, Listener(url, story.hear):
            for number, model in enumerate([*names, names[0]]):
                again = " again" if number == len(names) else ""
                progress.keep(f"\nChat with {model}{again}: {QUESTION}")
                report.answers.append(self._ask(client, story, report, model))
                progress.keep(f"   {report.answers[-1]}")
                for device in client.devices():
                    if device.kind != "cpu":
                        progress.keep(f"   {_drawn(device)}")
        if report.answers[-1] != report.answers[0]:
            raise NoAnswer(f"{names[0]} does not answer after its sleep as it did before")
        report.swaps = sum(len(step.stopped) for step in report.steps)
        report.sleeps = sum(len(step.slept) for step in report.steps)
        report.wakes = sum(step.wake_s is not None for step in report.steps)
        return report

    def _ask(self, client: Client, story: Story, report: SceneReport, model: str) -> str:
        began = time.monotonic()
        messages = [{"role": "user", "content": QUESTION}]
        text = "".join(client.chat(model, messages, temperature=0)).strip()
        if not text:
            raise NoAnswer(f"model {model!r} answered {QUESTION!r} with nothing")
        report.steps.append(story.step("chat", model, began))
        return text

    def _model(self, name: str, books: Path) -> Settings:
        share = (self._model_mib - CONTEXT_MIB) / self._size_mib
        fake = [sys.executable, "-m", "modelyard.testing.fake_vllm", "serve", name]
        fake += ["--host", "{host}", "--port", "{port}", "--served-model-name", name]
        fake += ["--enable-sleep-mode", "--gpu-memory-utilization", f"{int(share * 1e4) / 1e4}"]
        fake += ["--fake-weights", f"{self._model_mib // 2}MiB", "--fake-load", "500ms"]
        fake += ["--fake-sleep-time", "100ms", "--fake-wake-time", "200ms"]
        return {
            "engine": "command",
            "command": fake,
            "env": {FOLDER_VARIABLE: str(books), "VLLM_SERVER_DEV_MODE": "1"},
            "tasks": ["chat"],
            "sleep": "vllm",
            "stop_grace": "3s",
            "profiles": [
                {"name": "gpu", "devices": ["gpu"], "memory": {"gpu": f"{self._model_mib}MiB"}}
            ],
        }


def parse_gpus(text: str) -> tuple[int, int]:
    """Count and MiB of `1x8GiB`, `2x24GiB` or `8GiB`. Raises BadUsage."""
    advice = "write their count and their size, like 1x8GiB or 2x24GiB"
    found = _GPUS.fullmatch(text.strip())
    try:
        size = parse_mib(found[2]) if found else 0
    except ValueError as error:
        raise BadUsage(f"--fake-gpus {text!r}: {error}", hint=advice) from None
    count = int(found[1] or 1) if found else 0
    if not 1 <= count <= MOST_GPUS or not SMALLEST_MIB <= size <= LARGEST_MIB:
        raise BadUsage(
            f"--fake-gpus {text!r}: there can be 1 to {MOST_GPUS} GPUs of {memory(SMALLEST_MIB)} "
            f"to {memory(LARGEST_MIB)}",
            hint=advice,
        )
    return count, size


def _books(folder: Path) -> Path:
    return folder / "gpus"


def _drawn(device: DeviceView) -> str:
    """A line that shows who holds what of a GPU."""
    held = ", ".join(
        f"{share.model} {share.state} {memory(share.claim_mib)}" for share in device.shares
    )
    drawn = bar(device.claimed_mib, device.total_mib)
    return f"GPU {device.index} {drawn} {memory(device.claimed_mib)}: {held or 'nobody'}"
