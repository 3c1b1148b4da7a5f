"""The demo: three small models, memory for two, and what Modelyard makes of it.

Laws of this file:
- Everything told is seen: answers come from the server, loads and swaps from its live news.
- With --json the story goes to stderr, and stdout holds one object.
"""

from __future__ import annotations

import math
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn, TextIO, TypeVar, cast

import typer

from modelyard.cli.options import Json
from modelyard.cli.output import print_json
from modelyard.cli.words import clean, counted, memory, span
from modelyard.core.errors import ModelyardError
from modelyard.core.specs import Task

if TYPE_CHECKING:
    from modelyard.cli.demo_server import Server
    from modelyard.cli.progress import Progress
    from modelyard.core.specs import ModelSpec
    from modelyard.core.views import Event, ModelView

T = TypeVar("T")

NEWS_PATIENCE_S = 5.0
"""How long the news of a load may come after the answer that needed it."""

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
class Step:
    """One request of the demo and what it took."""

    name: str
    model: str
    seconds: float = 0.0
    load_s: float | None = None
    """How long the model's engine took to start, if it had to."""
    stopped: list[str] = field(default_factory=list)
    """Models whose engines were stopped to make room."""


@dataclass
class Report:
    """What `--json` prints."""

    chat: str = ""
    chat_zh: str = ""
    embedding_dim: int = 0
    similarity: dict[str, float] = field(default_factory=dict)
    rerank_top: str = ""
    swaps: int = 0
    """Engines that were stopped to make room."""
    seconds: float = 0.0
    budget_mib: int = 0
    url: str = ""
    steps: list[Step] = field(default_factory=list)


class NoAnswer(ModelyardError):
    """A model of the demo answered with nothing."""

    code = "no_answer"


def demo(
    once: Annotated[bool, typer.Option("--once", help="End when all answers have come.")] = False,
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            "-p",
            min=1,
            max=65535,
            help="Port to listen on. Default: a free one from 8080.",
        ),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the temporary folder with its logs, and name it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """See it work: three small models, and memory for two.

    Chat, embeddings and rerank, with what is loaded and stopped for them, and how long it takes.
    Needs no network and leaves nothing behind. The server stays until Ctrl-C.
    """
    from modelyard.cli.demo_server import budget_mib, demo_models, demo_server, free_port
    from modelyard.cli.progress import Progress

    began = time.monotonic()
    out = sys.stderr if as_json else sys.stdout
    models = demo_models()
    budget = budget_mib(models)
    with _ended_by_signals(), demo_server(port or free_port(), budget, keep=keep) as server:
        if keep:
            _tell(out, f"Configuration and logs stay in {server.folder}")
        with Progress(out) as progress:
            tour = Tour(server.url, models, progress)
            report = aside(lambda: tour.report(budget))
        report.seconds = round(time.monotonic() - began, 3)
        _tell(
            out,
            f"\nAll answers came, in {span(report.seconds)}, with {counted(report.swaps, 'swap')}.",
        )
        if as_json:
            print_json(asdict(report))
        if not once:
            _stay(server, models, out)


