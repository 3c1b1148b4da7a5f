"""The demo's tour: three small models, memory for two, and what Modelyard makes of it.

Laws of this file:
- Everything told is seen: answers come from the server, loads and swaps from its live news.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modelyard.cli.demo_server import Settings, budget_mib, demo_models, tour_settings
from modelyard.cli.progress import Listener, Progress
from modelyard.cli.story import NoAnswer, Report, Step, Story
from modelyard.cli.words import clean, memory
from modelyard.client import Client
from modelyard.core.specs import ModelSpec, Task

QUESTION = "What is Modelyard?"
CHINESE_QUESTION = "什么是 Modelyard？"
SENTENCE = "The cat is sleeping on the sofa."
RELATED = "A kitten naps on the couch."
UNRELATED = "The bank raised its interest rates."
QUERY = "How do I bake bread?"
DOCUMENTS = (
    "Berlin is the capital of Germany.",
    "Mix flour, water, yeast and salt, let the dough rise and bake it.",
    "Eight planets travel around the Sun.",
)


@dataclass
class TourReport(Report):
    """What `--json` prints."""

    chat: str = ""
    chat_zh: str = ""
    embedding_dim: int = 0
    similarity: dict[str, float] = field(default_factory=dict)
    rerank_top: str = ""
    budget_mib: int = 0


class YardTour:
    """The models of the package with memory for two of them. Raises LaunchError if one is gone."""

    def __init__(self) -> None:
        self.models = demo_models()
        self._budget = budget_mib(self.models)

    def settings(self, _: Path) -> Settings:
        return tour_settings(self._budget)

    def environment(self, _: Path) -> Mapping[str, str]:
        return {}

    def play(self, url: str, progress: Progress) -> TourReport:
        """Ask everything. Raises ModelyardError when an answer does not come."""
        return Tour(url, self.models, progress).play(self._budget)


class Tour:
    """The requests to the three models, told by way of `progress`."""

    def __init__(self, url: str, models: Sequence[ModelSpec], progress: Progress) -> None:
        self._client = Client(url)
        self._progress = progress
        self._model = {
            task: _serving(models, task) for task in (Task.CHAT, Task.EMBEDDING, Task.RERANK)
        }
        self._names = [spec.id for spec in models]
        self._report = TourReport(url=url)

    def play(self, budget: int) -> TourReport:
        """Ask everything. Raises ModelyardError when an answer does not come."""
        report = self._report
        report.budget_mib = budget
        self._say(
            f"Modelyard serves {len(self._names)} models ({', '.join(self._names)}) at "
            f"{self._client.url},\nwith {memory(budget)} of memory: enough for two of them."
        )
        story = Story(self._progress)
        with self._client, Listener(self._client.url, story.hear):
            report.chat = self._chat(story, "chat", QUESTION)
            self._embed(story)
            self._rerank(story)
            report.chat_zh = self._chat(story, "chat_zh", CHINESE_QUESTION)
        report.swaps = sum(len(step.stopped) for step in report.steps)
        return report

    def _chat(self, story: Story, name: str, question: str) -> str:
        model = self._model[Task.CHAT]
        self._say(f"\nChat with {model}: {question}")
        began = time.monotonic()
        parts: list[str] = []
        messages = [{"role": "user", "content": question}]
        for text in self._client.chat(model, messages, temperature=0, max_tokens=120):
            if not parts:
                step = self._step(story, name, model, began)
                self._progress.write("   ")
            parts.append(text)
            self._progress.write(clean(text))
        if not "".join(parts).strip():
            raise NoAnswer(f"model {model!r} answered {question!r} with nothing")
        step.seconds = round(time.monotonic() - began, 3)
        self._say("")
        return "".join(parts).strip()

    def _embed(self, story: Story) -> None:
        model = self._model[Task.EMBEDDING]
        self._say(f"\nEmbeddings by {model}")
        began = time.monotonic()
        vectors = self._client.embed(model, [SENTENCE, RELATED, UNRELATED])
        if len(vectors) != 3 or not all(any(vector) for vector in vectors):
            raise NoAnswer(f"model {model!r} gave no vectors for three sentences")
        self._step(story, "embedding", model, began)
        first, related, unrelated = vectors
        near, far = cosine(first, related), cosine(first, unrelated)
        self._report.embedding_dim = len(first)
        self._report.similarity = {"related": round(near, 4), "unrelated": round(far, 4)}
        self._say(f"   {len(first)} numbers for each sentence; compared with: {SENTENCE}")
        self._say(f"   {near:5.2f}  {RELATED}\n   {far:5.2f}  {UNRELATED}")

    def _rerank(self, story: Story) -> None:
        model = self._model[Task.RERANK]
        self._say(f"\nRerank by {model}: {QUERY}")
        began = time.monotonic()
        ranked = self._client.rerank(model, QUERY, DOCUMENTS)
        if len(ranked) != len(DOCUMENTS):
            raise NoAnswer(f"model {model!r} ranked {len(ranked)} of {len(DOCUMENTS)} documents")
        self._step(story, "rerank", model, began)
        self._report.rerank_top = DOCUMENTS[ranked[0].index]
        for place in ranked:
            self._say(f"   {place.relevance_score:5.2f}  {DOCUMENTS[place.index]}")

    def _step(self, story: Story, name: str, model: str, began: float) -> Step:
        step = story.step(name, model, began)
        self._report.steps.append(step)
        return step

    def _say(self, text: str) -> None:
        self._progress.keep(text)


def cosine(first: list[float], second: list[float]) -> float:
    """The cosine of the angle between two vectors, neither of them zero."""
    dot = math.fsum(a * b for a, b in zip(first, second, strict=True))
    return dot / (math.hypot(*first) * math.hypot(*second))


def _serving(models: Sequence[ModelSpec], task: Task) -> str:
    found = [spec.id for spec in models if task in spec.tasks]
    if not found:
        raise NoAnswer(f"none of the demo's models serves {task}", hint="install the package again")
    return found[0]
