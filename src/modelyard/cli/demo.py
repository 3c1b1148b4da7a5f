"""The demo: a server of its own, a few requests to it, and a story of what it does for them.

Laws of this file:
- With --json the story goes to stderr, and stdout holds one object.
- However it ends, nothing is left: the server's block is always left in order.
"""

from __future__ import annotations

import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn, Protocol, TextIO, TypeVar, cast

import typer

from modelyard.cli.options import Json
from modelyard.cli.output import print_json
from modelyard.cli.words import clean, span
from modelyard.core.specs import Task

if TYPE_CHECKING:
    from modelyard.cli.demo_server import Server, Settings
    from modelyard.cli.progress import Progress
    from modelyard.cli.story import Report
    from modelyard.core.specs import ModelSpec

T = TypeVar("T")


class Play(Protocol):
    """What is shown: the server's models, and what they are asked."""

    @property
    def models(self) -> Sequence[ModelSpec]: ...

    def settings(self, folder: Path) -> Settings:
        """What the server's configuration says of models and devices."""
        ...

    def environment(self, folder: Path) -> Mapping[str, str]:
        """Variables that the server gets."""
        ...

    def play(self, url: str, progress: Progress) -> Report:
        """Ask everything. Raises ModelyardError when an answer does not come."""
        ...


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
    fake_gpus: Annotated[
        str | None,
        typer.Option(
            "--fake-gpus",
            metavar="COUNTxSIZE",
            help="Play with GPUs that do not exist, like 1x8GiB: models sleep and wake there.",
        ),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the temporary folder with its logs, and name it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """See it work: three small models, and memory for two.

    Chat, embeddings and rerank, with what is loaded and stopped for them, and how long it takes.
    With --fake-gpus: models that fill made-up GPUs, and one too many, so that they take turns.
    Needs no network and leaves nothing behind. The server stays until Ctrl-C.
    """
    from modelyard.cli.demo_server import demo_server, free_port
    from modelyard.cli.progress import Progress

    began = time.monotonic()
    out = sys.stderr if as_json else sys.stdout
    shown = _chosen(fake_gpus)
    with _ended_by_signals(), demo_server(port or free_port(), shown, keep=keep) as server:
        if keep:
            _tell(out, f"Configuration and logs stay in {server.folder}")
        with Progress(out) as progress:
            report = aside(lambda: shown.play(server.url, progress))
        report.seconds = round(time.monotonic() - began, 3)
        _tell(out, f"\nAll answers came, in {span(report.seconds)}, with {report.summary}.")
        if as_json:
            print_json(asdict(report))
        if not once:
            _stay(server, shown.models, out)


def _chosen(fake_gpus: str | None) -> Play:
    """What is to be shown. Raises BadUsage, or LaunchError."""
    if fake_gpus is None:
        from modelyard.cli.tour import YardTour

        return YardTour()
    from modelyard.cli.scene import GpuScene

    return GpuScene(fake_gpus)


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


def _stay(server: Server, models: Sequence[ModelSpec], out: TextIO) -> None:
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
