"""The command `secret`: a key as it may be written into the configuration.

Laws of this file:
- A secret is never an argument: those are seen by everybody on the machine and kept by the shell.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from modelyard.cli.configure import ConfigFile, load_config
from modelyard.cli.options import Json
from modelyard.cli.output import note, print_json, say

MAX_SECRET = 4096


StateDir = Annotated[
    Path | None,
    typer.Option(
        "--state-dir",
        metavar="DIR",
        help="State folder of the server. Default: that of the configuration.",
    ),
]


def secret(config: ConfigFile = None, state_dir: StateDir = None, as_json: Json = False) -> None:
    """Encrypt a key for the configuration. It is asked for, or read from stdin."""
    from modelyard.core.errors import InvalidRequest
    from modelyard.store.sealing import Seal

    folder = state_dir or load_config(config).server.state_dir
    if sys.stdin.isatty():
        said: str = typer.prompt("Key (not shown)", hide_input=True, err=True)
    else:
        said = sys.stdin.read(MAX_SECRET + 1)
    said = said.strip()
    if not said or len(said) > MAX_SECRET or not (said.isascii() and said.isprintable()):
        raise InvalidRequest(
            f"this is no key: a key is one line of 1 to {MAX_SECRET} visible ASCII characters"
        )
    hidden = Seal(folder).hide(said)
    if as_json:
        print_json({"secret": hidden})
        return
    say(hidden)
    note("Write it as the `key` of an upstream. It can be read on this machine alone.")
