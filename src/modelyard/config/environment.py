"""What environment variables say: `MODELYARD_*` settings, and `${env:NAME}` inside values.

Laws of this file:
- A variable's value is text without a type: the key it is for decides how it is read.
- An empty variable counts as not set. A name that means nothing is a problem, never ignored.
- What a reference stood for is remembered, because its value may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modelyard.config.tree import EnvText, Node, Origin, Plain, Problem, nested, overlay
from modelyard.config.values import KeyPath
from modelyard.config.wording import near_names, shorten

PREFIX = "MODELYARD_"
RESERVED = frozenset(
    f"{PREFIX}{name}"
    for name in (
        "OWNER",
        "RUN",
        "URL",
        "API_KEY",
        "CONFIG",
        "FAKE_GPUS",
        "CA",
        "CLIENT_CERTIFICATE",
        "COMPILE",
    )
)
"""Variables with a meaning of their own: marks of our engines' processes, the command line's, the
folder of the GPUs that the demo makes up, and what the build of a wheel is told."""
MAX_EXPANDED = 1024 * 1024
"""Characters that all references of a configuration may stand for together."""
_BUDGET = f"{PREFIX}DEVICES__BUDGET__"
_REFERENCE = re.compile(r"\$(\$\{)|\$\{env:([^}]*)(\}?)")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def settings(
    env: Mapping[str, str], settable: Iterable[KeyPath], folder: Path
) -> tuple[Node, list[str]]:
    """The tree that `MODELYARD_*` variables describe, and what is wrong with their names.

    `settable` are the keys that a variable can set; relative paths start from `folder`.
    """
    keys = {variable_for(path): path for path in settable}
    root = Node({}, Origin("", folder))
    problems = []
    for name in sorted(env):
        if not name.startswith(PREFIX) or name in RESERVED or not env[name].strip():
            continue
        path = keys.get(name)
        if path is None and name.startswith(_BUDGET) and len(name) > len(_BUDGET):
            path = ("devices", "budget", name.removeprefix(_BUDGET).lower())
        if path is None:
            problems.append(f"{name}: {_unknown(name, keys)}")
            continue
        node = Node(EnvText(env[name]), Origin(name, folder))
        root = overlay(root, nested([str(step) for step in path], node))
    return root, problems


def _unknown(name: str, keys: Mapping[str, KeyPath]) -> str:
    if name.startswith(f"{PREFIX}MODELS__"):
        return "models are described in the file, not by variables; unset it"
    return f"no setting has this name{near_names(name, keys)}; correct or unset it"


def variable_for(path: KeyPath) -> str:
    """The variable that sets the key at `path`."""
    return PREFIX + "__".join(str(step).upper() for step in path)


@dataclass(slots=True)
class Expansion:
    """A tree turned into plain data, with every `${env:NAME}` replaced by its variable."""

    env: Mapping[str, str]
    written: dict[KeyPath, str] = field(default_factory=dict)
    """Values that held references, as they were written."""
    problems: list[Problem] = field(default_factory=list)
    _room: int = MAX_EXPANDED

    def plain(self, node: Node, path: KeyPath = ()) -> Plain:
        value = node.value
        if isinstance(value, dict):
            return {key: self.plain(below, (*path, key)) for key, below in value.items()}
        if isinstance(value, tuple):
            return [self.plain(below, (*path, at)) for at, below in enumerate(value)]
        if isinstance(value, str):
            return self._expand(value, path)
        return value

    def _expand(self, text: str, path: KeyPath) -> str:
        if "${" not in text:
            return self._checked(text, path)
        refers = False

        def replace(match: re.Match[str]) -> str:
            nonlocal refers
            if match[1]:
                return match[1]
            refers = True
            return self._lookup(match[2], bool(match[3]), path)

        expanded = _REFERENCE.sub(replace, text)
        if not refers:
            return self._checked(type(text)(expanded), path)
        self.written[path] = text
        return EnvText(self._checked(expanded, path))

    def _lookup(self, name: str, closed: bool, path: KeyPath) -> str:
        if not closed or not _VARIABLE.fullmatch(name):
            text = f"${{env:{name[:60]} names no variable; write ${{env:NAME}}, or $${{ for ${{"
            self.problems.append(Problem(path, text))
            return ""
        if name not in self.env:
            text = (
                f"the environment variable {shorten(name)} is not set; set it, or write the value"
            )
            self.problems.append(Problem(path, text))
            return ""
        self._room -= len(self.env[name])
        if self._room < 0:
            text = f"variables stand for more than {MAX_EXPANDED} characters; use fewer of them"
            self.problems.append(Problem(path, text))
            return ""
        return self.env[name]

    def _checked(self, text: str, path: KeyPath) -> str:
        """Variables and flags can hold what the file's reader refuses."""
        if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
            self.problems.append(Problem(path, "holds a NUL or bytes that are not UTF-8"))
            return text.replace("\0", "").encode("utf-8", "replace").decode()
        return text
