"""Writes a draft as YAML with comments.

Laws of this file:
- What is written reads back as the same values: text that YAML would take for something else, or
  that holds anything unusual, is quoted; what is not printable is escaped.
- A comment is one line: line breaks and control characters of the source cannot end it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from textwrap import wrap

from modelyard.config.tree import Plain
from modelyard.importers.draft import Draft, Entry, ModelDraft

WIDTH = 98
_PLAIN = re.compile(
    r"(?:-{0,2}[A-Za-z]|[/~])[A-Za-z0-9_./~@+()=%^-]*(?: [A-Za-z0-9_./~@+()=%^-]+)*"
    r"|[0-9]+(?:MiB|ms|[sm])"
)
_WORDS = re.compile(r"(?:null|true|false|yes|no|on|off|y|n|~)", re.IGNORECASE)
_SHORT = {"\n": "\\n", "\t": "\\t", '"': '\\"', "\\": "\\\\"}


def render(draft: Draft, header: Iterable[str]) -> str:
    """The text of `modelyard.yaml`."""
    lines = [*_comments(header)]
    lines += _comments(draft.notes)
    for section, keys in draft.sections.items():
        lines += ["", f"{section}:"]
        lines += _entries(keys, 2)
    if draft.models_dirs:
        lines += ["", "models_dirs:"]
        lines += [f"  - {scalar(entry.value)}{_beside(entry)}" for entry in draft.models_dirs]
    used = [model for model in draft.models if not model.aside]
    lines += ["", "models:" if used else "models: {}"]
    for model in draft.models:
        lines += ["", *_model(model)]
    return "\n".join(lines) + "\n"


def _model(model: ModelDraft) -> Iterator[str]:
    yield from _comments([model.origin], 2)
    if not model.aside:
        yield f"  {scalar(model.id)}:"
        yield from _comments(model.notes, 4)
        yield from _entries(model.keys, 4)
        return
    yield from _comments([f"left out: {model.aside}", *model.notes], 2)
    body = [f"{scalar(model.id)}:", *_entries(model.keys, 2)]
    yield from (f"  # {line}" for line in body)


def _entries(keys: Mapping[str, Entry], indent: int) -> Iterator[str]:
    for key, entry in keys.items():
        yield from _pair(key, entry.value, indent, _beside(entry))


def _pair(key: str, value: Plain, indent: int, beside: str = "") -> Iterator[str]:
    name = f"{' ' * indent}{scalar(key)}:"
    flow = _flow(value)
    if len(name) + len(flow) < WIDTH or not isinstance(value, dict | list) or not value:
        yield f"{name} {flow}{beside}"
        return
    if isinstance(value, list) and not any(isinstance(item, dict | list) for item in value):
        yield f"{name}{beside}"
        yield from _wrapped(value, " " * (indent + 2))
        return
    yield f"{name}{beside}"
    yield from _block(value, indent + 2)


def _wrapped(items: list[Plain], indent: str) -> Iterator[str]:
    """A list of single values over as many lines as it needs."""
    line = f"{indent}["
    for at, item in enumerate(items):
        text = scalar(item) + ("]" if at == len(items) - 1 else ",")
        if len(line) + len(text) + 1 > WIDTH and line.strip() != "[":
            yield line.rstrip()
            line = f"{indent} "
        line += text + " "
    yield line.rstrip()


def _block(value: dict[str, Plain] | list[Plain], indent: int) -> Iterator[str]:
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _pair(key, below, indent)
        return
    for item in value:
        if isinstance(item, dict) and item:
            first, *rest = _block(item, indent + 2)
            yield f"{' ' * indent}- {first.lstrip()}"
            yield from rest
        else:
            yield f"{' ' * indent}- {_flow(item)}"


def _flow(value: Plain) -> str:
    if isinstance(value, dict):
        inner = (f"{scalar(key)}: {_flow(below)}" for key, below in value.items())
        return "{" + ", ".join(inner) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return scalar(value)


def scalar(value: Plain) -> str:
    """One value as YAML reads it, in any place."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return str(value)
    plain = _PLAIN.fullmatch(value) and not _WORDS.fullmatch(value)
    return value if plain else f'"{"".join(map(_escaped, value))}"'


def _escaped(character: str) -> str:
    if character in _SHORT:
        return _SHORT[character]
    if character.isprintable():
        return character
    code = ord(character)
    return (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    )


def _beside(entry: Entry) -> str:
    return f"  # {one_line(entry.origin)}" if entry.origin else ""


def _comments(texts: Iterable[str], indent: int = 0) -> Iterator[str]:
    start = " " * indent + "# "
    for text in texts:
        for line in wrap(one_line(text), WIDTH - len(start), break_long_words=False) or [""]:
            yield (start + line).rstrip()


def one_line(text: str) -> str:
    """`text` without line breaks and control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
