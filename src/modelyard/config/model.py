"""The section of one model under `models`, and the limits that `defaults` shares with it.

Laws of this file:
- Defaults of limits and replicas come from `core.specs`; descriptions are for users and published
  in the JSON Schema.
- What spans several keys, or depends on the engine, is in `rules.py`.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

from pydantic import Field

from modelyard.config.assigned import AssignedSection
from modelyard.config.health import HealthSection
from modelyard.config.kinds import (
    ARGUMENTS_ADVICE,
    Boolean,
    Duration,
    DurationOrNever,
    EngineName,
    FilePathOrNone,
    HttpPath,
    Memory,
    Name,
    Option,
    PositiveDuration,
    PresetName,
    TaskName,
    Text,
    listed,
    mapped,
    whole,
)
from modelyard.config.price import OptionalPrice
from modelyard.config.remote import Circuit, Upstreams, usual_circuit
from modelyard.config.sections import Section
from modelyard.config.shaping import ShapeSection
from modelyard.config.sleep import Sleep
from modelyard.core.specs import Limits, Replicas

_LIMITS, _REPLICAS = Limits(), Replicas()

Names = Annotated[list[Name], listed(",")]
Command = Annotated[list[Text], listed("\0", ARGUMENTS_ADVICE)]
Options = Annotated[dict[Name, Option], mapped]


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
