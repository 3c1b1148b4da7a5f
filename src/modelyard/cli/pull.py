"""The command `pull`: a model from a hub onto the disk.

Laws of this file:
- Where a server runs, it fetches: its folders are where models belong, and they appear there. Where
  none runs, or the folder is none of the server's, this process does the same by itself.
- Ctrl-C ends the download in either case; what was fetched is kept, and the same command goes on.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Generator
from contextlib import closing, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelyard.cli.configure import ConfigFile, load_config
from modelyard.cli.options import Json, Url
from modelyard.cli.output import is_terminal, note, print_json, say
from modelyard.cli.words import bar, counted, listed, short_path, span

if TYPE_CHECKING:
    from modelyard.client import Client
    from modelyard.config import Config
    from modelyard.config.pulling import PullView, PullWanted

APPEARS_WITHIN_S = 10.0
"""How long a server may take to see new files in a folder that it watches."""
LOOK_EVERY_S = 0.25
STEP_PERCENT = 10
BAR_WIDTH = 12

Show = Callable[["PullView"], None]


def pull(
    model: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="ORG/NAME, ORG/NAME:QUANTISATION, or the address of its page."
        ),
    ],
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit. Default: the main one.")
    ] = None,
    files: Annotated[
        list[str] | None,
        typer.Option("--file", metavar="GLOB", help="Only such files; may be given repeatedly."),
    ] = None,
    hub: Annotated[
        str | None, typer.Option("--from", metavar="HUB", help="`hf` (default) or `modelscope`.")
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="DIR", help="Models folder to put it into, as ORG/NAME."),
    ] = None,
    pickle: Annotated[
        bool,
        typer.Option("--pickle", help="Take pickled weights too, which run code when loaded."),
    ] = False,
    config: ConfigFile = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Fetch a model from Hugging Face or ModelScope.

    Only the files that are needed. Goes on where it was interrupted, and checks what came.
    """
    from modelyard.config.pulling import PullWanted
    from modelyard.downloads.names import read_name

    read_name(model, hub)
    place = str(to.expanduser().absolute()) if to is not None else None
    wanted = PullWanted(model, revision, list(files or ()), hub, place, pickle)
    client = server(url)
    with client or nullcontext(), _Shown() as shown:
        if client is not None and _may_take(client, wanted):
            view = _by_server(client, wanted, shown)
            names = _appeared(client, view)
        else:
            chosen = load_config(config)
            view = _by_us(chosen, wanted, shown)
            names = _found(view)
    if as_json:
        print_json(asdict(view) | {"models": names})
    else:
        _report(view, names, served=client is not None)


def server(url: str | None) -> Client | None:
    """A client of the running server; None if none runs and none was named."""
    from modelyard.client import ApiError, Client, NotModelyard, ServerNotRunning

    client = Client(url)
    try:
        client.info()
    except (ServerNotRunning, NotModelyard, ApiError):
        client.close()
        if url is not None or os.environ.get("MODELYARD_URL"):
            raise
        return None  # something else may have the usual port
    return client


def _may_take(client: Client, wanted: PullWanted) -> bool:
    """Whether the server puts files where they are wanted."""
    from modelyard.client.address import is_loopback

    if wanted.to is None or not is_loopback(client.url):
        return True
    real = Path(wanted.to).resolve()
    return any(real.is_relative_to(Path(folder).resolve()) for folder in client.info().models_dirs)


# --------------------------------------------------------------------------------- who fetches it


def _by_server(client: Client, wanted: PullWanted, show: Show) -> PullView:
    from modelyard.client import Client

    view = client.pull(wanted)
    try:
        return _told_by(client, view, show)
    except KeyboardInterrupt:
        # The interrupt may have hit the first client in the middle of a request.
        with Client(client.url) as fresh:
            fresh.cancel_pull(view.id)
        raise


def _told_by(client: Client, view: PullView, show: Show) -> PullView:
    from modelyard.client import ConnectionLost

    with closing(_views(client, view.id)) as views:
        for now in views:
            show(now)
            if now.ended_at is not None:
                return _succeeded(now)
    raise ConnectionLost(client.url, "the server ended; the same command goes on from there")


def _views(client: Client, pull_id: str) -> Generator[PullView, None, None]:
    from modelyard.config.pulling import PULLS, PullView

    events = client.events((PULLS,))
    try:
        for event in events:
            told: object = event.data
            if isinstance(told, PullView) and told.id == pull_id:
                yield told
    finally:
        events.close()


def _by_us(config: Config, wanted: PullWanted, show: Show) -> PullView:
    return _succeeded(asyncio.run(_fetched(config, wanted, show)))


