"""What has to hold between keys. Each rule yields problems and says nothing about keys that are
wrong by themselves.

Laws of this file:
- A rule looks at one `File` and nothing else: no files, programs or devices.
- Keys in `wrong` have been reported and hold their defaults; rules that need them are skipped.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Sequence, Set

from modelyard.config.keys import administers, key_problems
from modelyard.config.kinds import ONE_DEVICE
from modelyard.config.model import ModelSection, ProfileSection
from modelyard.config.remote import remote_problems
from modelyard.config.remotes import remotes_problems
from modelyard.config.schema import File
from modelyard.config.shaping import shape_problems, virtual_problems
from modelyard.config.tree import Problem
from modelyard.config.values import KeyPath
from modelyard.config.wording import shorten
from modelyard.core.specs import HOST_DEVICE

MAX_CALLS = 16
"""Calls of one level in one direction; engines need four at most."""
MAX_DEVICES = 32
"""Devices of one profile: more than any machine that Modelyard is for has."""


def broken_rules(file: File, wrong: Set[KeyPath]) -> Iterator[Problem]:
    """Every rule that `file` breaks."""
    yield from _exposed_host(file, wrong)
    yield from _any_page(file, wrong)
    yield from key_problems(file.keys)
    yield from _tls(file, wrong)
    yield from _backoff(file, wrong)
    yield from _names(file)
    for below, text in remotes_problems(file.remotes):
        yield Problem(("remotes", *below), text)
    for below, text in virtual_problems(
        file.virtual, _all_names(file), finds_more=bool(file.models_dirs or file.remotes)
    ):
        yield Problem(("virtual", *below), text)
    for model_id, model in file.models.items():
        path: KeyPath = ("models", model_id)
        broken = frozenset(key[2] for key in wrong if key[:2] == path and len(key) == 3)
        for rule in _MODEL_RULES:
            for below, text in rule(model, broken):
                yield Problem(path + below, text)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _exposed_host(file: File, wrong: Set[KeyPath]) -> Iterator[Problem]:
    server = file.server
    if ("server", "insecure") in wrong or server.insecure or is_loopback(server.host):
        return
    if administers(file.keys) or _keys_are_wrong(wrong):
        return
    yield Problem(
        ("server", "host"),
        f"other machines can reach {shorten(server.host)}, and no key with the scope admin "
        "protects the server: anybody there could use every model; make one with `modelyard keys "
        "add NAME --admin`, keep 127.0.0.1, or set server.insecure to true",
    )


def _any_page(file: File, wrong: Set[KeyPath]) -> Iterator[Problem]:
    if "*" not in file.server.cors_origins or administers(file.keys) or _keys_are_wrong(wrong):
        return
    yield Problem(
        ("server", "cors_origins"),
        "'*' would let every web page that anybody here visits start and stop models; name the "
        "pages, or make a key with `modelyard keys add NAME --admin`",
    )


def _keys_are_wrong(wrong: Set[KeyPath]) -> bool:
    return any(path[0] == "keys" for path in wrong)


def _tls(file: File, wrong: Set[KeyPath]) -> Iterator[Problem]:
    tls = file.server.tls
    if ("server", "tls") in wrong or tls.certificate is not None:
        return
    for name in ("key", "client_ca"):
        if getattr(tls, name) is not None:
            path = ("server", "tls", name)
            yield Problem(path, "means nothing without a certificate; add server.tls.certificate")


def _backoff(file: File, wrong: Set[KeyPath]) -> Iterator[Problem]:
    scheduling = file.scheduling
    if {("scheduling", "backoff"), ("scheduling", "backoff_max")} & wrong:
        return
    if scheduling.backoff_s > scheduling.backoff_max_s:
        yield Problem(("scheduling", "backoff"), "is longer than backoff_max; lower one of them")


def _names(file: File) -> Iterator[Problem]:
    """Ids and aliases share one space, so a name means one model."""
    owners: dict[str, str] = {}
    for model_id, model in file.models.items():
        for at, alias in enumerate(model.aliases):
            path = ("models", model_id, "aliases", at)
            name = shorten(alias)
            owner = owners.setdefault(alias, model_id) if alias not in file.models else None
            if alias == model_id:
                yield Problem(path, f"{name} is the model's own id; remove it")
            elif owner is None:
                yield Problem(path, f"{name} is the id of another model; choose another name")
            elif owner != model_id:
                text = f"{name} is already an alias of model {shorten(owner)}; remove one of them"
                yield Problem(path, text)
        for variant in model.variants:
            taken = variant in file.models or owners.setdefault(variant, model_id) != model_id
            if taken or variant in model.aliases:
                text = (
                    f"{shorten(variant)} is the name of another model or an alias; choose another"
                )
                yield Problem(("models", model_id, "variants", variant), text)
        for at in _repeated(model.aliases):
            text = f"{shorten(model.aliases[at])} is there twice; remove one of them"
            yield Problem(("models", model_id, "aliases", at), text)


def _all_names(file: File) -> frozenset[str]:
    """Every name that a described model has."""
    return frozenset(
        name
        for model_id, model in file.models.items()
        for name in (model_id, *model.aliases, *model.variants)
    )


def _repeated(names: Sequence[str]) -> Iterator[int]:
    """Positions of names that are there before."""
    seen: set[str] = set()
    for at, name in enumerate(names):
        if name in seen:
            yield at
        seen.add(name)


_OF_ENGINES_HERE = (
    "source", "profiles", "memory_mib", "options", "env", "cwd", "health_path", "health",
    "assigned", "replicas",
)  # fmt: skip
"""What only an engine on this machine can have."""
_WRITTEN = {"memory_mib": "memory"}

_Rule = Callable[[ModelSection, Set[str | int]], Iterator[Problem]]


def _has_source(model: ModelSection, broken: Set[str | int]) -> Iterator[Problem]:
    if model.engine == "llamacpp" and not {"engine", "source"} & broken and model.source is None:
        text = "is missing; the engine llamacpp needs the path of a .gguf file"
        advice = "" if not model.command else ", or write engine: command"
        yield Problem(("source",), text + advice)
    reads_folders = model.engine in ("vllm", "transformers")
    if reads_folders and not {"engine", "source"} & broken and model.source is None:
        text = f"is missing; the engine {model.engine} needs the folder of a checkpoint"
        yield Problem(("source",), text)


def _has_command(model: ModelSection, broken: Set[str | int]) -> Iterator[Problem]:
    if {"engine", "command", "preset", "profiles"} & broken:
        return
    if model.engine != "command" and model.preset:
        yield Problem(("preset",), "belongs to engine: command; add that, or remove this")
    if model.engine == "vllm":
        return  # its command says which vLLM is meant
    if model.engine != "command":
        if model.command:
            yield Problem(("command",), "belongs to engine: command; set that, or remove this")
        for at, profile in enumerate(model.profiles):
            if profile.command:
                text = "belongs to engine: command; set that, or remove this"
                yield Problem(("profiles", at, "command"), text)
        return
    if model.preset or model.command or (model.profiles and all(p.command for p in model.profiles)):
        return
    advice = 'write program and arguments, like ["./serve", "--port", "{port}"]'
    yield Problem(("command",), f"is missing; the engine command needs it: {advice}")


def _program_is_named(model: ModelSection, _: Set[str | int]) -> Iterator[Problem]:
    commands: list[tuple[KeyPath, list[str]]] = [(("command", 0), model.command)]
    for at, profile in enumerate(model.profiles):
        commands.append((("profiles", at, "command", 0), profile.command))
    for path, command in commands:
        if command and not command[0].strip():
            yield Problem(path, "must name the program")


def _has_tasks(model: ModelSection, broken: Set[str | int]) -> Iterator[Problem]:
    if model.preset or {"engine", "preset", "tasks"} & broken:
        return
    if model.engine in ("command", "remote") and not model.tasks:
        whom = "program" if model.engine == "command" else "upstream"
        text = f"is missing; say what the {whom} can be asked to do, like [chat]"
        yield Problem(("tasks",), text)


def _remote(model: ModelSection, broken: Set[str | int]) -> Iterator[Problem]:
    if {"engine", "upstreams", "circuit"} & broken:
        return
    for below, text in remote_problems(model.engine, model.upstreams, model.circuit):
        yield Problem(below, text)
    if model.engine != "remote":
        return
    for key in _OF_ENGINES_HERE:
        usual = ModelSection.model_fields[key].get_default(call_default_factory=True)
        if getattr(model, key) != usual and _WRITTEN.get(key, key) not in broken:
            text = "means nothing for the engine remote, which takes nothing of this machine"
            yield Problem((_WRITTEN.get(key, key),), f"{text}; remove it")


def _replicas_in_order(model: ModelSection, broken: Set[str | int]) -> Iterator[Problem]:
    if "replicas" not in broken and model.replicas.min > model.replicas.max:
        yield Problem(("replicas", "min"), "is more than replicas.max; lower it")


def _shapes(model: ModelSection, broken: Set[str | int]) -> Iterator[Problem]:
    if "shape" not in broken:
        for below, text in shape_problems(model.shape):
            yield Problem(("shape", *below), text)
    for name, shape in model.variants.items():
        for below, text in shape_problems(shape):
            yield Problem(("variants", name, *below), text)


def _one_health_path(model: ModelSection, broken: Set[str | int]) -> Iterator[Problem]:
    if model.health_path and model.health.path and not {"health_path", "health"} & broken:
        yield Problem(("health", "path"), "is the same as health_path; remove one of them")


def _auto(model: ModelSection, broken: Set[str | int]) -> Iterator[Problem]:
    if model.auto and model.engine in ("command", "remote") and not {"auto", "engine"} & broken:
        text = f"means nothing for the engine {model.engine}, whose options nobody here knows"
        yield Problem(("auto",), f"{text}; remove it")


def _assigned_devices(model: ModelSection, _: Set[str | int]) -> Iterator[Problem]:
    devices = model.assigned.devices
    if len(devices) > MAX_DEVICES:
        text = f"names {len(devices)} devices; a profile can have at most {MAX_DEVICES}"
        yield Problem(("assigned", "devices"), text)


def _memory_or_profiles(model: ModelSection, broken: Set[str | int]) -> Iterator[Problem]:
    if model.memory_mib and model.profiles and not {"memory", "profiles"} & broken:
        text = "stands for a single profile, and there are profiles; move it into them"
        yield Problem(("memory",), text)


def _profiles(model: ModelSection, _: Set[str | int]) -> Iterator[Problem]:
    seen: set[str] = set()
    for at, profile in enumerate(model.profiles):
        path: KeyPath = ("profiles", at)
        if profile.name in seen:
            text = f"{shorten(profile.name)} is the name of a profile before it; choose another"
            yield Problem((*path, "name"), text)
        seen.add(profile.name)
        for below, text in _devices(profile):
            yield Problem(path + below, text)


def _sleep(model: ModelSection, broken: Set[str | int]) -> Iterator[Problem]:
    if not model.sleep or {"engine", "sleep"} & broken:
        return
    if model.engine not in ("command", "vllm"):
        text = (
            f"belongs to engine: command; {model.engine} frees as much by stopping and starts "
            "again as fast as it would wake, so remove this and use idle_stop"
        )
        yield Problem(("sleep",), text)
    if isinstance(model.sleep, str):
        return
    for level, section in model.sleep.items():
        for key, calls in (("sleep", section.sleep), ("wake", section.wake)):
            path: KeyPath = ("sleep", str(level), key)
            if not calls:
                yield Problem(path, "needs at least one call, like POST /sleep?level=1")
            elif len(calls) > MAX_CALLS:
                yield Problem(path, f"has {len(calls)} calls; there can be at most {MAX_CALLS}")


def _devices(profile: ProfileSection) -> Iterator[Problem]:
    devices = devices_of(profile.devices, profile.memory_mib)
    if len(devices) > MAX_DEVICES:
        text = f"names {len(devices)} devices; a profile can have at most {MAX_DEVICES}"
        yield Problem(("devices",), text)
    for at in _repeated(devices):
        if devices[at] == HOST_DEVICE:  # of another name there may be several cards
            yield Problem(("devices", at), f"'{HOST_DEVICE}' is there twice; there is one host")
    known = frozenset(devices)
    for device in profile.memory_mib:
        if device == ONE_DEVICE:
            if len(devices) > 1:
                text = "needs the device of each size, like {cpu: 300MiB}: there are several"
                yield Problem(("memory",), text)
        elif device not in known:
            has = ", ".join(shorten(name) for name in devices[:10])
            text = f"is not a device of this profile, which has {has}; add it to devices"
            yield Problem(("memory", device), text)


def devices_of(named: Iterable[str], memory: Iterable[str]) -> tuple[str, ...]:
    """The devices of a profile: those it names, else those its memory names, else the host."""
    return tuple(named) or tuple(name for name in memory if name != ONE_DEVICE) or (HOST_DEVICE,)


_MODEL_RULES: tuple[_Rule, ...] = (
    _has_source,
    _has_command,
    _program_is_named,
    _has_tasks,
    _one_health_path,
    _shapes,
    _remote,
    _replicas_in_order,
    _auto,
    _assigned_devices,
    _memory_or_profiles,
    _profiles,
    _sleep,
)
