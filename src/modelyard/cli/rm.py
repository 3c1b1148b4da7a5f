"""The command `rm`: a model's files off the disk.

Laws of this file:
- What goes is shown before it goes, and a person has to agree.
- Where a server runs it removes the files, because it knows whether the model is in use.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from modelyard.cli.configure import ConfigFile, load_config
from modelyard.cli.exits import REFUSED, BadUsage
from modelyard.cli.options import Json, Model, Url
from modelyard.cli.output import note, print_json, say
from modelyard.cli.pull import in_bytes, server
from modelyard.cli.words import counted, short_path

if TYPE_CHECKING:
    from modelyard.config import Config
    from modelyard.config.pulling import Removal

MOST_SHOWN = 10


def rm(
    model: Model,
    force: Annotated[
        bool, typer.Option("--force", help="Also files of a model that the configuration declares.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    config: ConfigFile = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Remove a model's files from the models folders, after asking."""
    client = server(url)
    chosen = load_config(config) if client is None else None

    def remove(dry_run: bool) -> Removal:
        if client is not None:
            return client.remove_files(model, force=force, dry_run=dry_run)
        assert chosen is not None
        return asyncio.run(_remove_here(chosen, model, force=force, dry_run=dry_run))

    with client or nullcontext():
        if not yes:
            _ask(remove(True))
        done = remove(False)
    if as_json:
        print_json(done)
    else:
        count = counted(len(done.files), "file")
        say(f"{done.model} is removed: {count}, {in_bytes(done.freed_bytes)} freed")


def _ask(would: Removal) -> None:
    """Show what would go, and end the command unless a person agrees."""
    for path in would.files[:MOST_SHOWN]:
        note(f"  {short_path(path)}")
    if len(would.files) > MOST_SHOWN:
        note(f"  and {len(would.files) - MOST_SHOWN} more")
    for text in would.notes:
        note(text)
    if not sys.stdin.isatty():
        raise BadUsage("nobody is there to be asked", hint="say --yes to remove these files")
    size = in_bytes(would.freed_bytes)
    if not typer.confirm(f"Remove {would.model} and free {size}?", err=True):
        note("Nothing was removed.")
        raise typer.Exit(REFUSED)


async def _remove_here(config: Config, model: str, *, force: bool, dry_run: bool) -> Removal:
    from modelyard.core.names import Names
    from modelyard.runtime.inventory import Inventory
    from modelyard.runtime.pulls import with_downloads
    from modelyard.runtime.removals import Removals

    whole = with_downloads(config)
    inventory = Inventory(whole, engines=("llamacpp", "vllm", "transformers"))
    names = Names(await asyncio.to_thread(inventory.read))
    removals = Removals(
        lambda: inventory.found,
        lambda: {spec.id for spec in config.models},
        lambda: whole.models_dirs,
        lambda _: "stopped",
    )
    return await removals.remove(names.resolve(model), force=force, dry_run=dry_run)
