"""Every key of the configuration: its kind, its default and what it means.

Laws of this file:
- Defaults come from the values they end in (`values.py`, `core.specs`), so they exist once.
- What spans several keys is in `rules.py`.
- Descriptions are for users: they are published in the JSON Schema.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field

from modelyard.config.assigned import AssignedSection
from modelyard.config.health import HealthSection
from modelyard.config.keys import KeyLimitsSection, Keys, KeySection
from modelyard.config.kinds import (
    ARGUMENTS_ADVICE,
    Boolean,
    Duration,
    DurationOrNever,
    EngineName,
    FilePath,
    FilePathOrAuto,
    FilePathOrNone,
    Host,
    HttpPath,
    LlamaServer,
    Memory,
    Mib,
    Name,
    Option,
    Origin,
    PlaceOrAuto,
    PositiveDuration,
    PresetName,
    Size,
    TaskName,
    Text,
    listed,
    mapped,
    number,
    whole,
)
from modelyard.config.price import OptionalPrice, PriceSection
from modelyard.config.remote import (
    Circuit,
    CircuitSection,
    Upstreams,
    UpstreamSection,
    usual_circuit,
)
from modelyard.config.remotes import RemoteSection
from modelyard.config.sections import Section, keys_of
from modelyard.config.shaping import ShapeSection, TargetSection, VirtualSection
from modelyard.config.sleep import CallSection, Sleep, SleepSection
from modelyard.config.tls import TlsSection
from modelyard.config.values import (
    Captures,
    Devices,
    Downloads,
    Engines,
    KeyPath,
    Server,
    default_state_dir,
)
from modelyard.core.policy import Policy
from modelyard.core.specs import Limits, Replicas

_SERVER, _DEVICES, _SCHEDULING = Server(state_dir=Path()), Devices(), Policy()
_ENGINES, _LIMITS, _REPLICAS = Engines(), Limits(), Replicas()
_DOWNLOADS, _CAPTURES = Downloads(), Captures()

Names = Annotated[list[Name], listed(",")]
Command = Annotated[list[Text], listed("\0", ARGUMENTS_ADVICE)]
Options = Annotated[dict[Name, Option], mapped]


class ServerSection(Section):
    host: Host = Field(
        _SERVER.host,
        description="Address to listen on. One that other machines can reach needs a key with the "
        "scope `admin`, or `insecure`.",
    )
    port: Annotated[int, whole(0, 65535)] = Field(
        _SERVER.port, description="TCP port to listen on; 0 takes a free one."
    )
    list_aliases: Boolean = Field(
        _SERVER.list_aliases,
        description="List aliases as models of their own, for clients that offer only what is "
        "listed.",
    )
    ollama_port: Annotated[int | None, whole(0, 65535).or_none()] = Field(
        _SERVER.ollama_port,
        description="Second TCP port for the same server, for clients that look for Ollama where "
        "it usually is, 11434; null opens none.",
    )
    allowed_hosts: Annotated[list[Host], listed(",")] = Field(
        list(_SERVER.allowed_hosts),
        description="Host names that requests may be addressed to, besides loopback names and "
        "`host`; `*` allows all. It keeps foreign web pages out (DNS rebinding).",
    )
    tls: Annotated[TlsSection, mapped] = Field(
        default_factory=partial(TlsSection.model_validate, {}),
        description="Certificates, for https.",
    )
    insecure: Boolean = Field(
        _SERVER.insecure,
        description="Allow a `host` that other machines can reach, although no key protects it.",
    )
    cors_origins: Annotated[list[Origin], listed(",")] = Field(
        list(_SERVER.cors_origins),
        description="Web pages that may use this server, by their origin like "
        "`https://chat.example.com`; `*` allows all and needs a key with the scope `admin`. "
        "Pages of this server itself always may.",
    )
    max_body_bytes: Size = Field(
        _SERVER.max_body_bytes, description="Largest body of a request that is accepted."
    )
    heartbeat_after_s: Duration = Field(
        _SERVER.heartbeat_after_s,
        description="A streaming client that waits this long for its model gets its headers and "
        "a first heartbeat; errors before that keep their status code.",
    )
    heartbeat_every_s: PositiveDuration = Field(
        _SERVER.heartbeat_every_s, description="Time between two heartbeats."
    )
    heartbeats: Boolean = Field(
        _SERVER.heartbeats,
        description="Whether clients that wait hear heartbeats at all; a key may say otherwise.",
    )
    no_heartbeats_for: Annotated[list[Name], listed(",")] = Field(
        list(_SERVER.no_heartbeats_for),
        description="Programs that stumble over heartbeats and get none, by patterns of their "
        "`User-Agent` like `some-client/*`.",
    )
    header_timeout_s: PositiveDuration = Field(
        _SERVER.header_timeout_s,
        description="Longest time that the head of a request may take to arrive.",
    )
    body_timeout_s: PositiveDuration = Field(
        _SERVER.body_timeout_s,
        description="Longest silence of a client that is sending its request.",
    )
    send_timeout_s: PositiveDuration = Field(
        _SERVER.send_timeout_s,
        description="A client that takes nothing of its answer for this long is cut off.",
    )
    keep_alive_s: PositiveDuration = Field(
        _SERVER.keep_alive_s, description="How long an idle connection of a client is kept open."
    )
    websocket_idle_s: PositiveDuration = Field(
        _SERVER.websocket_idle_s,
        description="How long a WebSocket is kept open on which neither end says anything.",
    )
    shutdown_timeout_s: Duration = Field(
        _SERVER.shutdown_timeout_s,
        description="Longest wait for requests in flight when the server is asked to end.",
    )
    state_dir: FilePath = Field(
        default_factory=default_state_dir,
        description="Folder for logs and other state. Default: the platform's folder for the "
        "state of programs, `~/.local/state/modelyard` on Linux.",
    )


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


class SchedulingSection(Section):
    fair_after_s: Duration = Field(
        _SCHEDULING.fair_after_s,
        description="Least age bound: a model whose request has waited this long goes before all "
        "younger ones and may have models in use drained. It grows with the two keys below.",
    )
    wait_factor: Annotated[float, number(0, 100)] = Field(
        _SCHEDULING.wait_factor,
        description="The age bound is at least this many times what nine of ten recent requests "
        "waited at most.",
    )
    away_factor: Annotated[float, number(0, 100)] = Field(
        _SCHEDULING.away_factor,
        description="The age bound is at least this many times as long as those who have to leave "
        "would be away.",
    )
    residency_factor: Annotated[float, number(0, 100)] = Field(
        _SCHEDULING.residency_factor,
        description="A model in use stays at least this many times as long as the change that "
        "replaces it takes, so that changes take at most 1/(1+factor) of the time.",
    )
    loss_factor: Annotated[float, number(0.01, 100)] = Field(
        _SCHEDULING.loss_factor,
        description="A model in use is drained once those who wait have waited this many times "
        "what its own users will wait for it.",
    )
    reserve_factor: Annotated[float, number(1, 100)] = Field(
        _SCHEDULING.reserve_factor,
        description="Past this many age bounds, devices are kept free of newcomers for the model "
        "that waits longest.",
    )
    rate_memory_s: PositiveDuration = Field(
        _SCHEDULING.rate_memory_s,
        description="How long a request counts when it is told how often a model is asked; for "
        "half of that, eight times as long.",
    )
    prefetch: Boolean = Field(
        _SCHEDULING.prefetch,
        description="Bring models that had to leave back into memory that nobody needs.",
    )
    make_room: Boolean = Field(
        _SCHEDULING.make_room,
        description="Have idle models leave before their memory is needed, where the models that "
        "are away would together save more waiting by it than those are missed.",
    )
    make_room_after_s: Duration = Field(
        _SCHEDULING.make_room_after_s,
        description="A model leaves ahead only when nothing was asked of it for this long.",
    )
    scale_up_after_s: Duration = Field(
        _SCHEDULING.scale_up_after_s,
        description="Start another replica, up to `replicas.max`, when requests have waited this "
        "long for a place in those that run and memory is free.",
    )
    scale_up_kv: Annotated[float, number(0.01, 1)] = Field(
        _SCHEDULING.scale_up_kv,
        description="An engine counts as full, as if requests waited for a place in it, when they "
        "hold this share of its key-value cache, or when it has some that it has not begun.",
    )
    read_gauges_every_s: PositiveDuration = Field(
        _SCHEDULING.read_gauges_every_s,
        description="How often engines that may get another replica are asked how full they are.",
    )
    scale_down_after_s: PositiveDuration = Field(
        _SCHEDULING.scale_down_after_s,
        description="Stop a replica beyond `replicas.min` that nothing was asked of for this long.",
    )
    max_start_attempts: Annotated[int, whole(1, 100)] = Field(
        _SCHEDULING.max_start_attempts,
        description="Starts of one model in a row that may fail before it counts as failed.",
    )
    backoff_s: Duration = Field(
        _SCHEDULING.backoff_s,
        description="Pause after the first failed start; it doubles with each further one.",
    )
    backoff_max_s: Duration = Field(
        _SCHEDULING.backoff_max_s, description="Longest pause between two starts."
    )
    failed_cooldown_s: Duration = Field(
        _SCHEDULING.failed_cooldown_s,
        description="Time until a request may try a failed model again.",
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


class ReplicasSection(Section):
    min: Annotated[int, whole(0, 64)] = Field(
        _REPLICAS.min,
        description="So many are kept running, whether anybody asks or not, as memory allows.",
    )
    max: Annotated[int, whole(1, 64)] = Field(
        _REPLICAS.max,
        description="So many run at most: more than `min` only while requests wait for a place "
        "and memory is free.",
    )

    def value(self) -> Replicas:
        return Replicas(self.min, self.max)


class LimitsSection(Section):
    lies_under = True

    idle_sleep_s: DurationOrNever = Field(
        _LIMITS.idle_sleep_s,
        description="Put an engine that can sleep (see `sleep`) to sleep when nobody has used it "
        "for this long; `never` keeps it awake.",
    )
    idle_stop_s: DurationOrNever = Field(
        _LIMITS.idle_stop_s,
        description="Stop an engine that nobody has used for this long; `never` keeps it running.",
    )
    max_wait_s: Duration = Field(
        _LIMITS.max_wait_s,
        description="Longest wait of a request for its model before it is answered with a "
        "time-out.",
    )
    max_queue: Annotated[int, whole(0, 1_000_000)] = Field(
        _LIMITS.max_queue,
        description="Requests that may wait for a model; one more is refused.",
    )
    concurrency: Annotated[int | None, whole(1, 1_000_000).or_none()] = Field(
        _LIMITS.concurrency,
        description="Requests that an engine is given at once, more wait in the queue; null sets "
        "no bound.",
    )
    start_timeout_s: PositiveDuration = Field(
        _LIMITS.start_timeout_s,
        description="Time that an engine may take from its start until it is ready.",
    )
    drain_timeout_s: Duration = Field(
        _LIMITS.drain_timeout_s,
        description="Longest wait for requests in flight when a person stops or restarts a model.",
    )
    stop_grace_s: Duration = Field(
        _LIMITS.stop_grace_s,
        description="Time between asking an engine's processes to end and killing them.",
    )
    response_timeout_s: PositiveDuration = Field(
        _LIMITS.response_timeout_s,
        description="Longest silence of an engine, before the first byte of an answer and "
        "between two parts of it.",
    )


class ProfileSection(Section):
    name: Name = Field(description="What the profile is called in messages.")
    devices: Names = Field(
        [],
        description="Names of the devices that it runs on. Default: those that `memory` names, "
        "else `cpu`.",
    )
    memory_mib: Memory = Field(
        {}, description="Memory on each device; one size is enough where there is one device."
    )
    options: Options = Field({}, description="Laid over the model's `options`, key by key.")
    command: Command = Field([], description="Replaces the model's `command`.")


class ModelSection(LimitsSection):
    aliases: Names = Field([], description="More names that requests may use.")
    engine: EngineName = Field("llamacpp", description="What runs the model.")
    source: FilePathOrNone = Field(
        None,
        description="File or folder of the weights, or `ORG/NAME` of a repository in the hub's "
        "cache (not for `llamacpp`). Must be given for the engines `llamacpp`, `vllm` and "
        "`transformers`.",
    )
    tasks: Annotated[list[TaskName], listed(",")] = Field(
        [],
        description="What the model can be asked to do. Must be given for the engines `command` "
        "and `remote`; the others recognise it from the files.",
    )
    options: Options = Field({}, description="Options of the engine, by the engine's own names.")
    profiles: Annotated[list[Annotated[ProfileSection, mapped]], listed(",")] = Field(
        [], description="Ways to run the model, tried in this order."
    )
    memory_mib: Memory = Field(
        {},
        description="Short for a single profile: memory on the host (`300MiB`), or on each device.",
    )
    command: Command = Field(
        [],
        description="Program and arguments of the engine `command`; no shell reads it. For the "
        "engine `vllm` the vLLM to use in place of `engines.vllm`.",
    )
    preset: PresetName = Field(
        None,
        description="Program that the engine `command` knows how to start, so that `command` can "
        "be left out.",
    )
    upstreams: Upstreams = Field(
        [],
        description="Where somebody else serves the model, for the engine `remote`: requests are "
        "shared among them by weight, and go to another one where one fails.",
    )
    circuit: Circuit = Field(
        default_factory=usual_circuit,
        description="When an upstream that fails is left alone, for the engine `remote`.",
    )
    env: Annotated[dict[Name, Text], mapped] = Field(
        {}, description="Variables added to the clean environment that engines get."
    )
    cwd: FilePathOrNone = Field(
        None,
        description="Folder in which the engine is started. Default for the engine `command`: the "
        "folder of the file.",
    )
    health_path: HttpPath = Field(
        None, description="Route that answers 200 once the engine is ready; null asks the engine."
    )
    health: Annotated[HealthSection, mapped] = Field(
        default_factory=partial(HealthSection.model_validate, {}),
        description="How the engine is found to be well.",
    )
    sleep: Sleep = Field(
        {},
        description="How the engine gives its memory back and takes it again without being "
        "stopped. Only for the engine `command`.",
    )
    assigned: Annotated[AssignedSection, mapped] = Field(
        default_factory=partial(AssignedSection.model_validate, {}),
        description="Devices and options that `modelyard assign` has written.",
    )
    auto: Boolean = Field(
        False,
        description="Start the model with what `modelyard plan` recommends where this file says "
        "nothing, and with less after a start that ran out of memory. For the engines `llamacpp`, "
        "`vllm` and `transformers`.",
    )
    preload: Boolean = Field(False, description="Start the model together with the server.")
    pinned: Boolean = Field(False, description="Never stop the model to make room for another.")
    priority: Annotated[int, whole(-1000, 1000)] = Field(
        0,
        description="Among waiting models the one with the higher priority goes first, and a "
        "second of waiting for it counts twice as much for each step, up to 8.",
    )
    loading_state: Boolean = Field(
        False,
        description="Tell clients that wait for a streamed chat how far the load is, in place of "
        "heartbeats; a request may say otherwise.",
    )
    replicas: Annotated[ReplicasSection, mapped] = Field(
        default_factory=partial(ReplicasSection.model_validate, {}),
        description="How many engines of the model may run at a time, see below.",
    )
    shape: Annotated[ShapeSection, mapped] = Field(
        default_factory=partial(ShapeSection.model_validate, {}),
        description="What is changed in the requests to the model, see below.",
    )
    variants: Annotated[dict[Name, Annotated[ShapeSection, mapped]], mapped] = Field(
        {},
        description="More names that requests may use, each with what is changed under it; the "
        "model is loaded once for all of them.",
    )
    price: OptionalPrice = Field(
        None, description="What the model's tokens cost, as people are told; null says nothing."
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
