"""A configuration before it is checked: a tree of values that remember where they were written.

Laws of this file:
- A tree is bounded in depth and size by whoever built it; walking it by recursion is safe.
- Nodes are never changed. Laying one tree over another makes new nodes and shares the rest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from modelyard.config.values import KeyPath

Scalar: TypeAlias = "str | int | float | bool | None"
Plain: TypeAlias = "Scalar | list[Plain] | dict[str, Plain]"


class EnvText(str):
    """Text from an environment variable. It has no type yet: the key it is for decides."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Origin:
    """Who wrote a value, and the folder its relative paths start from."""

    label: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Node:
    """A value with its place. `size` counts the node and all below it, aliases included."""

    value: Scalar | tuple[Node, ...] | dict[str, Node]
    origin: Origin
    line: int | None = None
    size: int = 1

    @property
    def place(self) -> str:
        return self.origin.label if self.line is None else f"{self.origin.label}:{self.line}"


class Problem(NamedTuple):
    """Something wrong with the value at `path`."""

    path: KeyPath
    text: str


def locate(root: Node, path: KeyPath) -> Node:
    """The node at `path`, or the deepest one on the way to it."""
    node = root
    for step in path:
        below: Node | None = None
        if isinstance(node.value, dict) and isinstance(step, str):
            below = node.value.get(step)
        elif isinstance(node.value, tuple) and isinstance(step, int):
            below = node.value[step] if step < len(node.value) else None
        if below is None:
            break
        node = below
    return node


def overlay(under: Node, over: Node) -> Node:
    """`over` laid on `under`: mappings are united key by key, everything else is replaced."""
    if not isinstance(under.value, dict) or not isinstance(over.value, dict):
        return over
    merged = dict(under.value)
    for key, node in over.value.items():
        merged[key] = overlay(merged[key], node) if key in merged else node
    return Node(merged, under.origin, under.line, under.size + over.size)


def nested(path: Sequence[str], node: Node) -> Node:
    """`node` wrapped into one mapping for each key of `path`."""
    for key in reversed(path):
        node = Node({key: node}, node.origin, node.line, node.size + 1)
    return node


def show(path: KeyPath) -> str:
    """A key path as people write it: `models.qwen.tasks[0]`, `models["llama-3.1"].source`."""
    written = ""
    for step in path:
        if isinstance(step, int):
            written += f"[{step}]"
        elif re.fullmatch(r"[\w-]{1,80}", step):
            written += f".{step}" if written else step
        else:
            name = step if len(step) <= 80 else f"{step[:77]}..."
            written += f"[{json.dumps(name, ensure_ascii=False)}]"
    return written


def report(root: Node, problem: Problem) -> str:
    """One line for a person: `modelyard.yaml:12: models.qwen.tasks[0]: ...`."""
    place = locate(root, problem.path).place
    key = show(problem.path)
    return ": ".join(part for part in (place, key, problem.text) if part)
