"""What the admin API says: the server builds these values, clients read them back.

Laws of this file:
- Every field is plain data, so that JSON carries it without loss.
- Moments are seconds since the epoch (`_at`), spans are seconds (`_s`), memory is MiB (`_mib`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One replica of a model that has, or had, an engine."""

    number: int
    state: str
    run: int = 0
    pid: int | None = None
    in_flight: int = 0
    profile: str | None = None
    memory_mib: dict[str, int] = field(default_factory=dict)
    used_mib: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AutoView:
    """What an `auto` model is started with."""

    profile: str
    step: str
    """`as planned`, or the step that was taken last after too little memory."""
    reason: str
    """What that step costs."""
    context: int
    """Tokens of one sequence."""
    # Any is OptionValue, a recursive type, which not all that carries these values can express.
    options: dict[str, Any] = field(default_factory=dict)
    """The engine's options, those of the profile among them."""
    tried: list[str] = field(default_factory=list)
    """What ran out of memory before, and how."""


@dataclass(frozen=True, slots=True)
class VirtualView:
    """A name that stands for one of several models."""

    id: str
    choose: str
    targets: list[str]
    """Those of the mode that holds, the best one first."""
    fallback: bool
    tasks: list[str] = field(default_factory=list)
    """What all of its targets can be asked to do."""
    state: str = "stopped"
    """`ready` if one of its targets is; else the state of the first."""
    models: list[str] = field(default_factory=list)
    """Ids of the models that the targets mean."""
    unknown: list[str] = field(default_factory=list)
    """Targets that no model has as a name."""


@dataclass(frozen=True, slots=True)
class ModesView:
    """Which targets of virtual models hold."""

    mode: str
    """The mode that holds; empty for none."""
    modes: list[str]
    virtuals: list[VirtualView]


@dataclass(frozen=True, slots=True)
class PriceView:
    """What the tokens of a model are said to cost. Amounts are decimal numbers as text."""

    input: str
    output: str
    cached_input: str | None
    """None is as `input`."""
    per: int
    """Tokens that the amounts are for."""
    currency: str


@dataclass(frozen=True, slots=True)
class ModelView:
    """One model as `ps`, `list` and `show` print it."""

    id: str
    state: str
    tasks: list[str]
    engine: str
    aliases: list[str] = field(default_factory=list)
    # Any is Json, a recursive type, which not all that carries these values can express.
    shape: dict[str, Any] = field(default_factory=dict)
    """What is changed in the requests to it."""
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What is changed in the requests under each of its other names that change something."""
    virtuals: list[str] = field(default_factory=list)
    """The virtual models that it stands behind now."""
    source: str | None = None
    context_length: int | None = None
    needs_mib: dict[str, int] = field(default_factory=dict)
    """What it will claim on each device with the first profile whose devices are there."""
    pinned: bool = False
    preload: bool = False
    priority: int = 0
    profile: str | None = None
    """Profile of the running replica."""
    passed_over: list[str] = field(default_factory=list)
    """Why each profile before it was not taken."""
    memory_mib: dict[str, int] = field(default_factory=dict)
    """What the running or sleeping replica counts for on each device."""
    sleep_level: int = 0
    """How deep it sleeps: 1 or 2, 0 if it does not."""
    sleep_levels: list[int] = field(default_factory=list)
    """Levels at which its engine can sleep."""
    used_mib: dict[str, int] = field(default_factory=dict)
    """What it was last measured to hold."""
    run: int = 0
    pid: int | None = None
    in_flight: int = 0
    queued: int = 0
    idle_s: float | None = None
    """How long a ready replica has had no request."""
    last_used_at: float | None = None
    keep_s: float | None = None
    """How long a client wanted it kept after its last request; None leaves it to the limits."""
    ready_s: float | None = None
    phase: str | None = None
    """What a starting engine says it is doing."""
    percent: float | None = None
    waiting_for: str | None = None
    """Why requests wait, if any do."""
    next_step: str | None = None
    """What happens next to those who wait."""
    position: int = 0
    """Its place among the models that wait for memory, 1 for the next; 0 if it does not."""
    expected_s: float | None = None
    """Estimated seconds until its first waiting request is served."""
    reason: str | None = None
    """Why the last run ended, if it failed."""
    failures: int = 0
    log_path: str | None = None
    """File with the output of the present or last engine."""
    replicas: list[ReplicaView] = field(default_factory=list)
    """Each replica, where there can be more than one."""
    auto: AutoView | None = None
    """What it is started with, if that is left to the planner."""
    price: PriceView | None = None


@dataclass(frozen=True, slots=True)
class WaitingView:
    """One request that waits for a model."""

    ticket: int
    model: str
    position: int
    """Its place in the queue of its model, 1 for the next."""
    waited_s: float
    expected_s: float
    """Estimated seconds until it is served."""
    why: str
    """Why the model's requests wait."""
    next_step: str
    """What happens next."""
    priority: int = 0
    named: str = ""
    """What the client has called the model: an alias, a variant or a virtual model; empty if
    nobody knows."""


