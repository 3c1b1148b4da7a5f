"""Printing: tables and values for people, one JSON document for programs.

Laws of this file:
- Results go to stdout, everything said about them to stderr.
- Colours, and lines that are rewritten, only where a person looks: on a terminal, and without
  NO_COLOR (no-color.org) for colours.
- Streams are looked up when they are used, so that whoever redirects them is obeyed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from modelyard.cli.words import clean

WIDE = 100_000
"""Columns of a table: nothing is cut or folded, a terminal wraps lines where it must."""

_STYLES = {
    "ready": "green",
    "starting": "cyan",
    "restarting": "cyan",
    "waking": "cyan",
    "suspending": "yellow",
    "asleep": "blue",
    "stopping": "yellow",
    "backoff": "red",
    "failed": "red",
    "stopped": "dim",
}


def is_terminal(stream: TextIO) -> bool:
    """Whether a person looks at the stream, on something that can rewrite a line."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def say(text: str = "") -> None:
    """A line of the result."""
    print(clean(text))


def note(text: str) -> None:
    """A line about what is going on; no part of the result."""
    print(clean(text), file=sys.stderr, flush=True)


def print_json(value: object) -> None:
    """The result, for a program."""
    import msgspec

    encoded = msgspec.json.format(msgspec.json.encode(value), indent=2)
    print(encoded.decode(), flush=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Aligned columns; a cell that begins with a state's name has its colour."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(Text(clean(cell), _STYLES.get(_first_word(cell), "")) for cell in row))
    console = Console(width=WIDE, highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        print(line.rstrip())


def print_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Names and values, one pair a line; lines of a longer value are indented."""
    pairs = list(pairs)
    width = max(len(name) for name, _ in pairs) + 2
    for name, value in pairs:
        first, *more = clean(value).splitlines() or [""]
        print(f"{name:{width}}{first}".rstrip())
        for line in more:
            print(" " * width + line)


def _first_word(cell: str) -> str:
    return cell.partition(":")[0].partition(" ")[0]
