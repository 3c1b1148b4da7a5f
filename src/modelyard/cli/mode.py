"""The command that shows and switches the mode of the virtual models."""

from __future__ import annotations

from typing import Annotated

import typer

from modelyard.cli.options import Json, Url
from modelyard.cli.output import note, print_json, say
from modelyard.cli.virtuals import notes
from modelyard.cli.words import clean


def mode(
    name: Annotated[
        str | None, typer.Argument(help="Mode to switch to.", show_default=False)
    ] = None,
    usual: Annotated[bool, typer.Option("--usual", help="Back to the usual targets.")] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show whom the virtual models stand for, or switch to another mode.

    A mode gives virtual models other targets; `virtual` in the configuration says which.
    """
    from modelyard.cli.exits import BadUsage
    from modelyard.client import Client

    if name is not None and usual:
        raise BadUsage("a mode and --usual exclude each other")
    with Client(url) as client:
        shows = name is None and not usual
        modes = client.modes() if shows else client.switch_mode(name or "")
    if as_json:
        print_json(modes)
        return
    say(f"mode: {clean(modes.mode) or 'the usual'}; there are: {', '.join(modes.modes) or 'none'}")
    for virtual in modes.virtuals:
        say(f"{clean(virtual.id)} ({virtual.choose}): {clean(', '.join(virtual.targets))}")
    for text in notes(modes.virtuals):
        note(text)
