"""Reads the configuration from everywhere it can be written, and builds the `Config`.

Laws of this file:
- Precedence: override (a flag) over `MODELYARD_*` variable over file over the variables of other
  tools (`predecessors.py`) over default, key by key.
- Every problem that can be found is reported in one `ConfigError`, in the order of the file.
- Modules that need pydantic or ruamel are imported when something is loaded: programs that only
  pass a `Config` on start faster without them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from modelyard.config.environment import Expansion, settings
from modelyard.config.predecessors import inherited
from modelyard.config.tree import Node, Origin, Scalar, locate, nested, overlay, report
from modelyard.config.values import Config
from modelyard.core.errors import ConfigError

_NO_OVERRIDES: Mapping[str, Any] = MappingProxyType({})
_FLAGS = "command line"


def default_path() -> Path | None:
    """`modelyard.yaml` in the platform's folder for settings (`~/.config/modelyard` on Linux).

    None if there is none. The current folder is not searched: a configuration names programs to
    start, and must not come from wherever a person happens to be.
    """
    path = usual_path()
    return path if path.is_file() else None


def usual_path() -> Path:
    """Where `default_path` looks, whether or not there is a file."""
    import platformdirs  # see the laws

    return platformdirs.user_config_path("modelyard", appauthor=False) / "modelyard.yaml"


def load(
    path: Path | None,
    *,
    env: Mapping[str, str],
    overrides: Mapping[str, Any] = _NO_OVERRIDES,
    content: bytes | None = None,
) -> Config:
    """The configuration in the file at `path` (None: no file), under `env` and `overrides`.

    `overrides` maps dotted keys to values, `{"server.port": 9000}`; None means not given.
    `content` stands for what the file at `path` holds, to see what it would mean.
    Raises ConfigError with every problem: the file cannot be read or is not YAML, keys are
    unknown, values are wrong, keys contradict each other.
    """
    from modelyard.config.build import build
    from modelyard.config.check import MOST_PROBLEMS, check, setting
    from modelyard.config.read import read_file, read_text
    from modelyard.config.rules import broken_rules
    from modelyard.config.schema import settable_paths

    here = _current_folder()
    if path is None:
        root = Node({}, Origin("", here))
    elif content is None:
        root = read_file(path)
    else:
        root = read_text(content, Origin(path.name, path.absolute().parent), str(path))
    before, notes = inherited(env, here)
    from_env, unknown = settings(env, settable_paths(), here)
    root = overlay(overlay(before, root), from_env)
    for key, value in overrides.items():
        if value is not None:
            root = overlay(root, nested(key.split("."), _tree(value, Origin(_FLAGS, here))))

    expansion = Expansion(env)
    file, wrong, found = check(expansion.plain(root))
    unset = {problem.path for problem in expansion.problems}
    problems = expansion.problems + [problem for problem in found if problem.path not in unset]
    problems += broken_rules(file, wrong | {setting(key) for key in unset})
    built = build(file, root, path, expansion.written, notes)
    problems += built.problems
    if problems or unknown:
        ordered = sorted(problems, key=lambda problem: locate(root, problem.path).line or 0)
        lines = [*unknown, *dict.fromkeys(report(root, problem) for problem in ordered)]
        if len(lines) > MOST_PROBLEMS:
            lines[MOST_PROBLEMS:] = [f"... and {len(lines) - MOST_PROBLEMS} more"]
        raise ConfigError(str(path) if path else "the configuration", lines)
    return built.config


def _current_folder() -> Path:
    try:
        return Path.cwd()
    except OSError as error:
        problem = f"cannot be used: {error.strerror}; change to another one"
        raise ConfigError("the current folder", [problem]) from error


def _tree(value: Any, origin: Origin) -> Node:
    """Plain data as a tree."""
    if isinstance(value, Mapping):
        return Node({str(key): _tree(below, origin) for key, below in value.items()}, origin)
    if isinstance(value, list | tuple):
        return Node(tuple(_tree(item, origin) for item in value), origin)
    scalar: Scalar = str(value) if isinstance(value, Path) else value
    return Node(scalar, origin)
