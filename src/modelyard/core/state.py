"""What is known of each model and of each of its replicas while the server runs.

Laws of this file:
- Values that the scheduler alone writes; everybody may read them, nobody may decide by them
  elsewhere.
- Times are of the scheduler's clock.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from modelyard.core.costs import Costs
from modelyard.core.demand import Demand
from modelyard.core.footprints import Footprints
from modelyard.core.lifecycle import Replica, State
from modelyard.core.queueing import WaitQueue
from modelyard.core.specs import ModelSpec, Need, Placement, replica_key

COMING = frozenset({State.STARTING, State.WAKING, State.RESTARTING})
"""States in which a replica is on its way to be ready."""
GOING = frozenset({State.SUSPENDING, State.STOPPING})
"""States in which a replica gives memory back."""
_BEST_FIRST = (
    State.READY,
    State.WAKING,
    State.STARTING,
    State.RESTARTING,
    State.SUSPENDING,
    State.ASLEEP,
    State.STOPPING,
    State.BACKOFF,
    State.FAILED,
    State.STOPPED,
)


@dataclass(frozen=True, slots=True)
class Reservation:
    """Where a replica will go, and who leaves for it. What it claims there is promised to it."""

    placement: Placement
    """Of one that sleeps: what it needs beside what it keeps."""
    since: float
    leaving: tuple[tuple[ReplicaState, int], ...] = ()
    """Who leaves, and how: the level of sleep, 3 for a stop."""


@dataclass(slots=True, eq=False)
class ReplicaState:
    """One replica of a model: an engine, or the place for one."""

    model: ModelState = field(repr=False)
    number: int
    life: Replica
    in_flight: int = 0
    placement: Placement | None = None
    used_mib: Need = field(default_factory=dict)
    """What it was last measured to hold; empty until it is measured."""
    asleep_mib: Need = field(default_factory=dict)
    """What it keeps on each device and the host while it sleeps; empty awake."""
    held_mib: Need = field(default_factory=dict)
    """What it counts for on each device: kept up to date by the scheduler (see `counted`)."""
    reservation: Reservation | None = None
    promised_to: str = ""
    """Model for which it leaves: it takes no new requests."""
    evicted: bool = False
    """It left for another model, and not because nobody used it."""
    level_asked: int = 0
    """The level at which a person wants it asleep, until it is."""
    deepen_to: int = 0
    """The level at which it is to sleep once it has woken for that; 0 if it wakes to serve."""
    last_used: float = 0.0
    ready_since: float = 0.0
    started_at: float = 0.0
    changing_since: float = 0.0
    """When it began to sleep or to stop, the drain left out."""
    retry_at: float = 0.0
    pressed_since: float | None = None
    """Since when its engine says that it is full; None if it is not."""
    suspected: bool = False
    """The engine broke an exchange off and has not shown since that it lives."""
    why_stopping: str = ""

    @property
    def key(self) -> str:
        return replica_key(self.model.spec.id, self.number)

    @property
    def state(self) -> State:
        return self.life.state

    @property
    def spec(self) -> ModelSpec:
        return self.model.spec

    @property
    def is_idle(self) -> bool:
        """Ready, and nobody uses it or waits for it."""
        return self.life.state is State.READY and not self.in_flight and not self.model.queue

    @property
    def sleep_levels(self) -> list[int]:
        """The levels at which it can be trusted to sleep where it is."""
        levels = self.model.sleep_levels
        if not levels or self.placement is None:
            return levels
        placed = self.placement.profile
        cannot = any(each.name == placed and not each.can_sleep for each in self.spec.profiles)
        return [] if cannot else levels

    def has_room(self) -> bool:
        """Whether it takes a request now."""
        if self.life.state is not State.READY or self.suspected or self.promised_to:
            return False
        bound = self.model.spec.limits.concurrency
        return bound is None or self.in_flight < bound

    def counted(self) -> Need:
        """What it counts for: its claim, or more where it really holds more.

        Asleep, what it was seen to keep, also while it is stopped in its sleep.
        """
        if self.placement is None:
            return {}
        return self.asleep_mib or self.awake_mib

    @property
    def awake_mib(self) -> Need:
        """What it counts for awake; of a sleeping one, by its last measurement before the sleep."""
        if self.placement is None:
            return {}
        claims = self.placement.claims_mib
        over = {d: mib for d, mib in self.used_mib.items() if mib > claims.get(d, 0)}
        return {**claims, **over} if over else claims


@dataclass(frozen=True, slots=True)
class Ways:
    """Every way to run a model, by profile in order of preference."""

    profiles: Sequence[Sequence[Placement]]
    lacking: Sequence[str]
    """What each profile lacks that no choice of devices gives."""


@dataclass(slots=True, eq=False)
class ModelState:
    """One model: who waits for it, what is known of it, and its replicas."""

    spec: ModelSpec
    demand: Demand
    queue: WaitQueue = field(default_factory=WaitQueue)
    replicas: list[ReplicaState] = field(default_factory=list)
    """Never empty; as many as the model may have at most."""
    runs: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    """Numbers of engine runs, each given to one run of one replica."""
    footprints: Footprints = field(default_factory=Footprints)
    """What its runs were measured to hold."""
    costs: Costs = field(default_factory=Costs)
    """How long its engines took to start, to sleep, to wake and to stop."""
    bad_sleeper: bool = False
    """Its engine failed to sleep or to wake: it is stopped instead until it is defined anew."""
    passed_over: list[str] = field(default_factory=list)
    """Why each profile before the chosen one was not taken when it was last placed."""
    ways: Ways | None = None
    """Every way to run it on the devices there are; None if not worked out yet."""
    wanted_since: float | None = None
    """Since when a person or `preload` wants it running, until it runs."""
    change_s: float | None = None
    """Seconds to bring it up and to have it leave again; None if not worked out yet."""
    keep_s: float | None = None
    """How long a client wanted it kept after its last request, until it is stopped; None leaves it
    to the limits."""
    look_at: float = 0.0
    """Until then nothing that is known now makes it start, unless something changes."""
    forecast: tuple[float, float] | None = None
    """When somebody began to wait for it, and how many seconds were expected; None if nobody
    waits."""
    removed: bool = False

    @property
    def first(self) -> ReplicaState:
        return self.replicas[0]

    @property
    def best(self) -> ReplicaState:
        """The replica that is closest to serving."""
        if len(self.replicas) == 1:
            return self.replicas[0]
        return min(self.replicas, key=lambda each: _BEST_FIRST.index(each.state))

    @property
    def state(self) -> State:
        return self.best.state

    @property
    def placement(self) -> Placement | None:
        return self.best.placement

    @property
    def in_flight(self) -> int:
        return sum(replica.in_flight for replica in self.replicas)

    @property
    def held_mib(self) -> dict[str, int]:
        """What all its replicas together count for on each device."""
        return total(replica.held_mib for replica in self.replicas)

    @property
    def wanted(self) -> bool:
        return bool(self.queue) or self.wanted_since is not None

    @property
    def waiting_since(self) -> float:
        """When the oldest of those who want the model began to. Only for a wanted model."""
        times = [] if self.wanted_since is None else [self.wanted_since]
        if self.queue:
            times.append(self.queue.oldest.arrived)
        return min(times)

    @property
    def serving(self) -> list[ReplicaState]:
        """The replicas that take requests, or will without anybody's decision."""
        return [replica for replica in self.replicas if is_serving(replica)]

    @property
    def sleep_levels(self) -> list[int]:
        """The levels at which its engine can be trusted to sleep."""
        return [] if self.bad_sleeper else sorted(self.spec.sleep)

    def replica_of(self, run: int) -> ReplicaState | None:
        """The replica whose present run this is."""
        for replica in self.replicas:
            if replica.life.run == run:
                return replica
        return None


def is_serving(replica: ReplicaState) -> bool:
    """Whether it takes requests, or will without anybody's decision."""
    state = replica.life.state
    return (state is State.READY and not replica.promised_to) or state in COMING


def total(needs: Iterable[Need]) -> dict[str, int]:
    """Needs added up, by device."""
    sums: dict[str, int] = {}
    for need in needs:
        for device, mib in need.items():
            sums[device] = sums.get(device, 0) + mib
    return sums
