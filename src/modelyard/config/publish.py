"""What others may see: the JSON Schema of the file, and the configuration in force.

Laws of this file:
- `describe` writes what `load` reads: keys and units as in the file, every default spelled out.
- Text that held `${env:...}` is shown as it was written, never as what the variable held, and
  what is named like a secret is not shown at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from modelyard.config.units import format_mib
from modelyard.config.values import PRESETS, Config, KeyPath
from modelyard.core.specs import ModelSpec, Profile, Task

HIDDEN = "<hidden>"
SECRET_NAME = re.compile(
    r"(?<![a-z])(auth|authorization|bearer|key|token)(?![a-z])"
    r"|api-?key|passw|passphrase|secret|credential",
    re.IGNORECASE,
)
"""What a variable, an option or a header is called that holds a secret."""


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of `modelyard.yaml`, for editors."""
    from modelyard.config.schema import File  # imported late: see the laws of load.py

    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "modelyard.yaml"}
    return head | File.model_json_schema(by_alias=True)


def describe(config: Config) -> dict[str, Any]:
    """The configuration in force as plain data, in the words of the file, without secrets."""
    from modelyard.config.keys import written_key
    from modelyard.config.remotes import written_endpoints
    from modelyard.config.schema import SECTIONS
    from modelyard.config.sections import written_keys
    from modelyard.config.shaping import written_virtual
    from modelyard.config.tls import written_tls

    described: dict[str, Any] = {
        name: written_keys(section, config.limits if name == "defaults" else getattr(config, name))
        for name, section in SECTIONS.items()
    }
    described["server"]["tls"] = written_tls(config.server.tls)
    described["server"]["allowed_hosts"] = list(config.server.allowed_hosts)
    described["server"]["cors_origins"] = list(config.server.cors_origins)
    described["server"]["no_heartbeats_for"] = list(config.server.no_heartbeats_for)
    described["devices"]["budget"] = _sizes(config.devices.budget_mib)
    described["downloads"] |= {
        key: HIDDEN
        for key in ("token", "modelscope_token")
        if getattr(config.downloads, key) is not None and ("downloads", key) not in config.written
    }
    described["models_dirs"] = [str(folder) for folder in config.models_dirs]
    described["keys"] = {key.name: written_key(key) for key in config.keys}
    described["remotes"] = written_endpoints(config.remotes)
    described["models"] = {spec.id: _model(spec) for spec in config.models}
    described["virtual"] = {each.id: written_virtual(each) for each in config.virtuals}
    for path, text in config.written.items():
        if path[2:3] != ("tasks",):  # their order is not kept, and they are no secrets
            _replace(described, path, text)
    return described


def _model(spec: ModelSpec) -> dict[str, Any]:
    from modelyard.config.health import written_health
    from modelyard.config.model import LimitsSection
    from modelyard.config.price import written_price
    from modelyard.config.remote import written_remote
    from modelyard.config.sections import written_keys
    from modelyard.config.shaping import written_shape
    from modelyard.config.sleep import written_levels

    return {
        "aliases": list(spec.aliases),
        "engine": "command" if spec.engine in PRESETS else spec.engine,
        "source": spec.repository or spec.source,
        "tasks": [task.value for task in Task if task in spec.tasks],
        "options": _without_secrets(spec.options),
        "profiles": [_profile(each) for each in spec.profiles if spec.engine != "remote"],
        "command": _arguments(spec.command),
        "preset": spec.engine if spec.engine in PRESETS else None,
        **written_remote(spec.remote),
        "env": _without_secrets(spec.env),
        "cwd": spec.cwd,
        "health_path": spec.health_path,
        "health": written_health(spec.health),
        "sleep": spec.sleep_preset or _without_secrets(written_levels(spec.sleep)),
        "auto": spec.auto,
        "preload": spec.preload,
        "pinned": spec.pinned,
        "priority": spec.priority,
        "loading_state": spec.loading_state,
        "replicas": {"min": spec.replicas.min, "max": spec.replicas.max},
        "price": written_price(spec.price),
        "shape": _without_secrets(written_shape(spec.shape)),
        "variants": {
            name: _without_secrets(written_shape(shape)) for name, shape in spec.variants.items()
        },
        **written_keys(LimitsSection, spec.limits),
    }


def _profile(profile: Profile) -> dict[str, Any]:
    return {
        "name": profile.name,
        "devices": list(profile.devices),
        "memory": _sizes(profile.memory_mib),
        "options": _without_secrets(profile.options),
        "command": _arguments(profile.command),
    }


def _sizes(mib_by_device: Mapping[str, int]) -> dict[str, str]:
    return {name: format_mib(mib) for name, mib in mib_by_device.items()}


def _without_secrets(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if below and SECRET_NAME.search(key) else _without_secrets(below)
            for key, below in value.items()
        }
    if isinstance(value, list):
        return [_without_secrets(item) for item in value]
    return value


def _arguments(command: Sequence[str]) -> list[str]:
    """A command without what follows options like `--api-key`."""
    shown: list[str] = []
    hide_next = False
    for argument in command:
        name, equals, _ = argument.partition("=")
        is_secret = name.startswith("-") and SECRET_NAME.search(name) is not None
        shown.append(
            HIDDEN if hide_next else f"{name}={HIDDEN}" if is_secret and equals else argument
        )
        hide_next = is_secret and not equals and not hide_next
    return shown


def _replace(described: Any, path: KeyPath, text: str) -> None:
    """Put `text` where `path` leads, if there is such a place and it is not hidden already."""
    *way, last = path
    for step in way:
        described = _below(described, step)
    if _below(described, last) not in (None, HIDDEN):
        described[last] = text


def _below(value: Any, step: str | int) -> Any:
    if isinstance(value, dict):
        return value.get(step)
    if isinstance(value, list) and isinstance(step, int) and step < len(value):
        return value[step]
    return None