@dataclass(frozen=True, slots=True)
class RequestView:
    """One inference request, under way or over."""

    id: str
    state: str
    """`reading`, `waiting`, `sending`, `answering`, or `done`."""
    route: str
    arrived_at: float
    key: str = ""
    """Name of the key that it came with."""
    client: str = ""
    model: str = ""
    named: str = ""
    """What the client called the model."""
    stream: bool = False
    waited_s: float = 0.0
    """Until it was given to an engine; until now, if it waits."""
    first_s: float | None = None
    """Until the first byte of the answer."""
    total_s: float = 0.0
    """Until its end; until now, if it is under way."""
    status: int = 0
    """0 while there is no answer; 499 for a client that left before it."""
    error: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """While a stream is under way, the parts that were passed on."""
    estimated: bool = False
    """Whether the tokens are reckoned, because no engine told them."""


@dataclass(frozen=True, slots=True)
class RequestsView:
    """Requests under way, oldest first, and the newest of those that are over."""

    running: list[RequestView]
    finished: list[RequestView]
    dropped: int = 0
    """Records that were forgotten before anybody took them."""


@dataclass(frozen=True, slots=True)
class CaptureView:
    """One request and its answer as they were, without secrets, each cut to a bound."""

    id: str
    arrived_at: float
    route: str
    key: str
    model: str
    status: int
    request_headers: list[tuple[str, str]]
    request: str
    request_bytes: int
    """Bytes of the whole body."""
    answer: str
    answer_bytes: int


@dataclass(frozen=True, slots=True)
class ShareView:
    """What one replica claims on a device, and what it really holds there, where that is known."""

    model: str
    state: str
    claim_mib: int
    used_mib: int | None = None


@dataclass(frozen=True, slots=True)
class DeviceView:
    """One device: what there is, what replicas may hold, what they claim and really hold."""

    id: str
    name: str
    total_mib: int
    capacity_mib: int
    """What replicas may hold together now."""
    claimed_mib: int
    """What they count for: their claims, or more where they really hold more."""
    kind: str = "cpu"
    index: int = 0
    ceiling_mib: int = 0
    """What they could hold if no stranger used anything: the budget, or total less reserve."""
    strangers_mib: int = 0
    """What processes that are not ours use."""
    shares: list[ShareView] = field(default_factory=list)
    used_mib: int | None = None
    """What everybody together uses, as the driver says."""
    utilisation: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Info:
    """The server itself."""

    version: str
    pid: int
    url: str
    started_at: float
    uptime_s: float
    config_path: str | None
    models_dirs: list[str]
    models: int
    ready: int
    in_flight: int
    queued: int
    requests: int
    """Inference requests answered since the start."""
    memory_mib: int
    """Resident memory of the server process itself."""
    loads: int
    """Engines that became ready since the start."""
    stops: int
    """Engines that were stopped since the start, evictions among them."""
    sleeps: int = 0
    wakes: int = 0
    compiled: bool = False
    """Whether requests run through compiled code; else the sources are interpreted."""
    estimates_off_s: float | None = None
    """Half of the last estimates of waits were off by at most this."""
    problems: list[str] = field(default_factory=list)
    """Model files and folders that could not be used, and why."""


@dataclass(frozen=True, slots=True)
class LineView:
    """One line of an engine's output; a new `run` starts counting at 1 again."""

    model: str
    run: int
    number: int
    text: str


@dataclass(frozen=True, slots=True)
class LogView:
    """The newest lines of a model's engine, and the file that has them all."""

    model: str
    path: str | None
    lines: list[LineView]


@dataclass(frozen=True, slots=True)
class PullTrouble:
    """Why a download failed. `message` says what to do."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class PullView:
    """One download and how it goes."""

    id: str
    model: str
    hub: str
    state: str
    """`queued`, `looking`, `waiting` (another process fetches the same), `downloading`, `done`,
    `failed` or `cancelled`."""
    revision: str | None = None
    commit: str | None = None
    """The commit that the revision names; None on a hub that tells none."""
    folder: str | None = None
    """Where the files are, or will be."""
    files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Why these files, and what else a person should know."""
    current: str | None = None
    """The file that is being fetched or checked."""
    total_bytes: int = 0
    done_bytes: int = 0
    """Bytes on the disk, those of earlier attempts included."""
    speed_bytes_s: float | None = None
    eta_s: float | None = None
    error: PullTrouble | None = None
    asked_at: float = 0.0
    ended_at: float | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One piece of live news.

    Topic `models` carries a ModelView, `removed` the id of a model that is gone, `log:<model>` a
    LineView, `pulls` a PullView, `lost` how many events a slow reader has missed.
    """

    topic: str
    data: ModelView | LineView | PullView | str | int
