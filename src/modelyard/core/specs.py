"""The nouns of Modelyard, as frozen values.

Laws of this file:
- Memory is in MiB (integers, rounded up), time in seconds (floats), and the names say so.
- Nothing here knows how a value was obtained: the config, the catalog and the probes build them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from modelyard.core.circuit import Thresholds
from modelyard.core.pricing import Price
from modelyard.core.shaping import Shape

OptionValue: TypeAlias = (
    "str | int | float | bool | list[OptionValue] | dict[str, OptionValue] | None"
)
"""An engine option as YAML and JSON can write it."""

Need: TypeAlias = Mapping[str, int]
"""MiB wanted on each device, by device id."""

HOST_DEVICE = "cpu"
"""Id and name of the device that stands for host memory."""

AUTO_PROFILE = "auto"
"""Name of the profile that an `auto` model has where nobody wrote one: the planner fills it in."""


class Task(StrEnum):
    """What a model can be asked to do. A route serves one task, a model has one or more."""

    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"
    RERANK = "rerank"
    CLASSIFICATION = "classification"
    """A score for each label of the model's own; moderation is one such use."""
    TRANSCRIPTION = "transcription"
    """Speech to text, in its own language or translated."""
    SPEECH = "speech"
    """Text to speech."""
    IMAGE = "image"
    """Draws images. A chat model that looks at them needs no task for it."""


@dataclass(frozen=True, slots=True)
class Device:
    """Something with memory that can be full: a GPU, or the host (`cpu`).

    `capacity_mib` is what replicas may hold together now: within the budget, and within the total
    less the reserve and less what strangers use.
    """

    id: str
    """Stable and unique: a GPU's UUID where it has one, `cpu` for the host."""
    name: str
    """What the driver calls it. Users name devices by words of it."""
    total_mib: int
    capacity_mib: int
    kind: str = "cpu"
    """`nvidia`, `amd`, `intel`, `apple` or `cpu`: which probe found it."""
    index: int = 0
    """Its place among the devices of its kind, in the order of their PCI addresses."""
    strangers_mib: int = 0
    """What processes that are not ours use."""
    ceiling_mib: int | None = None
    """The capacity if no stranger used anything; None where nobody looks for strangers."""

    @property
    def most_mib(self) -> int:
        """What replicas could hold together at best."""
        return self.capacity_mib if self.ceiling_mib is None else self.ceiling_mib


@dataclass(frozen=True, slots=True)
class Profile:
    """One way to run a model on certain hardware. Profiles are tried in the order written.

    `memory_mib` is the declared claim per device; devices it does not name use the estimate.
    `options` and `command` override those of the model.
    """

    name: str
    devices: tuple[str, ...] = (HOST_DEVICE,)
    memory_mib: Need = field(default_factory=dict)
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    can_sleep: bool = True
    """Whether the engine can sleep where this profile puts it, if the model's levels say how."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Times and bounds of one model. Every field can be set in the config."""

    idle_sleep_s: float | None = 600.0
    """Put an engine that can sleep to sleep after this long without use; None never does."""
    idle_stop_s: float | None = 3600.0
    """Stop an engine that nobody has used for this long; None never stops it."""
    max_wait_s: float = 600.0
    """Longest wait of a request for its model before it is answered with a time-out."""
    max_queue: int = 1000
    """Requests that may wait for this model; one more is refused."""
    concurrency: int | None = None
    """Requests the engine is given at once; more wait in the queue. None sets no bound."""
    start_timeout_s: float = 600.0
    """Time an engine may take from its start until it is ready."""
    drain_timeout_s: float = 60.0
    """Longest wait for requests in flight when a person stops or restarts the model."""
    stop_grace_s: float = 10.0
    """Time between asking an engine's processes to end and killing them."""
    response_timeout_s: float = 600.0
    """Longest silence of an engine, before the first byte of an answer and between two parts."""


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request to an engine's own control routes; 2xx is success."""

    method: str
    path: str
    body: str | None = None
    """JSON text."""
    timeout_s: float = 120.0

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True, slots=True)
class SleepLevel:
    """How an engine is put to sleep at one level, and how it wakes."""

    enter: tuple[Call, ...]
    leave: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class Replicas:
    """How many engines of one model may run at a time."""

    min: int = 0
    """So many are kept running, whether anybody asks or not."""
    max: int = 1
    """So many run at most; more than `min` only while the load asks for them."""


