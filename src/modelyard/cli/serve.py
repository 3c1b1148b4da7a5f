"""The command that runs a server.

Laws of this file:
- It only reads flags and prints; `modelyard.app` is the server.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import shlex
import sys
from collections.abc import Coroutine
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelyard.cli.configure import ConfigFile, load_config
from modelyard.cli.exits import BadUsage
from modelyard.cli.options import Json
from modelyard.cli.output import print_json, say
from modelyard.cli.words import counted, listed, short_path

if TYPE_CHECKING:
    from modelyard.app import Yard
    from modelyard.config import Config
    from modelyard.core.specs import ModelSpec
    from modelyard.devices.base import Probe

log = logging.getLogger("modelyard")

SHOWN_MODELS = 12
"""Model names that are printed when the server listens."""

SWITCH_S = 0.0001
"""How long another thread may compute on before the event loop has its turn, seconds. Headers of
model files, the process table and the database are read in threads; at Python's 5 ms each turn of
the loop can wait that long while one computes. With a large model's header read again every second
at half load, the 99th percentile of the first byte was 1.9 ms above the engine's; it is 0.5 ms with
this, as where no header is read."""


class LogLevel(StrEnum):
    """How much the server tells on stderr."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def serve(
    config: ConfigFile = None,
    models_dir: Annotated[
        list[Path] | None,
        typer.Option(
            "--models-dir",
            "-m",
            metavar="DIR",
            help="Folder with model files; may be given more than once. Replaces `models_dirs`.",
        ),
    ] = None,
    host: Annotated[
        str | None, typer.Option("--host", metavar="HOST", help="Address to listen on.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port", "-p", min=0, max=65535, help="Port to listen on; 0 takes a free one."
        ),
    ] = None,
    memory_budget: Annotated[
        str | None,
        typer.Option(
            "--memory-budget",
            metavar="SIZE",
            help="Most that models may hold in host memory together, like 8GiB.",
        ),
    ] = None,
    log_level: Annotated[
        LogLevel, typer.Option("--log-level", help="How much to tell on stderr.")
    ] = LogLevel.INFO,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            help="Allow a host that other machines can reach, although no key protects it.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a server in the foreground until Ctrl-C.

    The first Ctrl-C lets requests in flight end, the second one cuts them.
    """
    from modelyard import app

    overrides: dict[str, Any] = {
        "server.host": host,
        "server.port": port,
        "server.insecure": True if insecure else None,
        "models_dirs": [str(folder) for folder in models_dir] if models_dir else None,
        "devices.budget.cpu": memory_budget,
    }
    chosen = load_config(config, overrides)
    logging.basicConfig(
        stream=sys.stderr,
        level=log_level.value.upper(),
        format="%(asctime)s %(levelname)s %(message)s",
    )
    for text in chosen.notes:
        log.warning("%s", text)
    announce = _announce_json if as_json else _announce

    def read(path: Path | None, content: bytes | None) -> Config:
        return load_config(path or config, overrides, content)

    def listening(yard: Yard) -> None:
        _settle_memory()
        sys.setswitchinterval(SWITCH_S)
        announce(yard)

    _run(app.serve(chosen, on_listening=listening, devices=_made_up_devices(), read=read))


def _settle_memory() -> None:
    """What was made until now stays for good: the garbage collector need not look at it again.

    A request leaves no circles behind, so collecting is for what goes wrong and for the rest of the
    server; at the usual thresholds it takes a tenth of the time of a busy gateway
    (`bench/gateway_profile.md`).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


def _made_up_devices() -> list[Probe] | None:
    """Probes of GPUs that do not exist, if the environment names their books; else None.

    Raises BadUsage if there are no books.
    """
    from modelyard.testing.fake_books import FOLDER_VARIABLE

    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        return None
    from modelyard.testing.fake_gpu import FakeGpuProbe, FakeHostProbe

    try:
        probes: list[Probe] = [FakeHostProbe(folder), FakeGpuProbe(folder)]
    except FileNotFoundError as error:
        raise BadUsage(f"{FOLDER_VARIABLE}: {error}", hint="unset it") from None
    log.warning("the devices are made up: %s names their books, %s", FOLDER_VARIABLE, folder)
    return probes


def _run(server: Coroutine[Any, Any, None]) -> None:
    """Run the server on the fastest event loop there is."""
    if sys.platform == "win32":
        import asyncio

        asyncio.run(server)
        return
    import uvloop

    uvloop.run(server)


def _announce_json(yard: Yard) -> None:
    models = sorted(_specs(yard), key=lambda spec: spec.id)
    print_json({"url": yard.facts.url, "models": [spec.id for spec in models]})


def _announce(yard: Yard) -> None:
    """Where the server is, what it serves, and how to ask it something."""
    url, models = yard.facts.url, sorted(_specs(yard), key=lambda spec: spec.id)
    say(f"Modelyard listens on {url}  (OpenAI base URL: {url}/v1)")
    if models:
        more = "" if len(models) <= SHOWN_MODELS else f" and {len(models) - SHOWN_MODELS} more"
        names = listed(spec.id for spec in models[:SHOWN_MODELS])
        say(f"{counted(len(models), 'model')}: {names}{more}")
        say("Try it:")
        say(f"  {curl(url, _example(models))}")
    else:
        folders = listed(short_path(folder) for folder in yard.facts.models_dirs)
        say(f"No models yet (looked in: {folders}).")
        say("Put .gguf files into a folder and name it with --models-dir, or declare models in a")
        say("configuration file; new files are found while the server runs.")
    sys.stdout.flush()


def _specs(yard: Yard) -> list[ModelSpec]:
    return [slot.spec for slot in yard.loop.scheduler.models.values()]


def _example(models: list[ModelSpec]) -> ModelSpec:
    """The model that shows best what this is about: one that chats, if there is one."""
    return next((spec for spec in models if "chat" in spec.tasks), models[0])


def curl(url: str, spec: ModelSpec) -> str:
    """A line to paste into a shell that asks a model something by the first of its tasks."""
    ask: dict[str, object]
    if "chat" in spec.tasks:
        route, ask = "chat/completions", {"messages": [{"role": "user", "content": "Hello!"}]}
    elif "completion" in spec.tasks:
        route, ask = "completions", {"prompt": "Once upon a time", "max_tokens": 40}
    elif "embedding" in spec.tasks:
        route, ask = "embeddings", {"input": "Hello!"}
    else:
        route, ask = "rerank", {"query": "greeting", "documents": ["Hello!", "A red car"]}
    body = shlex.quote(json.dumps({"model": spec.id, **ask}, ensure_ascii=False))
    return f"curl {url}/v1/{route} -H 'content-type: application/json' -d {body}"
