"""The one thread that computes: it loads the model, then takes batch after batch.

Laws of this file:
- torch runs in this thread alone; the event loop goes on answering meanwhile.
- What a client no longer wants is not begun; a batch that has begun is finished.
- A batch that does not fit in memory is cut in half until it does. An input that does not fit alone
  fails alone.
- A model that cannot be loaded, and a GPU that has broken down, end the process: only a new one
  helps.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from modelyard.servers.lifeline import EXIT_FAILED, EXIT_PERMANENT, Unusable, leave
from modelyard.servers.transformers.batching import Input, Waiting
from modelyard.servers.transformers.errors import Refused
from modelyard.servers.transformers.terms import Prepared, Row


class Model(Protocol):
    """What the thread computes with."""

    def compute(self, inputs: Sequence[Row]) -> Sequence[object]:
        """One result for each of the rows, which are of one lane."""
        ...

    def out_of_memory(self, error: Exception) -> bool:
        """Whether `error` says that memory was short; frees what can be freed."""
        ...

    def computed(self) -> None:
        """A batch is done."""
        ...


AnyModel = TypeVar("AnyModel", bound=Model)


@dataclass(eq=False, slots=True)
class Job:
    """The inputs of one request, until all have their result."""

    done: asyncio.Future[list[object]]
    results: list[object]
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = len(self.results)


@dataclass(slots=True)
class Counts:
    """What has been done since the start."""

    inputs: int = 0
    tokens: int = 0
    batches: int = 0
    failed_inputs: int = 0
    seconds: float = 0.0


class Computing(Generic[AnyModel]):
    """`start` it within a running event loop; `model` is there once it has loaded."""

    def __init__(self, max_inputs: int, max_tokens: int) -> None:
        self.model: AnyModel | None = None
        self.counts = Counts()
        self._waiting: Waiting[Job] = Waiting(max_inputs, max_tokens)
        self._calls: deque[tuple[Callable[[], object], asyncio.Future[object]]] = deque()
        self._news = threading.Condition()
        self._loop = asyncio.get_running_loop()

    @property
    def waiting(self) -> int:
        """Inputs whose batch has not begun."""
        return len(self._waiting)

    def start(self, load: Callable[[], AnyModel]) -> None:
        threading.Thread(target=self._run, args=(load,), name="compute", daemon=True).start()

    async def results(self, prepared: Sequence[Prepared]) -> list[object]:
        """Compute them, in batches with those of others. Raises Refused."""
        job = Job(self._loop.create_future(), [None] * len(prepared))
        inputs = [
            Input(each.lane, each.length, each.row, job, place)
            for place, each in enumerate(prepared)
        ]
        with self._news:
            self._waiting.add(inputs)
            self._news.notify()
        try:
            return await job.done
        except asyncio.CancelledError:
            with self._news:
                self._waiting.discard(job)
            raise

    async def call(self, function: Callable[[], object]) -> object:
        """Have the thread call `function` before its next batch."""
        done: asyncio.Future[object] = self._loop.create_future()
        with self._news:
            self._calls.append((function, done))
            self._news.notify()
        return await done

    # -------------------------------------------------------------------------------- the thread's

    def _run(self, load: Callable[[], AnyModel]) -> None:
        try:
            self.model = model = load()
        except Unusable as error:
            leave(EXIT_PERMANENT, str(error))
        except Exception as error:  # the libraries raise anything; a person gets it in one line
            leave(EXIT_FAILED, f"the model could not be loaded: {type(error).__name__}: {error}")
        while True:
            with self._news:
                while not self._calls and not len(self._waiting):
                    self._news.wait()
                call = self._calls.popleft() if self._calls else None
                batch = [] if call else self._waiting.take()
            if call is not None:
                self._answer(*call)
            elif batch:
                began = time.monotonic()
                self._compute(model, batch)
                self.counts.seconds += time.monotonic() - began
                self.counts.batches += 1
                model.computed()

    def _answer(self, function: Callable[[], object], done: asyncio.Future[object]) -> None:
        if done.cancelled():
            return
        try:
            result = function()
        except Exception as error:  # whatever it is, a client waits for it
            self._tell(_fail, done, _refused(error))
        else:
            self._tell(_finish, done, result)

    def _compute(self, model: AnyModel, batch: list[Input[Job]]) -> None:
        wanted = [each for each in batch if not each.job.done.done()]
        if not wanted:
            return
        try:
            results = model.compute([Row(each.lane, each.length, each.row) for each in wanted])
        except Exception as error:  # the libraries raise anything; clients wait for an answer
            if "CUDA error" in str(error) or "HIP error" in str(error):
                leave(EXIT_FAILED, f"the GPU broke down: {error}")
            if not model.out_of_memory(error):
                self._failed(wanted, _refused(error))
            elif len(wanted) > 1:
                half = len(wanted) // 2
                self._compute(model, wanted[:half])
                self._compute(model, wanted[half:])
            else:
                text = f"an input of {wanted[0].length} tokens does not fit in the model's memory"
                self._failed(wanted, Refused(text, status=503, code="out_of_memory"))
            return
        for each, result in zip(wanted, results, strict=True):
            self.counts.inputs += 1
            self.counts.tokens += each.length
            each.job.results[each.place] = result
            each.job.left -= 1
            if not each.job.left:
                self._tell(_finish, each.job.done, each.job.results)

    def _failed(self, inputs: list[Input[Job]], error: Refused) -> None:
        self.counts.failed_inputs += len(inputs)
        for job in {each.job for each in inputs}:
            with self._news:
                self._waiting.discard(job)
            self._tell(_fail, job.done, error)

    def _tell(self, function: Callable[..., None], *arguments: object) -> None:
        self._loop.call_soon_threadsafe(function, *arguments)


def _refused(error: Exception) -> Refused:
    text = " ".join(str(error).split())[:300]
    return Refused(f"the model failed: {type(error).__name__}: {text}", status=500)


def _finish(done: asyncio.Future[object], result: object) -> None:
    if not done.done():
        done.set_result(result)


def _fail(done: asyncio.Future[object], error: Refused) -> None:
    if not done.done():
        done.set_exception(error)
