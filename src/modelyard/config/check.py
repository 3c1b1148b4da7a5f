"""From a tree to a checked `File`: pydantic finds what is wrong, the words are ours.

Laws of this file:
- One wrong key never hides what is wrong elsewhere: it is reported, left out, and the rest is
  checked again, so that rules across keys still run.
- At most `MOST_PROBLEMS` are put into words; a file with more has one cause.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from modelyard.config.kinds import ONE_DEVICE
from modelyard.config.schema import SECTIONS, File, section_of
from modelyard.config.sections import keys_of
from modelyard.config.tree import Plain, Problem
from modelyard.config.values import KeyPath
from modelyard.config.wording import near_names

MOST_PROBLEMS = 100
_KEY_OF_MAPPING = "[key]"
"""Pydantic's mark, at the end of a path, for a mapping's key that is wrong itself."""


def check(data: Plain) -> tuple[File, frozenset[KeyPath], list[Problem]]:
    """What `data` says, the keys that had to be left out, and why.

    A key that was left out has its default in the `File`. Paths of such keys are cut to the
    setting they belong to: `("models", "qwen", "tasks")`, not its first item.
    """
    try:
        return File.model_validate(data), frozenset(), []
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
    problems = [_worded(details) for details in errors[:MOST_PROBLEMS]]
    wrong = frozenset(setting(_path(details)) for details in errors)
    return File.model_validate(_without(data, wrong)), wrong, problems


def _worded(details: ErrorDetails) -> Problem:
    path = _path(details)
    match details["type"]:
        case "value_error":
            return Problem(path, str(details["ctx"]["error"]))
        case "extra_forbidden":
            known = keys_of(section_of(path))
            near = near_names(path[-1], known)
            advice = "" if near else f"; the keys here are {', '.join(known)}"
            return Problem(path, f"there is no such key{near}{advice}")
        case "missing":
            return Problem(path, "is missing; give it a value")
        case other:
            # Kinds raise ValueError for all else; this keeps a new kind from losing its problem.
            return Problem(path, f"is not valid ({other})")


def _path(details: ErrorDetails) -> KeyPath:
    steps = details["loc"]
    if steps[-1] == _KEY_OF_MAPPING:
        steps = steps[:-1]
    return tuple(step for step in steps if step != ONE_DEVICE)


def setting(path: KeyPath) -> KeyPath:
    """The path of the key that a value belongs to: `tasks` for its first item.

    A key or a remote without one of its keys may lack what it must have, so it goes as a whole.
    """
    if path[0] == "models":
        return path[:3]
    return path[:2] if path[0] in SECTIONS or path[0] in ("keys", "remotes") else path[:1]


def _without(data: Plain, wrong: Iterable[KeyPath]) -> Plain:
    """`data` less the keys at the paths `wrong`."""
    by_first: dict[str | int, list[KeyPath]] = {}
    for first, *rest in wrong:
        by_first.setdefault(first, []).append(tuple(rest))
    if not isinstance(data, dict):
        return data
    return {
        key: _without(value, by_first.get(key, ()))
        for key, value in data.items()
        if () not in by_first.get(key, ())
    }