class Story:
    """Tells what the server loads and stops, as its news come in."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._news = threading.Condition()
        self._states: dict[str, str] = {}
        self._since: dict[str, float] = {}
        self._loads: dict[str, float] = {}
        self._stopped: list[str] = []

    def hear(self, event: Event) -> None:
        """One piece of news."""
        from modelyard.core.views import ModelView

        if isinstance(event.data, ModelView):
            with self._news:
                self._turn(event.data)
                self._news.notify_all()

    def settled(self, model: str) -> tuple[float | None, list[str]]:
        """Wait for the news that the model is ready; how long it loaded, and who was stopped."""
        with self._news:
            self._news.wait_for(lambda: self._states.get(model) == "ready", NEWS_PATIENCE_S)
            stopped, self._stopped = self._stopped, []
            return self._loads.pop(model, None), stopped

    def _turn(self, view: ModelView) -> None:
        from modelyard.cli.progress import describe

        before = self._states.get(view.id)
        now = time.monotonic()
        if view.state != before:
            self._states[view.id] = view.state
            took = now - self._since.get(view.id, now)
            self._since[view.id] = now
            if before == "starting" and view.state == "ready":
                self._loads[view.id] = took
                held = memory(sum(view.memory_mib.values()))
                self._progress.keep(f"   loaded {view.id} in {span(took)} ({held})")
            elif before == "stopping":
                self._stopped.append(view.id)
                self._progress.keep(f"   stopped {view.id} in {span(took)} to make room")
            elif view.state in ("backoff", "failed"):
                self._progress.keep(f"   {view.id} failed: {view.reason}")
        if self._progress.live and view.state in ("starting", "stopping"):
            self._progress.show(f"   {describe(view)}")


class Tour:
    """The requests of the demo, told by way of `progress`."""

    def __init__(self, url: str, models: list[ModelSpec], progress: Progress) -> None:
        from modelyard.client import Client

        self._client = Client(url)
        self._progress = progress
        self._model = {
            task: _serving(models, task) for task in (Task.CHAT, Task.EMBEDDING, Task.RERANK)
        }
        self._names = [spec.id for spec in models]
        self._report = Report(url=url)

    def report(self, budget: int) -> Report:
        """Ask everything. Raises ModelyardError when an answer does not come."""
        from modelyard.cli.progress import Listener

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
        load_s, stopped = story.settled(model)
        seconds = round(time.monotonic() - began, 3)
        load_s = None if load_s is None else round(load_s, 3)
        step = Step(name, model, seconds, load_s, stopped)
        self._report.steps.append(step)
        return step

    def _say(self, text: str) -> None:
        self._progress.keep(text)


def aside(work: Callable[[], T]) -> T:
    """Do the work in a thread and wait for it, here.

    A signal then interrupts nothing but the waiting: no lock stays locked, in httpx's pool least of
    all, and whoever cleans up afterwards is not held up.
    """
    mail: queue.SimpleQueue[tuple[T, None] | tuple[None, BaseException]] = queue.SimpleQueue()

    def do() -> None:
        try:
            mail.put((work(), None))
        except BaseException as error:
            mail.put((None, error))

    threading.Thread(target=do, name="demo", daemon=True).start()
    result, error = mail.get()
    if error is not None:
        raise error
    return cast(T, result)


def cosine(first: list[float], second: list[float]) -> float:
    """The cosine of the angle between two vectors, neither of them zero."""
    dot = math.fsum(a * b for a, b in zip(first, second, strict=True))
    return dot / (math.hypot(*first) * math.hypot(*second))


def _serving(models: list[ModelSpec], task: Task) -> str:
    found = [spec.id for spec in models if task in spec.tasks]
    if not found:
        raise NoAnswer(f"none of the demo's models serves {task}", hint="install the package again")
    return found[0]


def _stay(server: Server, models: list[ModelSpec], out: TextIO) -> None:
    """Leave the server running until Ctrl-C, which is how it is meant to end."""
    from modelyard.cli.serve import curl
    from modelyard.core.errors import LaunchError

    chat = next(spec for spec in models if Task.CHAT in spec.tasks)
    try:
        _tell(
            out, f"\nThe server stays at {server.url} until Ctrl-C. Try it from another terminal:"
        )
        _tell(out, f"  {curl(server.url, chat)}")
        _tell(out, f"  modelyard run {chat.id} --url {server.url}")
        code = server.wait()
    except KeyboardInterrupt:
        _tell(out, "")
        return
    raise LaunchError(f"the server ended by itself with exit code {code}")


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """A block that a terminating signal leaves in order, instead of dying on the spot."""

    def leave(number: int, _: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    ending = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, leave) for number in ending}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(out: TextIO, text: str) -> None:
    print(clean(text), file=out, flush=True)