async def _fetched(config: Config, wanted: PullWanted, show: Show) -> PullView:
    from modelyard.config.pulling import PULLS, PullView
    from modelyard.runtime.broadcast import Broadcast
    from modelyard.runtime.inventory import engines_here
    from modelyard.runtime.pulls import Pulls

    broadcast = Broadcast()
    dirs = [*config.models_dirs, *([Path(wanted.to)] if wanted.to else [])]
    pulls = Pulls(
        config.downloads,
        lambda: dirs,
        broadcast,
        os.environ,
        state_dir=config.server.state_dir,
        prefers_gguf=lambda: engines_here(config) <= {"llamacpp"},
    )
    try:
        with broadcast.subscribe((PULLS,)) as news:
            pulls.start(wanted)
            async for event in news:
                told: object = event.data
                if isinstance(told, PullView):
                    show(told)
                    if told.ended_at is not None:
                        return told
    finally:
        await pulls.close()
    raise AssertionError("the news of a download end with it")


def _succeeded(view: PullView) -> PullView:
    from modelyard.downloads.job import PullFailed

    if view.error is not None:
        raise PullFailed(view.error.code, view.error.message)
    if view.state == "cancelled":
        raise PullFailed("cancelled", f"somebody ended the download of {view.model}")
    return view


# ------------------------------------------------------------------------------ what came of it


def _appeared(client: Client, view: PullView) -> list[str]:
    """The models that the server has found in the folder, once it has."""
    until = time.monotonic() + APPEARS_WITHIN_S
    folder = Path(view.folder or "/nowhere")
    while True:
        names = [
            each.id
            for each in client.models()
            if each.source and Path(each.source).is_relative_to(folder)
        ]
        if names or time.monotonic() > until:
            return names
        time.sleep(LOOK_EVERY_S)


def _found(view: PullView) -> list[str]:
    """What a server would find in the folder."""
    from modelyard.catalog.discover import scan

    if view.folder is None:
        return []
    engines = ("llamacpp", "vllm", "transformers")
    return [model.id for model in scan([Path(view.folder)], engines=engines).found]


def _report(view: PullView, names: list[str], *, served: bool) -> None:
    took = span((view.ended_at or 0.0) - view.asked_at)
    size = in_bytes(view.total_bytes)
    say(f"{view.model}: {counted(len(view.files), 'file')}, {size}, after {took}")
    say(f"in {short_path(view.folder)}")
    if names and served:
        say(f"next: modelyard run {names[0]}")
        return
    if names:
        say(f"a server that has this folder among its models_dirs calls it {listed(names)}")
    else:
        note("No model appears in it that an engine here can run; `modelyard info` tells why.")


def in_bytes(size: float) -> str:
    """`120 KiB`, `4.7 MiB`, `12.3 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


class _Shown:
    """How a download goes, on stderr: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        from modelyard.cli.progress import Progress

        self._progress = Progress()
        self._state = ""
        self._step = -1

    def __enter__(self) -> _Shown:
        return self

    def __exit__(self, *_: Any) -> None:
        with suppress(BrokenPipeError):
            self._progress.close()

    def __call__(self, view: PullView) -> None:
        if view.state == "downloading" and self._state != "downloading":
            for text in view.notes:
                self._progress.keep(f"{view.model}: {text}")
        self._state = view.state
        if view.state == "queued" and self._progress.live:
            self._progress.show(f"{view.model}: waits for its turn")
        elif view.state == "looking":
            self._progress.show(f"{view.model}: asks {view.hub}")
        elif view.state == "waiting":
            self._progress.show(f"{view.model}: waits for another process that fetches the same")
        elif view.state == "downloading":
            self._show_bytes(view)

    def _show_bytes(self, view: PullView) -> None:
        percent = 100 * view.done_bytes // max(view.total_bytes, 1)
        if not is_terminal(sys.stderr):
            if percent // STEP_PERCENT == self._step:
                return
            self._step = percent // STEP_PERCENT
        parts = [f"{bar(view.done_bytes, view.total_bytes, BAR_WIDTH)} {percent} %"]
        if view.done_bytes >= view.total_bytes:
            parts.append("checking")
        elif view.speed_bytes_s and view.eta_s is not None:
            parts += [f"{in_bytes(view.speed_bytes_s)}/s", f"{span(view.eta_s)} left"]
        parts.append(f"{in_bytes(view.done_bytes)} of {in_bytes(view.total_bytes)}")
        # What matters comes first: a narrow terminal shows no more.
        self._progress.show(f"{view.model.rpartition('/')[2]}  {'  '.join(parts)}")
