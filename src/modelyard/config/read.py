"""YAML text into a tree of located values. JSON is YAML, so it is read, too.

Laws of this file:
- The file is hostile: its size, depth and number of values (aliases counted each time they are
  used) are bounded, and the parser is stopped at the first value too many.
- Only YAML 1.2's core schema: no tags, so nothing is constructed; keys are text.
- A key written twice is an error, because one of the two would be lost.

ruamel.yaml parses (events); values are built here, since its constructors know no such bounds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from modelyard.config.tree import Node, Origin, Scalar, show
from modelyard.config.wording import shorten
from modelyard.core.errors import ConfigError

MAX_BYTES = 512 * 1024
MAX_DEPTH = 40
MAX_VALUES = 20_000
MAX_DIGITS = 400
MAX_REPEATED_KEYS = 50
MERGE = "<<"

_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"(true|True|TRUE)|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


class Unreadable(Exception):
    """The text cannot be read any further."""

    def __init__(self, line: int, column: int | None, text: str) -> None:
        place = f"{line}" if column is None else f"{line}:{column}"
        super().__init__(f":{place}: {text}")


def read_file(path: Path) -> Node:
    """The tree in the file at `path`.

    Raises ConfigError when the file cannot be opened, is too large, or is not valid YAML.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(str(path), [f"cannot be read: {reason}"]) from error
    return read_text(content, Origin(path.name, path.absolute().parent), str(path))


def read_text(content: bytes, origin: Origin, where: str) -> Node:
    """The tree in `content`; an empty text is an empty mapping."""
    if len(content) > MAX_BYTES:
        text = f"is larger than {MAX_BYTES // 1024} KiB; no configuration needs that"
        raise ConfigError(where, [f"{origin.label}: {text}"])
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problem = f"{origin.label}:{line}: is not UTF-8 text; save the file as UTF-8"
        raise ConfigError(where, [problem]) from error
    builder = _Builder(origin)
    try:
        root = builder.build(_events(text))
    except Unreadable as error:
        raise ConfigError(where, [*builder.problems, f"{origin.label}{error}"]) from error
    if builder.problems:
        raise ConfigError(where, builder.problems)
    return root


def _events(text: str) -> Iterator[Event]:
    """ruamel's events, its errors translated."""
    line = 1
    try:
        for event in YAML(typ="safe", pure=True).parse(text):
            line = event.start_mark.line + 1
            yield event
    except MarkedYAMLError as error:
        mark = error.problem_mark
        # One of ruamel's errors (an uneven block scalar) has its place inside its text alone.
        what = " ".join(str(error.problem or error.context).partition(' in "<')[0].split())
        column = mark.column + 1 if mark else None
        line = mark.line + 1 if mark else line
        raise Unreadable(line, column, f"not valid YAML: {what}") from error
    except ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        found = f"U+{ord(text[error.position]):04X}"
        raise Unreadable(line, column, f"not valid YAML: the character {found}") from error
    except (ValueError, OverflowError) as error:
        # ruamel lets these escape for \UFFFFFFFF and for a %YAML version of 5000 digits.
        what = "an escape or a version after this is out of range"
        raise Unreadable(line, None, f"not valid YAML: {what}") from error


_Tagged: TypeAlias = MappingStartEvent | SequenceStartEvent | ScalarEvent


@dataclass(slots=True)
class _Open:
    """A mapping or list that has begun and not ended."""

    line: int
    anchor: str | None
    is_mapping: bool
    items: list[Node] = field(default_factory=list)
    entries: dict[str, Node] = field(default_factory=dict)
    merged: dict[str, Node] | None = None
    key: str | None = None
    key_line: int = 0
    size: int = 1

    @property
    def wants_key(self) -> bool:
        return self.is_mapping and self.key is None

    @property
    def step(self) -> str | int:
        """The key or position of the value that is being read."""
        return self.key or "" if self.is_mapping else len(self.items)


