"""How a model is started: commands of the source become `command`, `env`, `cwd` and `profiles`.

Laws of this file:
- A command is used only with a port: `{port}`, or `options: {port: N}` where it has its own.
- What profiles share is written once, for the model; where their variables differ, the program
  `env` sets them in each profile's command.
- A command that plainly is vLLM becomes a model of that engine, with its options as options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from modelyard.config.tree import Plain
from modelyard.importers import programs
from modelyard.importers.draft import ModelDraft, argument, literal, variables
from modelyard.importers.surroundings import Surroundings
from modelyard.importers.vllm_model import OWN_VARIABLES, vllm_model

VISIBLE = frozenset({"CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"})
"""Variables that Modelyard sets itself, by the devices of a profile."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One way to start a model: `argv` in our words, the rest as the source has it."""

    argv: tuple[str, ...]
    has_port: bool
    env: dict[str, str] = field(default_factory=dict)
    cwd: str | None = None


@dataclass(frozen=True, slots=True)
class Way:
    """A profile and its launch. `memory` is MiB by device."""

    name: str
    devices: Sequence[str]
    memory: dict[str, int]
    launch: Launch
    origin: str = ""


def prepare(
    argv: Sequence[str],
    *,
    port: int | None,
    names: Sequence[str],
    here: Surroundings,
    conda: str | None = None,
) -> tuple[str, ...]:
    """A command of the source in our words: escaped, with our port, host and names."""
    raw = [programs.portable(argv[0], windows=here.windows), *argv[1:]]
    words = [argument(word) for word in raw]
    words = programs.with_names(words, [argument(name) for name in names])
    words, _ = programs.with_blanks(words, port)
    if conda is not None:
        place = "-p" if "/" in conda or "\\" in conda else "-n"
        words = ["conda", "run", "--no-capture-output", place, argument(conda), *words]
    return tuple(words)


def uses_port(argv: Sequence[str]) -> bool:
    return any("{port}" in word and "{{port}}" not in word for word in argv)


def foreign_paths(argv: Sequence[str], here: Surroundings) -> list[str]:
    """Arguments that are paths of another system."""
    if here.windows:
        return []
    return [word for word in argv if programs.is_windows_path(word.partition("=")[2] or word)]


def usable_folder(written: str | None, base: Path, here: Surroundings) -> str | None:
    """A folder to start in: absolute, and none of another system."""
    if not written or (programs.is_windows_path(written) and not here.windows):
        return None
    try:
        return str(base / Path(written.replace("\\", "/")).expanduser())
    except RuntimeError:  # a home folder that is not known
        return None


def put_ways(model: ModelDraft, ways: Sequence[Way], port: int | None) -> list[str]:
    """Write the ways into `model`; returns what could not be said."""
    lost: list[str] = []
    env, ways = _shared_env(ways)
    if put_vllm(model, ways, env):
        return lost
    model.put("engine", "command")
    folders = [way.launch.cwd for way in ways]
    folder = next((cwd for cwd in folders if cwd), None)
    if any(cwd != folder for cwd in folders):
        lost.append("its ways to start have different folders, and a model has one `cwd`")
    commands = {way.launch.argv for way in ways}
    if len(commands) == 1:
        model.put("command", list(ways[0].launch.argv), ways[0].origin)
    if env:
        model.put("env", variables(env))
    if folder:
        model.put("cwd", literal(folder))
    if not all(way.launch.has_port for way in ways):
        if port is None:
            model.aside = "nothing says on which port its program listens; add its port option"
        else:
            model.put("options", {"port": port}, "the program chooses its port itself")
    profiles: list[Plain] = [_profile(way, alone=len(commands) == 1) for way in ways]
    model.put("profiles", profiles)
    return lost


def put_vllm(model: ModelDraft, ways: Sequence[Way], env: Mapping[str, str]) -> bool:
    """Write the ways as a model of the engine `vllm`; False if they are not plainly that."""
    told = [vllm_model(way.launch.argv, way.launch.cwd) for way in ways]
    found = [each for each in told if each is not None]
    same = {(each.source, each.command) for each in found}
    if len(found) < len(told) or len(same) != 1:
        return False
    first = found[0]
    model.put("engine", "vllm", "its command")
    model.put("source", literal(first.source))
    if first.command:
        model.put("command", list(first.command))
    alike = all(each.options == first.options for each in found)
    if alike and first.options:
        model.put("options", dict(first.options), ways[0].origin)
    left = {name: value for name, value in env.items() if name not in OWN_VARIABLES}
    if left:
        model.put("env", variables(left))
    profiles: list[Plain] = []
    for way, each in zip(ways, found, strict=True):
        profile = _profile(way, alone=True)
        if not alike:
            profile["options"] = dict(each.options)
        profiles.append(profile)
    model.put("profiles", profiles)
    return True


def _profile(way: Way, *, alone: bool) -> dict[str, Plain]:
    profile: dict[str, Plain] = {"name": way.name, "devices": list(way.devices)}
    if way.memory:
        profile["memory"] = {name: f"{mib}MiB" for name, mib in way.memory.items()}
    if not alone:
        profile["command"] = list(way.launch.argv)
    return profile


def _shared_env(ways: Sequence[Way]) -> tuple[dict[str, str], list[Way]]:
    """Variables that all ways agree about, and the ways with the rest in their commands."""
    shared = dict(ways[0].launch.env)
    for way in ways:
        own = way.launch.env
        shared = {name: value for name, value in shared.items() if own.get(name) == value}
    changed = []
    for way in ways:
        rest = {name: value for name, value in way.launch.env.items() if name not in shared}
        if rest:
            settings = [f"{name}={argument(value)}" for name, value in rest.items()]
            argv = ("env", *settings, *way.launch.argv)
            way = replace(way, launch=replace(way.launch, argv=argv))
        changed.append(way)
    return shared, changed
