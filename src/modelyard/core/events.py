"""What the scheduler is told, and what it answers.

Laws of this file:
- Events are facts, in the past tense of whoever reports them; actions are orders, and performing
  one ends in another event or in nothing.
- All of it is plain frozen data, so that decisions can be compared in tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from modelyard.core.errors import ModelyardError
from modelyard.core.lifecycle import EngineEvent
from modelyard.core.specs import Device, ModelSpec, Need, Placement, replica_key

# ------------------------------------------------------------------------------------------ events


@dataclass(frozen=True, slots=True)
class ModelEvent:
    model: str


@dataclass(frozen=True, slots=True)
class RequestWaits(ModelEvent):
    """A request found no free replica and waits; `ticket` names it.

    Requests of one `key` share their turns; a higher `priority` is served first.
    """

    ticket: int
    key: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class RequestLeft(ModelEvent):
    """A waiting request's client is gone."""

    ticket: int


@dataclass(frozen=True, slots=True)
class StartWanted(ModelEvent):
    """A person, or `preload`, wants the model running."""


@dataclass(frozen=True, slots=True)
class StopWanted(ModelEvent):
    """A person wants the model stopped."""


@dataclass(frozen=True, slots=True)
class KeepWanted(ModelEvent):
    """A client says how long the model is to be kept after its last request."""

    keep_s: float
    """0 lets it go as soon as it is idle, infinity keeps it; others' need of its memory goes
    before."""


@dataclass(frozen=True, slots=True)
class RestartWanted(ModelEvent):
    """A person wants a fresh engine."""


@dataclass(frozen=True, slots=True)
class SleepWanted(ModelEvent):
    """A person wants the model asleep, at this level."""

    level: int


@dataclass(frozen=True, slots=True)
class EngineNews(ModelEvent):
    """What happened to a model's engine."""

    news: EngineEvent


@dataclass(frozen=True, slots=True)
class EngineSuspected(ModelEvent):
    """An engine broke an exchange off: nobody new is sent to it until it is known to live."""

    run: int


@dataclass(frozen=True, slots=True)
class EngineCleared(ModelEvent):
    """A suspected engine answers its health route."""

    run: int


@dataclass(frozen=True, slots=True)
class MemoryMeasured(ModelEvent):
    """What a ready replica really holds on each device."""

    run: int
    used_mib: Need
    lost: tuple[str, ...] = ()
    """Devices where its processes live and no longer hold what they held."""


@dataclass(frozen=True, slots=True)
class PressureRead(ModelEvent):
    """What a run's own gauges say of how full it is."""

    run: int
    kv_share: float | None
    """Share of its key-value cache that requests hold, 0 to 1; None if it does not tell."""
    waiting: int
    """Requests that it took and has not begun."""


@dataclass(frozen=True, slots=True)
class FootprintLearned(ModelEvent):
    """What runs of the model take with this profile on devices of these kinds."""

    profile: str
    kinds: str
    level: int
    """0 awake, else how deep it sleeps."""
    by_position: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class CostKnown(ModelEvent):
    """What a step of the model (`costs.Step`) was seen to take in earlier runs of the server."""

    profile: str
    kinds: str
    step: str
    seconds: float


@dataclass(frozen=True, slots=True)
class DemandKnown(ModelEvent):
    """How often the model was asked, and how long it worked on a request, before a restart."""

    rate: float
    """Requests per second, worn off by the time since."""
    service_s: float
    ended: float
    """Requests that `service_s` was learned from."""


@dataclass(frozen=True, slots=True)
class ModelsChanged:
    """The models there are now."""

    specs: tuple[ModelSpec, ...]


@dataclass(frozen=True, slots=True)
class DevicesChanged:
    """The devices there are now, and what replicas may hold on each."""

    devices: tuple[Device, ...]


@dataclass(frozen=True, slots=True)
class TimerDue:
    """The moment that `next_timer` named has come."""


@dataclass(frozen=True, slots=True)
class ShutdownAsked:
    """Everything is to end: nobody starts any more, whoever runs drains and stops."""


SchedulerEvent = (
    RequestWaits
    | RequestLeft
    | StartWanted
    | StopWanted
    | KeepWanted
    | RestartWanted
    | SleepWanted
    | EngineNews
    | EngineSuspected
    | EngineCleared
    | MemoryMeasured
    | PressureRead
    | FootprintLearned
    | CostKnown
    | DemandKnown
    | ModelsChanged
    | DevicesChanged
    | TimerDue
    | ShutdownAsked
)

# ----------------------------------------------------------------------------------------- actions


@dataclass(frozen=True, slots=True)
class StartEngine:
    spec: ModelSpec
    run: int
    placement: Placement
    number: int = 1
    """Which replica of the model this is."""

    @property
    def key(self) -> str:
        """Names the replica."""
        return replica_key(self.spec.id, self.number)


@dataclass(frozen=True, slots=True)
class StopEngine:
    """End a run once its requests in flight are done, or `drain_s` has passed (None: no bound)."""

    model: str
    run: int
    drain_s: float | None
    grace_s: float
    why: str


@dataclass(frozen=True, slots=True)
class SuspendEngine:
    """Put a run to sleep once its requests in flight are done, or `drain_s` has passed."""

    model: str
    run: int
    level: int
    drain_s: float | None
    why: str


@dataclass(frozen=True, slots=True)
class WakeEngine:
    model: str
    run: int
    level: int


@dataclass(frozen=True, slots=True)
class Grant:
    """The waiting request may use this run of the model; its lease is counted already."""

    ticket: int
    model: str
    run: int


@dataclass(frozen=True, slots=True)
class Refuse:
    ticket: int
    error: ModelyardError


@dataclass(frozen=True, slots=True)
class Changed:
    """A model's state is not what it was."""

    model: str


@dataclass(frozen=True, slots=True)
class CostLearned:
    """What a step of the model is expected to take from now on; worth remembering."""

    model: str
    profile: str
    kinds: str
    step: str
    seconds: float


SchedulerAction = (
    StartEngine | StopEngine | SuspendEngine | WakeEngine | Grant | Refuse | Changed | CostLearned
)
