"""The configuration as a whole: every section and key, its kind, its default and what it means.

Laws of this file:
- A large section has a file of its own by its name (`server.py`, `scheduling.py`, `model.py`,
  `keys.py`, `shaping.py` and so on); the small ones are here.
- Defaults come from the values they end in (`values.py`, `core.specs`), so they exist once.
- What spans several keys is in `rules.py`.
- Descriptions are for users: they are published in the JSON Schema.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import Annotated

from pydantic import Field

from modelyard.config.assigned import AssignedSection
from modelyard.config.health import HealthSection
from modelyard.config.keys import KeyLimitsSection, Keys, KeySection
from modelyard.config.kinds import (
    Boolean,
    DurationOrNever,
    FilePath,
    FilePathOrAuto,
    LlamaServer,
    Mib,
    Name,
    PlaceOrAuto,
    Size,
    listed,
    mapped,
    whole,
)
from modelyard.config.model import LimitsSection, ModelSection, ProfileSection, ReplicasSection
from modelyard.config.price import PriceSection
from modelyard.config.remote import CircuitSection, UpstreamSection
from modelyard.config.remotes import RemoteSection
from modelyard.config.scheduling import SchedulingSection
from modelyard.config.sections import Section, keys_of
from modelyard.config.server import ServerSection
from modelyard.config.shaping import ShapeSection, TargetSection, VirtualSection
from modelyard.config.sleep import CallSection, SleepSection
from modelyard.config.tls import TlsSection
from modelyard.config.values import Captures, Devices, Downloads, Engines, KeyPath

_DEVICES, _ENGINES, _DOWNLOADS, _CAPTURES = Devices(), Engines(), Downloads(), Captures()


class DevicesSection(Section):
    reserve_mib: Mib = Field(
        _DEVICES.reserve_mib,
        description="Memory left free on every device that has no budget.",
    )
    budget_mib: Annotated[dict[Name, Mib], mapped] = Field(
        dict(_DEVICES.budget_mib),
        description="Most memory that models may hold together on a device, by device name "
        "(`cpu` is the host); it replaces total less reserve.",
    )
    sample_every_s: DurationOrNever = Field(
        _DEVICES.sample_every_s,
        description="How often devices are read: what strangers use, which cards are there; "
        "`never` reads them once, at the start.",
    )


class EnginesSection(Section):
    llama_server: LlamaServer = Field(
        _ENGINES.llama_server,
        description="`auto` uses the `llama-server` on the PATH if there is one, else the "
        "built-in; `builtin` is always the built-in; anything else is the program's path.",
    )
    vllm: PlaceOrAuto = Field(
        _ENGINES.vllm,
        description="Where vLLM is: the path of its program, of a Python or of an environment's "
        "folder, or the name of a conda or virtual environment; `auto` looks at the variable "
        "`VLLM_BIN`, the PATH and Modelyard's own environment.",
    )


class DownloadsSection(Section):
    dir: FilePathOrAuto = Field(
        _DOWNLOADS.dir,
        description="Models folder that `modelyard pull` puts models into; `auto` is the first of "
        "`models_dirs` that is no other program's store, else a folder of Modelyard's own.",
    )
    parallel: Annotated[int, whole(1, 16)] = Field(
        _DOWNLOADS.parallel, description="Downloads that run at a time; others wait."
    )
    offline: Boolean = Field(
        _DOWNLOADS.offline,
        description="Never ask a hub. `HF_HUB_OFFLINE=1` in the environment means the same.",
    )
    endpoint: PlaceOrAuto = Field(
        _DOWNLOADS.endpoint,
        description="Address of Hugging Face's hub or of a mirror; `auto` is that of the variable "
        "`HF_ENDPOINT`, else the hub itself.",
    )
    token: PlaceOrAuto = Field(
        _DOWNLOADS.token,
        description="Token for Hugging Face's hub; `auto` is that of the variable `HF_TOKEN`, else "
        "the one that `hf auth login` has kept.",
    )
    modelscope_endpoint: PlaceOrAuto = Field(
        _DOWNLOADS.modelscope_endpoint,
        description="Address of ModelScope; `auto` is `https://modelscope.cn`.",
    )
    modelscope_token: PlaceOrAuto = Field(
        _DOWNLOADS.modelscope_token,
        description="Token for ModelScope; `auto` is that of the variable `MODELSCOPE_API_TOKEN`.",
    )


class CapturesSection(Section):
    last: Annotated[int, whole(0, 1000)] = Field(
        _CAPTURES.last,
        description="Keep the newest requests and answers, so many, for `/api/captures`; 0 keeps "
        "none.",
    )
    max_body_bytes: Size = Field(
        _CAPTURES.max_body_bytes,
        description="Most that is kept of each request, and of each answer.",
    )


class File(Section):
    """The whole configuration."""

    server: Annotated[ServerSection, mapped] = Field(
        default_factory=partial(ServerSection.model_validate, {}),
        description="The listener and how patient it is.",
    )
    models_dirs: Annotated[list[FilePath], listed(os.pathsep)] = Field(
        [], description="Folders in which models are found without being described."
    )
    devices: Annotated[DevicesSection, mapped] = Field(
        default_factory=partial(DevicesSection.model_validate, {}),
        description="How much memory models may hold together.",
    )
    scheduling: Annotated[SchedulingSection, mapped] = Field(
        default_factory=partial(SchedulingSection.model_validate, {}),
        description="When waiting requests take memory from others, and how starts are repeated.",
    )
    engines: Annotated[EnginesSection, mapped] = Field(
        default_factory=partial(EnginesSection.model_validate, {}),
        description="Where engines' programs lie.",
    )
    downloads: Annotated[DownloadsSection, mapped] = Field(
        default_factory=partial(DownloadsSection.model_validate, {}),
        description="Where models are fetched from, and to.",
    )
    captures: Annotated[CapturesSection, mapped] = Field(
        default_factory=partial(CapturesSection.model_validate, {}),
        description="What is kept of requests and answers, for those who run the server.",
    )
    keys: Keys = Field(
        {},
        description="Keys by their name, as `modelyard keys add` writes them. Without any, nobody "
        "is asked for one.",
    )
    defaults: Annotated[LimitsSection, mapped] = Field(
        default_factory=partial(LimitsSection.model_validate, {}),
        description="Limits of models that do not set their own.",
    )
    remotes: Annotated[dict[Name, Annotated[RemoteSection, mapped]], mapped] = Field(
        {}, description="Other people's endpoints by a name of yours: their models are served, too."
    )
    models: Annotated[dict[Name, Annotated[ModelSection, mapped]], mapped] = Field(
        {}, description="Models by their id: what requests name."
    )
    virtual: Annotated[dict[Name, Annotated[VirtualSection, mapped]], mapped] = Field(
        {}, description="Names that stand for one of several models, see below."
    )


SECTIONS: Mapping[str, type[Section]] = {
    "server": ServerSection,
    "devices": DevicesSection,
    "scheduling": SchedulingSection,
    "engines": EnginesSection,
    "downloads": DownloadsSection,
    "captures": CapturesSection,
    "defaults": LimitsSection,
}
"""Sections that are no mapping of names."""


_ANY = object()
"""Stands for a name or a place in a list."""

_BELOW: tuple[tuple[tuple[object, ...], type[Section]], ...] = (
    (("server", "tls"), TlsSection),
    (("keys", _ANY), KeySection),
    (("keys", _ANY, "limits"), KeyLimitsSection),
    (("remotes", _ANY), RemoteSection),
    (("virtual", _ANY), VirtualSection),
    (("virtual", _ANY, "targets", _ANY), TargetSection),
    (("virtual", _ANY, "modes", _ANY, _ANY), TargetSection),
    (("models", _ANY), ModelSection),
    (("models", _ANY, "profiles", _ANY), ProfileSection),
    (("models", _ANY, "sleep", _ANY), SleepSection),
    (("models", _ANY, "sleep", _ANY, _ANY, _ANY), CallSection),
    (("models", _ANY, "health"), HealthSection),
    (("models", _ANY, "replicas"), ReplicasSection),
    (("models", _ANY, "price"), PriceSection),
    (("models", _ANY, "upstreams", _ANY), UpstreamSection),
    (("models", _ANY, "circuit"), CircuitSection),
    (("models", _ANY, "assigned"), AssignedSection),
    (("models", _ANY, "shape"), ShapeSection),
    (("models", _ANY, "variants", _ANY), ShapeSection),
)
"""Sections below those of SECTIONS, by where they stand."""


def section_of(path: KeyPath) -> type[Section]:
    """The section whose key the last step of `path` is, or should be."""
    above = path[:-1]
    for place, section in _BELOW:
        if len(place) == len(above) and all(
            wanted in (_ANY, step) for wanted, step in zip(place, above, strict=True)
        ):
            return section
    return SECTIONS.get(str(path[0]), File) if len(path) == 2 else File


def settable_paths() -> list[KeyPath]:
    """The keys that a single variable can set: all outside `models` that hold one value."""
    paths: list[KeyPath] = [("models_dirs",)]
    paths += [(name, key) for name, section in SECTIONS.items() for key in keys_of(section)]
    paths.remove(("devices", "budget"))
    paths.remove(("server", "tls"))
    paths += [("server", "tls", key) for key in keys_of(TlsSection)]
    return paths
