"""Who may run together in llama-swap: groups, and the sets of a matrix.

Laws of this file:
- Without either, one model runs at a time. A group that swaps runs one of its members, any other
  all of them; a group that excludes nobody runs beside anything.
- Of a set like `(a | b) & c` only its size matters here: how many run together at most.

Facts: config.example.yaml of github.com/mostlygeek/llama-swap ("matrix", "groups").
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from modelyard.config.tree import Plain
from modelyard.config.values import KeyPath
from modelyard.importers.values import as_bool, as_mapping, as_text, as_texts

_IN_ROUTER: KeyPath = ("routing", "router", "settings")


def groups_of(tree: Mapping[str, Plain]) -> Iterator[tuple[KeyPath, Plain]]:
    """Both places where groups can be, with their paths."""
    yield ("groups",), tree.get("groups")
    yield (*_IN_ROUTER, "groups"), _in_router(tree).get("groups")


def matrices_of(tree: Mapping[str, Plain]) -> Iterator[tuple[KeyPath, Plain]]:
    """Both places where a matrix can be, with their paths."""
    yield ("matrix",), tree.get("matrix")
    yield (*_IN_ROUTER, "matrix"), _in_router(tree).get("matrix")


def neighbours(tree: Mapping[str, Plain]) -> dict[str, int | None]:
    """How many run together with each model, itself included; None where it runs beside any other.

    Models that are not named run alone.
    """
    found: dict[str, int | None] = {}
    for _, groups in groups_of(tree):
        for group in as_mapping(groups).values():
            keys = as_mapping(group)
            members = as_texts(keys.get("members") or [])
            count: int | None = 1 if as_bool(keys.get("swap", True)) else len(members)
            if as_bool(keys.get("persistent")) or not as_bool(keys.get("exclusive", True)):
                count = None
            found.update(dict.fromkeys(members, count))
    for _, matrix in matrices_of(tree):
        sets = [
            as_text(value) or "" for value in as_mapping(as_mapping(matrix).get("sets")).values()
        ]
        for short, model in as_mapping(as_mapping(matrix).get("vars")).items():
            name = as_text(model)
            sizes = [text.count("&") + 1 for text in sets if short in re.findall(r"\w+", text)]
            if name is not None:
                found[name] = max(sizes, default=1)
    return found


def _in_router(tree: Mapping[str, Plain]) -> Mapping[str, Plain]:
    router = as_mapping(as_mapping(tree.get("routing")).get("router"))
    return as_mapping(router.get("settings"))
