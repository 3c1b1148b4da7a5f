"""The command that tells a client about the server: show it, write it, take it back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelyard.cli.options import Json, Url
from modelyard.cli.output import print_json, say
from modelyard.cli.words import clean

if TYPE_CHECKING:
    from modelyard.client import Client
    from modelyard.connect.files import Done
    from modelyard.connect.recipes import Recipe, Target
    from modelyard.core.views import ModelView


def connect(
    client: Annotated[
        str | None, typer.Argument(help="Which client: codex, claude-code, ...; all without.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Model to use. Default: the first for chat.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", help="Key that the client sends.", envvar="MODELYARD_API_KEY"),
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Write the client's configuration.")
    ] = False,
    undo: Annotated[
        bool, typer.Option("--undo", help="Put back what was there before --write.")
    ] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Have a client that you already use talk to Modelyard.

    Shows what goes where; --write does it, --undo takes it back.
    """
    from modelyard.cli.exits import BadUsage
    from modelyard.config.values import default_state_dir
    from modelyard.connect import files
    from modelyard.connect.recipes import CLIENTS

    if client is None:
        _list(as_json)
        return
    if client not in CLIENTS:
        raise BadUsage(
            f"no client is known as {client[:100]!r}; known: {', '.join(CLIENTS)}",
            hint="every client that speaks OpenAI's API works: `modelyard connect openai`",
        )
    if write and undo:
        raise BadUsage("--write and --undo exclude each other")
    journal = files.Journal(default_state_dir(), client)
    if undo:
        _tell(client, "disconnected", files.disconnect(journal), "", as_json)
        return
    recipe = CLIENTS[client].recipe(_target(url, model, key), Path.home())
    if not write or not recipe.edits:
        _show(client, recipe, as_json)
        return
    _tell(client, "connected", files.connect(recipe.edits, journal), recipe.advice, as_json)


def _list(as_json: bool) -> None:
    from modelyard.connect.recipes import CLIENTS

    if as_json:
        print_json([{"id": each.id, "title": each.title} for each in CLIENTS.values()])
        return
    for each in CLIENTS.values():
        say(f"{each.id:<12} {each.title}")


def _target(url: str | None, model: str | None, key: str | None) -> Target:
    """What the client is to use. Raises ModelyardError if there is no such model or server."""
    from modelyard.client import Client
    from modelyard.connect.recipes import Target

    with Client(url) as server:
        view = server.model(model) if model else _for_chat(server)
        name = model or view.id
        return Target(server.url, name, key or "", view.context_length)


def _for_chat(server: Client) -> ModelView:
    from modelyard.core.errors import ModelNotFound

    for view in server.models():
        if "chat" in view.tasks:
            return view
    raise ModelNotFound("a model for chat")


def _show(client: str, recipe: Recipe, as_json: bool) -> None:
    from modelyard.connect.recipes import Whole

    if as_json:
        edits = [
            {
                "path": str(edit.path),
                **({"text": edit.text} if isinstance(edit, Whole) else {"values": edit.values}),
            }
            for edit in recipe.edits
        ]
        print_json({"client": client, "edits": edits, "advice": recipe.advice})
        return
    for edit in recipe.edits:
        if isinstance(edit, Whole):
            say(f"{edit.path}:\n\n{clean(edit.text)}")
        else:
            say(f"Into {edit.path}:\n\n{clean(json.dumps(edit.values, indent=2))}\n")
    say(clean(recipe.advice))
    if recipe.edits:
        say(f"\n`modelyard connect {client} --write` writes this, --undo takes it back.")


def _tell(client: str, what: str, done: list[Done], advice: str, as_json: bool) -> None:
    if as_json:
        files = [
            {"path": str(each.path), "action": each.action, "keys": list(each.keys)}
            for each in done
        ]
        print_json({"client": client, "done": what, "files": files, "advice": advice})
        return
    for each in done:
        keys = f" ({', '.join(each.keys)})" if each.keys else ""
        say(f"{each.action} {each.path}{keys}")
    if not done:
        say(f"{client} was not connected by this command: nothing to take back")
    elif advice:
        say(clean(advice))
