"""The bracket grammar of the corpus: "[what is|what's] {thing}" stands for many sentences.

Laws of this file:
* `[a|b|]` picks one alternative (an empty one is allowed); brackets nest.
* `<macro>` is replaced by the pattern of that name.
* `{slot}` is replaced by what the caller's function returns for that slot.
* All chance comes from the `random.Random` that the caller passes in.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

_INNERMOST_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_MACRO = re.compile(r"<(\w+)>")
_SLOT = re.compile(r"\{(\w+)\}")
_SPACES = re.compile(r"\s+")


def sample(pattern: str, rng: random.Random, fill: Callable[[str], str] | None = None) -> str:
    """One random sentence of the pattern."""
    text = pattern
    while "[" in text:
        text = _INNERMOST_CHOICE.sub(lambda match: rng.choice(match.group(1).split("|")), text)
    if fill is not None:
        text = _SLOT.sub(lambda match: fill(match.group(1)), text)
    return _SPACES.sub(" ", text).strip()


def with_macros(pattern: str, macros: dict[str, str]) -> str:
    """The pattern with its macros written out."""
    return _MACRO.sub(lambda match: macros[match.group(1)], pattern)


def count(pattern: str) -> int:
    """How many sentences the pattern stands for, slots not counted."""
    total = 1
    text = pattern
    while "[" in text:
        match = _INNERMOST_CHOICE.search(text)
        if match is None:
            raise ValueError(f"unbalanced brackets in {pattern!r}")
        total *= match.group(1).count("|") + 1
        text = text[: match.start()] + text[match.end() :]
    return total
