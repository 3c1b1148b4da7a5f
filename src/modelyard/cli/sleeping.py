"""Commands that let an engine give its memory back and take it again: sleep, wake."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from modelyard.cli.options import Json, Model, NoWait, Timeout, Url
from modelyard.cli.output import print_json, say
from modelyard.cli.words import doing, shares, span
from modelyard.core.views import ModelView

STOP = 3
"""The level at which nothing is left."""


def sleep(
    model: Model,
    level: Annotated[
        int,
        typer.Option(
            "--level",
            "-l",
            min=1,
            max=STOP,
            help="1 keeps the weights in host memory, 2 drops them, 3 stops the engine.",
        ),
    ] = 2,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Put a model to sleep once its requests are done.

    It gives its memory back and wakes faster than it starts. Waits until it sleeps.
    """
    from modelyard.cli.waiting import until_asleep
    from modelyard.client import Client

    with Client(url) as client:
        began = time.monotonic()
        before = client.model(model)
        view = client.sleep(before.id, level)
        if not no_wait:
            view = until_asleep(client, view, timeout)
    if as_json:
        print_json(view)
    else:
        say(_slept(before, view, level, time.monotonic() - began))


def wake(
    model: Model,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Wake a sleeping model, or start a stopped one, and wait until it is ready."""
    from modelyard.cli.waiting import until_ready
    from modelyard.client import Client

    with Client(url) as client:
        began = time.monotonic()
        before = client.model(model)
        view = client.wake(before.id)
        if not no_wait:
            view = until_ready(client, before.id, timeout)
    if as_json:
        print_json(view)
    elif view.state != "ready":
        say(f"{view.id} is {doing(view)}; `modelyard ps` tells how far it is")
    elif before.state == "ready":
        say(f"{view.id} was awake already")
    else:
        how = "woke" if view.run == before.run else "started anew and is ready"
        say(f"{view.id} {how} in {span(time.monotonic() - began)}")


def _slept(before: ModelView, view: ModelView, level: int, seconds: float) -> str:
    """How it went, in one line."""
    if view.state == before.state != "ready":
        return f"{view.id} is {doing(view)}, as before"
    if view.state == "asleep":
        kept = {device: mib for device, mib in view.memory_mib.items() if mib}
        return f"{view.id} is {doing(view)} after {span(seconds)} and keeps {shares(kept)}"
    if view.state == "stopped":
        instead = f"; it did not go to sleep: {view.reason}" if level < STOP else ""
        return f"{view.id} stopped in {span(seconds)}{instead}"
    return f"{view.id} is {doing(view)}"
