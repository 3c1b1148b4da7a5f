"""The part of the command line that all engine processes of ours have.

Laws of this file:
- A wrong command line ends like everything that can only fail again: see `lifeline`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from modelyard.servers.lifeline import Unusable


class Parser(argparse.ArgumentParser):
    """What all of them take. Raises Unusable in place of ending the process."""

    def __init__(self, module: str, description: str | None, *, source: str) -> None:
        """`source` says what `--model` names: `FILE` or `FOLDER`."""
        super().__init__(prog=f"python -m {module}", description=description)
        self.formatter_class = argparse.RawDescriptionHelpFormatter
        self.add_argument("--model", required=True, metavar=source, help="the model to serve")
        self.add_argument("--alias", required=True, action="append", metavar="NAME")
        self.add_argument("--host", default="127.0.0.1")
        self.add_argument("--port", type=int, required=True, help="0 lets the system choose")
        self.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="NAME=JSON",
            dest="settings",
            help="an option of the engine",
        )
        self.add_argument("--chat-template-file", metavar="FILE", help="Jinja template to use")
        self.add_argument(
            "--exit-with-stdin",
            action="store_true",
            help="end when stdin does; write nothing to it",
        )

    def error(self, message: str) -> NoReturn:
        raise Unusable(message)


def read_template(path: str) -> str:
    """The text of a `--chat-template-file`. Raises Unusable."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Unusable(f"cannot read the chat template {path}: {error}") from None
