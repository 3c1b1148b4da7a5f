"""How messages show what somebody wrote.

Laws of this file:
- Whatever was written, a message stays on one line, and short.
- Looking for near names is bounded: long names are not compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST_SHOWN = 60
LONGEST_COMPARED = 64


def describe_kind(value: object) -> str:
    """A value in the words of people who write YAML; short scalars are shown."""
    match value:
        case None:
            return "empty"
        case dict():
            return "a mapping"
        case list() | tuple():
            return "a list"
        case bool():
            return "true" if value else "false"
        case _:
            return shorten(value)


def shorten(value: object) -> str:
    """A scalar for a message: text is quoted, and what is long is cut."""
    if isinstance(value, str):
        return repr(value if len(value) <= LONGEST_SHOWN else f"{value[: LONGEST_SHOWN - 3]}...")
    shown = str(value)
    return shown if len(shown) <= LONGEST_SHOWN else f"{shown[: LONGEST_SHOWN - 3]}..."


def near_names(name: object, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing where no known name is like `name`."""
    if not isinstance(name, str) or len(name) > LONGEST_COMPARED:
        return ""
    close = get_close_matches(name, list(known), 2, 0.7)
    return f"; did you mean {' or '.join(close)}?" if close else ""
