"""From a checked `File` to the frozen `Config`: paths resolved, defaults laid under models.

Laws of this file:
- Relative paths start from the folder of whoever wrote them: the file's folder, or the current
  one for variables and flags.
- Nothing is looked up on the disk but the home folder that `~` stands for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from modelyard.config.kinds import ONE_DEVICE
from modelyard.config.rules import devices_of
from modelyard.config.schema import File, LimitsSection, ModelSection, ProfileSection
from modelyard.config.sleep import levels_of
from modelyard.config.tree import Node, Problem, locate
from modelyard.config.values import Config, Devices, Engines, KeyPath, Server
from modelyard.config.wording import shorten
from modelyard.core.policy import Policy
from modelyard.core.specs import Limits, ModelSpec, Need, Profile


@dataclass(frozen=True, slots=True)
class Built:
    """A `Config`, and the paths that could not be resolved for it."""

    config: Config
    problems: list[Problem]


def build(file: File, root: Node, path: Path | None, written: Mapping[KeyPath, str]) -> Built:
    """The `Config` that `file` describes; `root` tells who wrote which path."""
    paths = _Paths(root)
    server = dict(file.server)
    server["allowed_hosts"] = tuple(file.server.allowed_hosts)
    server["state_dir"] = paths.resolve(file.server.state_dir, ("server", "state_dir"))
    llama_server = file.engines.llama_server
    if llama_server not in (None, "builtin"):
        key: KeyPath = ("engines", "llama_server")
        llama_server = str(paths.resolve(Path(str(llama_server)), key))
    config = Config(
        server=Server(**server),
        models_dirs=tuple(
            paths.resolve(folder, ("models_dirs", at)) for at, folder in enumerate(file.models_dirs)
        ),
        devices=Devices(
            reserve_mib=file.devices.reserve_mib,
            budget_mib=MappingProxyType(file.devices.budget_mib),
            sample_every_s=file.devices.sample_every_s,
        ),
        scheduling=Policy(**dict(file.scheduling)),
        engines=Engines(llama_server=llama_server),
        models=tuple(
            _model(model_id, model, file.defaults, paths) for model_id, model in file.models.items()
        ),
        limits=Limits(**dict(file.defaults)),
        path=path.absolute() if path else None,
        written=MappingProxyType(dict(written)),
    )
    return Built(config, paths.problems)


@dataclass(slots=True)
class _Paths:
    root: Node
    problems: list[Problem] = field(default_factory=list)

    def folder(self, key: KeyPath) -> Path:
        return locate(self.root, key).origin.folder

    def resolve(self, path: Path, key: KeyPath) -> Path:
        try:
            return self.folder(key) / path.expanduser()
        except RuntimeError:
            text = f"{shorten(str(path))} names a home folder that is not known; write it out"
            self.problems.append(Problem(key, text))
            return path


def _model(model_id: str, model: ModelSection, defaults: LimitsSection, paths: _Paths) -> ModelSpec:
    key: KeyPath = ("models", model_id)
    source = paths.resolve(model.source, (*key, "source")) if model.source else None
    cwd = paths.resolve(model.cwd, (*key, "cwd")) if model.cwd else None
    if cwd is None and model.engine == "command":
        cwd = paths.folder(key)  # where a relative program and relative arguments are meant to be
    preset = model.sleep if isinstance(model.sleep, str) else ""
    return ModelSpec(
        id=model_id,
        engine=model.engine,
        tasks=frozenset(model.tasks),
        aliases=tuple(model.aliases),
        source=str(source) if source else None,
        options=MappingProxyType(model.options),
        profiles=_profiles(model),
        command=tuple(model.command),
        env=MappingProxyType(model.env),
        cwd=str(cwd) if cwd else None,
        health_path=model.health_path,
        sleep=MappingProxyType({} if isinstance(model.sleep, str) else levels_of(model.sleep)),
        sleep_preset=preset,
        preload=model.preload,
        pinned=model.pinned,
        priority=model.priority,
        limits=_limits(model, defaults),
    )


def _limits(model: ModelSection, defaults: LimitsSection) -> Limits:
    own = {name: value for name, value in model if name in model.model_fields_set}
    shared = dict(defaults)
    return Limits(**{name: own.get(name, shared[name]) for name in shared})


def _profiles(model: ModelSection) -> tuple[Profile, ...]:
    if not model.profiles:
        devices, memory = _memory([], model.memory_mib)
        return (Profile("default", devices, memory),)
    return tuple(_profile(profile) for profile in model.profiles)


def _profile(profile: ProfileSection) -> Profile:
    devices, memory = _memory(profile.devices, profile.memory_mib)
    return Profile(
        name=profile.name,
        devices=devices,
        memory_mib=memory,
        options=MappingProxyType(profile.options),
        command=tuple(profile.command),
    )


def _memory(named: list[str], memory: Mapping[str, int]) -> tuple[tuple[str, ...], Need]:
    devices = devices_of(named, memory)
    by_device = {devices[0] if name == ONE_DEVICE else name: memory[name] for name in memory}
    return devices, MappingProxyType(by_device)
