"""Reads the options that a vLLM prints about itself, `--help=all` (or `--help`, before 0.9.1).

Laws of this file:
- An option is what argparse prints with an indent of two or more, before its description: names,
  separated by commas, and what they take. Descriptions are not read; they mention other options.
- Text that is no help gives no options, never an error.

argparse prints the option's own line unwrapped, whatever its length (`HelpFormatter`,
docs.python.org/3/library/argparse). vLLM prints all groups at once only for `all`: since the
grouped help of mid-2025 (vllm pull request 18643) plain `--help` shows a summary.
"""

from __future__ import annotations

import re
from typing import Final

from modelyard.engines.vllm_table import Form

_MOST_OPTIONS: Final = 2000
_LINE: Final = re.compile(r" {2,4}(?P<entry>-\S.*)")
_COLOUR: Final = re.compile(r"\x1b\[[\d;]{0,12}m")
_NAME: Final = re.compile(r"--(?P<name>[a-z0-9][\w.-]*)")
_NO_OPTIONS: Final = frozenset({"help", "version"})
_EXAMPLE: Final = "json-arg"
"""The name by which vLLM's help explains arguments in JSON."""
_APPENDED: Final = frozenset({"middleware", "ignore-patterns"})
"""Options that are given again for each value, which a help text does not tell."""


def options(text: str) -> dict[str, Form]:
    """Each option's form by its long name; the first of several long names counts."""
    found: dict[str, Form] = {}
    for line in _COLOUR.sub("", text).splitlines():
        entry = _LINE.fullmatch(line)
        if entry is None or len(found) >= _MOST_OPTIONS:
            continue
        # Two spaces separate what the option takes from its description on the same line.
        invocation = re.split(r" {2,}", entry["entry"], maxsplit=1)[0]
        names = _NAME.findall(invocation)
        if names and names[0] not in _NO_OPTIONS and not names[0].startswith(_EXAMPLE):
            found.setdefault(names[0], _form(invocation, names))
    return found


def _form(invocation: str, names: list[str]) -> Form:
    if any(name == f"no-{names[0]}" for name in names[1:]):
        return Form.BOTH
    taken = re.sub(r"(?:^|, )-{1,2}[\w.-]+", "", invocation).strip()
    if not taken:
        return Form.SWITCH
    if taken.endswith("...]"):
        return Form.LIST
    if names[0] in _APPENDED:
        return Form.REPEATED
    # A list of choices stands in brackets too, but has commas.
    return Form.MAYBE if re.fullmatch(r"\[[A-Z_]+\]", taken) else Form.VALUE