class _Builder:
    """Puts the parser's events together. The first open list stands for the stream itself."""

    def __init__(self, origin: Origin) -> None:
        self.problems: list[str] = []
        self._origin = origin
        self._stack = [_Open(line=1, anchor=None, is_mapping=False)]
        self._anchors: dict[str, Node | None] = {}
        self._documents = 0

    def build(self, events: Iterator[Event]) -> Node:
        for count, event in enumerate(events):
            line = event.start_mark.line + 1
            if count > 2 * MAX_VALUES or self._stack[-1].size > MAX_VALUES:
                raise Unreadable(line, None, f"more than {MAX_VALUES} values, aliases included")
            self._take(event, line, event.start_mark.column + 1)
        items = self._stack[0].items
        if not items or items[0].value is None:
            return Node({}, self._origin)
        if not isinstance(items[0].value, dict):
            raise Unreadable(1, None, "the file must hold keys and values, like `models_dirs: []`")
        return items[0]

    def _take(self, event: Event, line: int, column: int) -> None:
        match event:
            case DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    raise Unreadable(line, None, "a second document begins; keep only one")
            case MappingStartEvent() | SequenceStartEvent():
                self._open(event, line, column)
            case MappingEndEvent() | SequenceEndEvent():
                self._close()
            case ScalarEvent():
                self._scalar(event, line, column)
            case AliasEvent():
                self._alias(event.anchor, line, column)

    def _open(self, event: MappingStartEvent | SequenceStartEvent, line: int, column: int) -> None:
        self._refuse_tag(event, line, column)
        if len(self._stack) > MAX_DEPTH:
            raise Unreadable(line, column, f"nested more than {MAX_DEPTH} levels deep")
        if self._stack[-1].wants_key:
            raise Unreadable(line, column, "a key must be plain text")
        if event.anchor:
            self._anchors[event.anchor] = None
        is_mapping = isinstance(event, MappingStartEvent)
        self._stack.append(_Open(line=line, anchor=event.anchor, is_mapping=is_mapping))

    def _close(self) -> None:
        closed = self._stack.pop()
        value = (
            {**(closed.merged or {}), **closed.entries}
            if closed.is_mapping
            else tuple(closed.items)
        )
        self._add(Node(value, self._origin, closed.line, closed.size), closed.anchor)

    def _add(self, node: Node, anchor: str | None) -> None:
        """Put a finished value where it belongs: into a list, or under the key before it."""
        if anchor:
            self._anchors[anchor] = node
        top = self._stack[-1]
        top.size += node.size
        if top.key is None:
            top.items.append(node)
        elif top.key == MERGE:
            top.merged = _merged(node, top.key_line)
        else:
            top.entries[top.key] = Node(node.value, node.origin, top.key_line, node.size)
        top.key = None

    def _scalar(self, event: ScalarEvent, line: int, column: int) -> None:
        self._refuse_tag(event, line, column)
        text = event.value
        if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
            raise Unreadable(line, column, "text with a NUL or half a surrogate pair is refused")
        if self._stack[-1].wants_key:
            self._key(text, line)
            if event.anchor:
                self._anchors[event.anchor] = Node(text, self._origin, line)
            return
        value = _resolve(text, line, column) if event.implicit[0] else text
        self._add(Node(value, self._origin, line), event.anchor)

    def _key(self, text: str, line: int) -> None:
        top = self._stack[-1]
        top.key, top.key_line = text, line
        if text in top.entries or (text == MERGE and top.merged is not None):
            if len(self.problems) >= MAX_REPEATED_KEYS:
                raise Unreadable(line, None, "and more keys are written twice")
            path = tuple(opened.step for opened in self._stack[1:])
            first = top.entries[text].line if text in top.entries else top.line
            self.problems.append(
                f"{self._origin.label}:{line}: {show(path)}: is written twice, first on line "
                f"{first}; remove one of them"
            )

    def _alias(self, name: str, line: int, column: int) -> None:
        if self._stack[-1].wants_key:
            raise Unreadable(line, column, "a key must be plain text")
        if name not in self._anchors:
            raise Unreadable(line, column, f"*{name[:60]} refers to no &{name[:60]} before it")
        node = self._anchors[name]
        if node is None:
            raise Unreadable(line, column, f"*{name[:60]} refers to itself")
        self._add(node, None)

    @staticmethod
    def _refuse_tag(event: _Tagged, line: int, column: int) -> None:
        if event.tag is not None:
            tag = shorten(str(event.tag))
            raise Unreadable(line, column, f"the tag {tag} is refused; write the value without it")


def _merged(node: Node, line: int) -> dict[str, Node]:
    """`<<: *name` or `<<: [*one, *two]`: keys from elsewhere, weaker than the mapping's own."""
    sources = node.value if isinstance(node.value, tuple) else (node,)
    merged: dict[str, Node] = {}
    for source in reversed(sources):
        if not isinstance(source.value, dict):
            raise Unreadable(line, None, "<< takes a mapping or a list of mappings")
        merged |= source.value
    return merged


def _resolve(text: str, line: int, column: int) -> Scalar:
    """A plain scalar's value by YAML 1.2's core schema (chapter 10.3.2 of the specification)."""
    if _NULL.fullmatch(text):
        return None
    if match := _BOOL.fullmatch(text):
        return match[1] is not None
    if len(text) > MAX_DIGITS:
        return text
    if _INT.fullmatch(text):
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    number = float(text) if _FLOAT.fullmatch(text) else 0.0
    if math.isinf(number) or text.lower().lstrip("+-") in (".inf", ".nan"):
        raise Unreadable(line, column, f"{shorten(text)} is not a number that can be used")
    return number if _FLOAT.fullmatch(text) else text
