"""The files that describe what is simulated: models, costs, devices.

Laws of this file:
- Files are hostile: they are read by the configuration's own reader, which bounds them, and every
  problem is told at once with its line and key.
- A mapping of costs is flat (`up`, `down`), by level (`start`, `L1`, `L2`), or by model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from modelyard.config import units
from modelyard.config.read import read_file
from modelyard.config.tree import Node, Problem, locate, report
from modelyard.config.values import KeyPath
from modelyard.config.wording import describe_kind, near_names, shorten
from modelyard.core.errors import ConfigError
from modelyard.core.specs import Replicas
from modelyard.simulation.costs import KINDS, costs_of
from modelyard.simulation.values import MIB_PER_GIB, Costs, Model, Switch, default_memory_gib, mib

MOST_MODELS = 5000
MOST_DEVICES = 64
MOST_GIB = 65_536
MOST_SECONDS = 86_400.0
MOST_REPLICAS = 64
_MODEL_KEYS = (
    "weights_gib",
    "memory_gib",
    "tensor_parallel",
    "priority",
    "pinned",
    "replicas",
    "costs",
)
_SWITCH_KEYS = ("up", "down")
_LEVEL_KEYS = ("start", "L1", "L2")
_DEFAULT = "default"
_GROUP = re.compile(r"(?:([0-9]{1,3})\s*[x*×]\s*)?(.+)")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class CostTable:
    """What switches cost: by kind for models of any size, or in seconds for some models."""

    kind: str = ""
    wake: str = "anywhere"
    by_model: Mapping[str, Costs] = field(default_factory=dict)
    otherwise: Costs | None = None

    def of(self, name: str, weights_gib: float) -> Costs | None:
        """The costs of a model; None if the table has none for it."""
        if self.kind:
            return costs_of(self.kind, weights_gib, self.wake)
        return self.by_model.get(name, self.otherwise)


@dataclass(slots=True)
class _Tree:
    """A file that is being read, and what is wrong with it."""

    root: Node
    where: str
    problems: list[Problem] = field(default_factory=list)

    def wrong(self, path: KeyPath, text: str) -> None:
        self.problems.append(Problem(path, text))

    def get(self, path: KeyPath, read: Callable[[object], _T], default: _T) -> _T:
        """The value at `path`, or the default if there is none or it is wrong."""
        node = locate(self.root, path[:-1])
        below = node.value.get(str(path[-1])) if isinstance(node.value, dict) else None
        if below is None:
            return default
        try:
            return read(below.value)
        except ValueError as error:
            self.wrong(path, str(error))
            return default

    def keys(self, path: KeyPath, known: Sequence[str] = ()) -> list[str]:
        """The keys of the mapping at `path`; those that are not known are problems."""
        value = locate(self.root, path).value
        if not isinstance(value, dict):
            self.wrong(path, f"must hold keys and values (key: value), not {describe_kind(value)}")
            return []
        if known:
            for key in value.keys() - set(known):
                near = near_names(key, known)
                advice = near or f"; the keys here are {', '.join(known)}"
                self.wrong((*path, key), f"there is no such key{advice}")
        return list(value)

    def finish(self) -> None:
        """Raise ConfigError if anything was wrong."""
        if self.problems:
            ordered = sorted(self.problems, key=lambda p: locate(self.root, p.path).line or 0)
            raise ConfigError(self.where, [report(self.root, p) for p in ordered[:100]])


def read_models(path: Path, devices_mib: Sequence[int], table: CostTable) -> dict[str, Model]:
    """The models of a YAML file, `name: {weights_gib: …, …}`, by name.

    Raises ConfigError with every problem.
    """
    tree = _Tree(read_file(path), str(path))
    names = tree.keys(())
    if not names:
        tree.wrong((), "names no models; write them like `small: {weights_gib: 8}`")
    if len(names) > MOST_MODELS:
        tree.wrong((), f"names {len(names)} models; there can be {MOST_MODELS}")
    models = [_model(tree, name, devices_mib, table) for name in names[:MOST_MODELS]]
    tree.finish()
    return {model.name: model for model in models if model}


def _model(tree: _Tree, name: str, devices_mib: Sequence[int], table: CostTable) -> Model | None:
    if not name.strip() or not name.isprintable() or len(name) > 200:
        tree.wrong((name,), "is no name; write 1 to 200 visible characters")
        return None
    before = len(tree.problems)
    keys = tree.keys((name,), _MODEL_KEYS)
    if len(tree.problems) == before and "weights_gib" not in keys:
        tree.wrong((name, "weights_gib"), "is missing; write the size of the weights in GiB")
    weights = tree.get((name, "weights_gib"), _positive(MOST_GIB), 0.0)
    parallel = tree.get((name, "tensor_parallel"), _whole(1, len(devices_mib)), 1)
    roomiest = sorted(devices_mib)[-parallel] / MIB_PER_GIB
    if "memory_gib" not in keys and weights > roomiest * parallel:
        on = f"{parallel} devices" if parallel > 1 else "a device"
        text = f"does not fit on {on} of {roomiest:g} GiB; see tensor_parallel and memory_gib"
        tree.wrong((name, "weights_gib"), text)
    memory = default_memory_gib(weights, parallel, roomiest)
    memory = tree.get((name, "memory_gib"), _positive(MOST_GIB), memory)
    costs = _costs_of_model(tree, name, weights) if "costs" in keys else table.of(name, weights)
    if costs is None and "costs" not in keys:
        tree.wrong((name,), f"has no costs: the table names neither it nor {_DEFAULT}")
    priority = tree.get((name, "priority"), _whole(-1000, 1000), 0)
    pinned = tree.get((name, "pinned"), _boolean, False)
    replicas = _replicas(tree, (name, "replicas")) if "replicas" in keys else Replicas()
    if len(tree.problems) > before or costs is None:
        return None
    share = mib(memory / parallel)
    return Model(name, weights, share, costs, parallel, priority, pinned, replicas)


def _replicas(tree: _Tree, path: KeyPath) -> Replicas:
    tree.keys(path, ("min", "max"))
    least = tree.get((*path, "min"), _whole(0, MOST_REPLICAS), 0)
    most = tree.get((*path, "max"), _whole(1, MOST_REPLICAS), max(1, least))
    if least > most:
        tree.wrong((*path, "min"), f"{least} is more than max, which is {most}")
    return Replicas(least, most)


def _costs_of_model(tree: _Tree, name: str, weights_gib: float) -> Costs | None:
    path: KeyPath = (name, "costs")
    value = locate(tree.root, path).value
    if isinstance(value, dict):
        return _costs(tree, path)
    if isinstance(value, str) and value in KINDS:
        return costs_of(value, weights_gib)
    shown = describe_kind(value)
    tree.wrong(path, f"{shown} is no kind of costs; write {', '.join(KINDS)}, or seconds")
    return None


def read_costs(text: str, wake: str) -> CostTable:
    """A table of costs by its kind, or from the YAML file that `text` names.

    Raises ConfigError for a kind that does not exist, or with every problem of the file.
    """
    if text in KINDS:
        return CostTable(text, wake)
    path = Path(text)
    if not path.suffix and not path.exists():
        known = f"there are {', '.join(KINDS)}, or the path of a YAML file of seconds"
        raise ConfigError("--costs", [f"{shorten(text)} is no kind of costs; {known}"])
    tree = _Tree(read_file(path), str(path))
    keys = tree.keys(())
    if not keys or set(keys) <= {*_SWITCH_KEYS, *_LEVEL_KEYS}:
        table = CostTable(otherwise=_costs(tree, ()))
    else:
        found = {key: _costs(tree, (key,)) for key in keys}
        known_costs = {name: costs for name, costs in found.items() if costs}
        otherwise = known_costs.pop(_DEFAULT, None)
        table = CostTable(by_model=known_costs, otherwise=otherwise)
    tree.finish()
    return table


def _costs(tree: _Tree, path: KeyPath) -> Costs | None:
    keys = tree.keys(path, [*_SWITCH_KEYS, *_LEVEL_KEYS])
    if set(keys) & set(_SWITCH_KEYS):
        both = set(keys) & set(_LEVEL_KEYS)
        for key in both:
            tree.wrong((*path, key), "stands beside up and down; write either levels or seconds")
        start = None if both else _switch(tree, path)
        return Costs(start) if start else None
    if not keys:
        tree.wrong(path, "is empty; write {up: seconds, down: seconds}")
        return None
    found = {key: _switch(tree, (*path, key)) for key in _LEVEL_KEYS if key in keys}
    known = {key: switch for key, switch in found.items() if switch}
    if len(known) < len(found) or not known:
        return None
    start = known.get("start", list(known.values())[-1])  # the deepest level's, as with L1 and L2
    return Costs(start, {int(key[1]): known[key] for key in known if key != "start"})


def _switch(tree: _Tree, path: KeyPath) -> Switch | None:
    before = len(tree.problems)
    keys = tree.keys(path, _SWITCH_KEYS)
    if len(tree.problems) == before:
        for key in set(_SWITCH_KEYS) - set(keys):
            tree.wrong((*path, key), "is missing; write seconds, like 5 or 1m30s")
    up_s = tree.get((*path, "up"), _seconds, 0.0)
    down_s = tree.get((*path, "down"), _seconds, 0.0)
    return Switch(up_s, down_s) if len(tree.problems) == before else None


def read_devices(text: str) -> list[int]:
    """`2x76GiB,24GiB` as the MiB of each device. Raises ConfigError with every problem."""
    sizes: list[int] = []
    problems = []
    for part in text.split(","):
        match = _GROUP.fullmatch(part.strip())
        try:
            if match is None:
                raise ValueError("is empty; write devices like 2x76GiB,24GiB")
            size = units.parse_mib(match[2])
            if not size:
                raise ValueError("a device needs memory")
            sizes += [size] * int(match[1] or 1)
        except ValueError as error:
            problems.append(f"{shorten(part)}: {error}")
        if len(sizes) > MOST_DEVICES:
            problems.append(f"more than {MOST_DEVICES} devices")
            break
    if not sizes and not problems:
        problems.append("no device; write them like 2x76GiB")
    if problems:
        raise ConfigError("--devices", problems)
    return sizes


def _seconds(value: object) -> float:
    seconds = units.parse_duration(value)
    if seconds > MOST_SECONDS:
        raise ValueError(f"is longer than {units.format_duration(MOST_SECONDS)}")
    return seconds


def _positive(most: float) -> Callable[[object], float]:
    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"must be a number, not {describe_kind(value)}")
        if not 0 < value <= most:
            raise ValueError(f"{shorten(value)} is not more than 0 and at most {most:g}")
        return float(value)

    return read


def _whole(least: int, most: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"must be a whole number, not {describe_kind(value)}")
        if not least <= value <= most:
            raise ValueError(f"{shorten(value)} is not between {least} and {most}")
        return value

    return read


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {describe_kind(value)}")
    return value
