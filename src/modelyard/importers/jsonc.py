"""JSON as people write it: with // and /* */ comments, and commas before closing brackets.

Laws of this file:
- Text in quotes is left alone: `"E:\\\\models"` and `"http://x"` hold no comments.
- Depth is counted before anything is parsed, so that no nesting reaches the parser's recursion.
- A key written twice is an error, because one of the two would be lost.
"""

from __future__ import annotations

import json
import re
from typing import Any

from modelyard.config.tree import Plain
from modelyard.importers.errors import CannotImport

MAX_DEPTH = 40
_PIECE = re.compile(
    r'"(?:[^"\\\n]|\\.)*"?|//[^\n]*|/\*.*?(?:\*/|\Z)|[\[{]|,(?=\s*[\]}])|[\]}]', re.DOTALL
)
"""What does not end (a text, a comment) reaches as far as it can: looking for its end again and
again would take quadratic time."""


def read_json(text: str, where: str) -> Plain:
    """The value in `text`. Raises CannotImport with the place of what is wrong."""
    plain = _without_comments(text, where)
    try:
        value: Plain = json.loads(
            _without_last_commas(plain), object_pairs_hook=_once, parse_constant=_no_constant
        )
    except json.JSONDecodeError as error:
        text = f"{where}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}"
        raise CannotImport(text, hint="correct it, or remove what is no JSON") from error
    except (ValueError, RecursionError) as error:
        raise CannotImport(f"{where}: not valid JSON: {error}") from error
    return value


def _without_comments(text: str, where: str) -> str:
    """Comments as blanks, so that lines and columns stay what they are."""
    depth = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal depth
        piece = match[0]
        if piece in "[{":
            depth += 1
        elif piece in "]}":
            depth -= 1
        if depth > MAX_DEPTH:
            raise CannotImport(f"{where}: is nested more than {MAX_DEPTH} levels deep")
        return re.sub(r"[^\n]", " ", piece) if piece.startswith("/") else piece

    return _PIECE.sub(replace, text)


def _without_last_commas(text: str) -> str:
    return _PIECE.sub(lambda match: " " if match[0] == "," else match[0], text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:60]!r} is written twice in one place; remove one")
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number that JSON has")