@dataclass(frozen=True, slots=True)
class Health:
    """How a model's engine is found to be well, beyond its health route answering."""

    functional: bool | None = None
    """Ask for one token or one vector before requests are sent; None where Modelyard knows the
    engine, and not for a command of the user's own."""
    timeout_s: float = 300.0
    """Longest wait for that one token or vector."""
    warm_up: bool = True
    """Have engines that are slow to answer their first request answer one before they are ready."""


@dataclass(frozen=True, slots=True)
class RemoteUpstream:
    """Somebody else's endpoint that serves a model."""

    url: str
    """Base address as OpenAI's clients take it."""
    key: str = field(default="", repr=False)
    key_header: str = "authorization"
    """In lower case; `authorization` carries the key as a bearer token, others carry it alone."""
    dialect: str = "openai"
    """The API family that it speaks: `openai` or `anthropic`."""
    model: str | None = None
    """What the endpoint calls the model; None for the model's id here."""
    weight: int = 1
    """Its share of the requests; 0 is asked only if no other can be."""
    ca_file: str | None = None
    """Certificates to trust in place of the system's."""
    connect_timeout_s: float = 5.0
    renames: Mapping[str, str] | None = None
    """What parameters of chats are called there, by their usual names; None leaves that to who is
    known to be there."""


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """Where a remote model is, and when one of its upstreams is left alone."""

    upstreams: tuple[RemoteUpstream, ...] = ()
    circuit: Thresholds = field(default_factory=Thresholds)


def replica_key(model: str, number: int) -> str:
    """Names a replica: the model's id, with a number from the second on."""
    return model if number == 1 else f"{model}#{number}"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model as a user declared it, or as the catalog found it. `id` is what requests name."""

    id: str
    engine: str
    tasks: frozenset[Task]
    aliases: tuple[str, ...] = ()
    source: str | None = None
    """File or folder of the weights; engines that need none leave it out."""
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    profiles: tuple[Profile, ...] = (Profile("default"),)
    estimate_mib: int | None = None
    """What one replica is expected to hold, read from the checkpoint's header."""
    context_length: int | None = None
    """Longest sequence the checkpoint was made for, in tokens."""
    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    health_path: str | None = None
    """Route that answers 200 when the engine is ready; None asks the engine's adapter."""
    sleep: Mapping[int, SleepLevel] = field(default_factory=dict)
    """Sleep levels of the engine: 1 keeps the weights in host memory, 2 drops them."""
    sleep_preset: str = ""
    """Name of a known engine whose levels fill an empty `sleep`; see `engines.sleeping`."""
    auto: bool = False
    """Take the planner's settings where the user gave none, and smaller ones after a start that ran
    out of memory."""
    preload: bool = False
    pinned: bool = False
    priority: int = 0
    loading_state: bool = False
    """Whether clients that wait are told how the load goes, unless a request says otherwise."""
    replicas: Replicas = Replicas()
    limits: Limits = Limits()
    health: Health = Health()
    remote: RemoteModel = RemoteModel()
    """Where the model is, if it is somebody else's."""
    price: Price | None = None
    """What its tokens are said to cost."""
    shape: Shape | None = None
    """What is changed in the requests to it."""
    variants: Mapping[str, Shape] = field(default_factory=dict)
    """More names that requests may use, each with what is changed under it."""
    revision: str = ""
    """Changes when the files behind the model change, so that a running replica is renewed."""
    repository: str | None = None
    """The id on a hub that `source` may mean as well: `Qwen/Qwen3-8B`."""

    def runs_like(self, other: ModelSpec) -> bool:
        """Whether a running engine of this definition is what the other one describes too."""
        same = (self.tasks, self.profiles, self.sleep) == (other.tasks, other.profiles, other.sleep)
        return same and self._process == other._process

    @property
    def _process(self) -> tuple[object, ...]:
        return (
            self.engine,
            self.source,
            self.revision,
            self.options,
            self.command,
            self.env,
            self.cwd,
            self.health_path,
        )


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an engine listens."""

    host: str
    port: int
    path: str = ""
    """Of a Unix socket, in whose place `host` and `port` mean nothing."""

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"

    @property
    def authority(self) -> str:
        """What the Host header of a request to it says."""
        return "localhost" if self.path else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Command:
    """A process to start: no shell, an environment of its own, a folder of its own."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables added to the clean environment that launchers give every engine."""
    cwd: str | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """Which profile a replica runs and what it holds on each device, in MiB."""

    profile: str
    claims_mib: Need
    devices: tuple[str, ...] = ()
    """Ids of the devices in the order in which the profile names them."""
    kinds: str = ""
    """What these devices are, without their ids."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a starting engine says it is doing."""

    phase: str
    percent: float | None = None
