"""Commands for keys: keys add, keys list, keys rm.

Laws of this file:
- A key is made here and printed once, alone on stdout. The server and the file get its digest.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from modelyard.cli.configure import ConfigFile, load_config
from modelyard.cli.exits import BadUsage
from modelyard.cli.options import Json, Url
from modelyard.cli.output import note, print_json, print_table, say
from modelyard.cli.owner import file_here, owner
from modelyard.cli.words import ago, listed, short_path

if TYPE_CHECKING:
    from modelyard.config.keyring import KeyChange, KeyView

commands = typer.Typer(name="keys", help="Make and remove keys for clients.", no_args_is_help=True)

COLUMNS = ("NAME", "SCOPES", "MODELS", "HOSTS", "LIMITS", "EXPIRES", "REQUESTS", "TOKENS", "USED")

Name = Annotated[str, typer.Argument(help="What the key is called; it is part of the key.")]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        metavar="ID",
        help="A model that the key may ask, or a pattern like 'qwen*'. May be repeated. "
        "Default: all.",
    ),
]
Admin = Annotated[
    bool, typer.Option("--admin", help="The key may also use the admin API, and all commands.")
]
Scopes = Annotated[
    list[str] | None,
    typer.Option(
        "--scope",
        metavar="SCOPE",
        help="What the key opens: inference, read, admin. May be repeated. Default: inference.",
    ),
]
Hosts = Annotated[
    list[str] | None,
    typer.Option(
        "--host",
        metavar="ADDRESS",
        help="Where the key may be used from, like 10.0.0.0/8. May be repeated. Default: any.",
    ),
]
Expires = Annotated[
    str | None,
    typer.Option(
        "--expires", metavar="WHEN", help="A date like 2027-01-31, or a time from now like 30d."
    ),
]
Priority = Annotated[
    int,
    typer.Option("--priority", metavar="NUMBER", help="Higher ones wait less for the same model."),
]
Requests = Annotated[
    str | None,
    typer.Option("--requests", metavar="RATE", help="Most requests per time, like 60/min."),
]
Tokens = Annotated[
    str | None,
    typer.Option("--tokens", metavar="RATE", help="Most tokens per time, like 100k/min."),
]
Concurrency = Annotated[
    int | None,
    typer.Option("--concurrency", metavar="NUMBER", min=1, help="Most requests at once."),
]


@commands.command()
def add(
    name: Name,
    model: Models = None,
    admin: Admin = False,
    scope: Scopes = None,
    host: Hosts = None,
    expires: Expires = None,
    priority: Priority = 0,
    requests: Requests = None,
    tokens: Tokens = None,
    concurrency: Concurrency = None,
    config: ConfigFile = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Make a key and let it in. It is printed once and kept nowhere but as a digest."""
    import secrets

    from modelyard.config.keyring import KeyWanted
    from modelyard.core.keys import SECRET_BYTES, digest_of, key_text

    _check(name)
    if admin and scope:
        raise BadUsage("--admin and --scope exclude each other", hint="write --scope admin")
    text = key_text(name, secrets.token_bytes(SECRET_BYTES))
    wanted = KeyWanted(
        digest_of(text),
        scopes=scope or (["inference", "admin"] if admin else ["inference"]),
        models=model or [],
        hosts=host or [],
        expires=None if expires is None else _moment(expires),
        priority=priority,
        requests=requests,
        tokens=tokens,
        concurrency=concurrency,
    )
    client = owner(url, config)
    if client is None:
        change = asyncio.run(file_here(config)[0].add_key(name, wanted))
    else:
        with client:
            change = client.add_key(name, wanted)
    if as_json:
        print_json({"name": name, "key": text, "path": change.path})
        return
    say(text)
    note("This is the only time that the key is shown.")
    _tell(change, "the server follows it" if client else "the next server follows it")


@commands.command("list")
def list_keys(config: ConfigFile = None, url: Url = None, as_json: Json = False) -> None:
    """Show all keys, what they allow, and what has been used of them."""
    views = _views(config, url)
    if as_json:
        print_json(views)
    elif views:
        now = time.time()
        print_table(COLUMNS, [_row(view, now) for view in views])
    else:
        note("There are no keys: nobody is asked for one.")


@commands.command()
def rm(name: Name, config: ConfigFile = None, url: Url = None, as_json: Json = False) -> None:
    """Let a key in no more. Requests under way go on."""
    client = owner(url, config)
    if client is None:
        change = asyncio.run(file_here(config)[0].remove_key(name))
    else:
        with client:
            change = client.remove_key(name)
    if as_json:
        print_json(change)
        return
    say(f"{name} is let in no more")
    _tell(change, "the server follows it" if client else "the next server follows it")


def _tell(change: KeyChange, who: str) -> None:
    """What is so from now on."""
    note(f"Written to {short_path(change.path)}; {who}.")
    if not change.asks:
        note("There are no keys left: nobody is asked for one.")
        return
    note("Models are asked with a key from now on.")
    if change.asks_admins:
        note("So is the admin API: commands take their key from MODELYARD_API_KEY.")
    else:
        note("The admin API asks nobody on this machine until a key has the scope admin or read.")


def _views(config: ConfigFile, url: str | None) -> list[KeyView]:
    from modelyard.config.keys import view_of

    client = owner(url, config)
    if client is None:
        now = time.time()
        return [view_of(key, now) for key in load_config(config).keys]
    with client:
        return client.keys()


def _row(view: KeyView, now: float) -> tuple[str, ...]:
    limits = [
        *([f"{view.requests} requests"] if view.requests else ()),
        *([f"{view.tokens} tokens"] if view.tokens else ()),
        *([f"{view.concurrency} at once"] if view.concurrency else ()),
    ]
    return (
        view.name,
        listed(view.scopes),
        listed(view.models) if view.models else "all",
        listed(view.hosts) if view.hosts else "any",
        listed(limits),
        f"{view.expires} (over)" if view.has_expired else view.expires or "never",
        str(view.used_requests),
        str(view.used_tokens),
        ago(view.last_used_at, now),
    )


def _check(name: str) -> None:
    from modelyard.core.keys import MAX_NAME, NAME

    if not NAME.fullmatch(name):
        raise BadUsage(
            f"{name!r} cannot be the name of a key",
            hint=f"use 1 to {MAX_NAME} letters, digits and . _ -, a letter or digit first",
        )


def _moment(text: str) -> str:
    """`30d` from now, or the date as it is: the file's own check says what is wrong with it."""
    from modelyard.config.units import parse_duration

    try:
        seconds = parse_duration(text)
    except ValueError:
        return text
    return datetime.fromtimestamp(int(time.time() + seconds), UTC).isoformat()
