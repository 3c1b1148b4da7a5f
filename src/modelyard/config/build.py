"""From a checked `File` to the frozen `Config`: paths resolved, defaults laid under models.

Laws of this file:
- Relative paths start from the folder of whoever wrote them: the file's folder, or the current
  one for variables and flags.
- Nothing is looked up on the disk but the home folder that `~` stands for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from modelyard.config.assigned import assigned
from modelyard.config.assignment import Assignment
from modelyard.config.keys import keys_from
from modelyard.config.kinds import ONE_DEVICE
from modelyard.config.model import LimitsSection, ModelSection, ProfileSection
from modelyard.config.remote import remote_of, revision_of
from modelyard.config.remotes import remotes_of
from modelyard.config.rules import devices_of
from modelyard.config.schema import File
from modelyard.config.sleep import levels_of
from modelyard.config.tree import Node, Problem, locate
from modelyard.config.values import (
    PRESETS,
    SLEEP_PRESETS,
    Captures,
    Config,
    Devices,
    Downloads,
    Engines,
    KeyPath,
    Server,
)
from modelyard.config.wording import shorten
from modelyard.core.policy import Policy
from modelyard.core.shaping import Shape
from modelyard.core.specs import AUTO_PROFILE, Limits, ModelSpec, Need, Profile, Task

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
"""Ids of repositories, as Hugging Face's hub and ModelScope allow them."""


@dataclass(frozen=True, slots=True)
class Built:
    """A `Config`, and the paths that could not be resolved for it."""

    config: Config
    problems: list[Problem]


def build(
    file: File,
    root: Node,
    path: Path | None,
    written: Mapping[KeyPath, str],
    notes: Sequence[str] = (),
) -> Built:
    """The `Config` that `file` describes; `root` tells who wrote which path."""
    paths = _Paths(root)
    server = dict(file.server)
    server["allowed_hosts"] = tuple(file.server.allowed_hosts)
    server["cors_origins"] = tuple(file.server.cors_origins)
    server["no_heartbeats_for"] = tuple(file.server.no_heartbeats_for)
    server["tls"] = file.server.tls.value(paths.resolve)
    server["state_dir"] = paths.resolve(file.server.state_dir, ("server", "state_dir"))
    llama_server = file.engines.llama_server
    if llama_server not in (None, "builtin"):
        key: KeyPath = ("engines", "llama_server")
        llama_server = str(paths.resolve(Path(str(llama_server)), key))
    vllm = file.engines.vllm
    if vllm is not None and ("/" in vllm or vllm.startswith("~")):
        vllm = str(paths.resolve(Path(vllm), ("engines", "vllm")))
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
        engines=Engines(llama_server=llama_server, vllm=vllm),
        downloads=_downloads(file, paths),
        keys=keys_from(file.keys),
        captures=Captures(**dict(file.captures)),
        models=tuple(
            _model(model_id, model, file.defaults, paths) for model_id, model in file.models.items()
        ),
        remotes=remotes_of(file.remotes, paths.resolve),
        virtuals=tuple(virtual.value(name) for name, virtual in file.virtual.items()),
        limits=Limits(**dict(file.defaults)),
        path=path.absolute() if path else None,
        assigned=MappingProxyType(
            {
                model_id: Assignment(tuple(model.assigned.devices), model.assigned.options)
                for model_id, model in file.models.items()
                if model.assigned.devices or model.assigned.options
            }
        ),
        written=MappingProxyType(dict(written)),
        notes=tuple(notes),
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


def _downloads(file: File, paths: _Paths) -> Downloads:
    section = dict(file.downloads)
    if section["dir"] is not None:
        section["dir"] = paths.resolve(section["dir"], ("downloads", "dir"))
    return Downloads(**section)


def _model(model_id: str, model: ModelSection, defaults: LimitsSection, paths: _Paths) -> ModelSpec:
    key: KeyPath = ("models", model_id)
    source = paths.resolve(model.source, (*key, "source")) if model.source else None
    cwd = paths.resolve(model.cwd, (*key, "cwd")) if model.cwd else None
    if cwd is None and model.engine == "command":
        cwd = paths.folder(key)  # where a relative program and relative arguments are meant to be
    remote = remote_of(
        model.upstreams, model.circuit, lambda path, at: paths.resolve(path, (*key, *at))
    )
    spec = ModelSpec(
        id=model_id,
        engine=model.preset or model.engine,
        tasks=frozenset(model.tasks) or _usual_tasks(model.preset),
        aliases=tuple(model.aliases),
        source=str(source) if source else None,
        repository=_repository(model),
        options=MappingProxyType(model.options),
        profiles=_profiles(model),
        command=tuple(model.command),
        env=MappingProxyType(model.env),
        cwd=str(cwd) if cwd else None,
        health_path=model.health_path or model.health.path,
        sleep=MappingProxyType({} if isinstance(model.sleep, str) else levels_of(model.sleep)),
        sleep_preset=_sleep_preset(model),
        auto=model.auto,
        preload=model.preload,
        pinned=model.pinned,
        priority=model.priority,
        loading_state=model.loading_state,
        replicas=model.replicas.value(),
        health=model.health.value(),
        remote=remote,
        price=model.price.value() if model.price else None,
        shape=model.shape.value(),
        variants=MappingProxyType(
            {name: shape.value() or Shape() for name, shape in model.variants.items()}
        ),
        limits=_limits(model, defaults),
        revision=revision_of(remote),
    )
    return assigned(spec, model.assigned.devices, model.assigned.options)


def _repository(model: ModelSection) -> str | None:
    """What `source` means if there is no such folder: a repository that an engine can fetch."""
    written = None if model.source is None else model.source.as_posix()
    if model.engine == "llamacpp" or written is None or not _REPOSITORY.fullmatch(written):
        return None
    return written


def _usual_tasks(preset: str | None) -> frozenset[Task]:
    """What a preset serves unless the model says otherwise."""
    return frozenset(map(Task, PRESETS.get(preset or "", ())))


def _sleep_preset(model: ModelSection) -> str:
    """The engine whose sleep is meant: the one written, else the preset, if it needs no more.

    SGLang would keep a copy of its weights in host memory, so it has to be asked for.
    """
    if isinstance(model.sleep, str):
        return model.sleep
    can = model.preset in SLEEP_PRESETS and model.preset != "sglang" and not model.sleep
    return model.preset or "" if can else ""


def _limits(model: ModelSection, defaults: LimitsSection) -> Limits:
    own = {name: value for name, value in model if name in model.model_fields_set}
    shared = dict(defaults)
    return Limits(**{name: own.get(name, shared[name]) for name in shared})


def _profiles(model: ModelSection) -> tuple[Profile, ...]:
    if model.engine == "remote":
        return (Profile("remote", ()),)  # it takes nothing of this machine
    if model.auto and not model.profiles and not model.memory_mib:
        return (Profile(AUTO_PROFILE),)
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
