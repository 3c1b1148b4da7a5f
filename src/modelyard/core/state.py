"""What is known of each model while the server runs.

Laws of this file:
- A value the scheduler alone writes; everybody may read it, nobody may decide by it elsewhere.
- Times are of the scheduler's clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from modelyard.core.footprints import Footprints
from modelyard.core.lifecycle import Replica, State
from modelyard.core.specs import ModelSpec, Need, Placement


@dataclass(slots=True)
class ModelState:
    """What the scheduler knows of one model. Read it anywhere, write it only here."""

    spec: ModelSpec
    replica: Replica
    queue: dict[int, float] = field(default_factory=dict)
    """Waiting tickets in order of arrival, with the time each arrived."""
    in_flight: int = 0
    footprints: Footprints = field(default_factory=Footprints)
    """What its runs were measured to hold."""
    placement: Placement | None = None
    used_mib: Need = field(default_factory=dict)
    """What its replica was last measured to hold; empty until it is measured."""
    asleep_mib: Need = field(default_factory=dict)
    """What its replica keeps on each device and the host while it sleeps; empty awake."""
    sleep_asked: int = 0
    """The level at which a person wants it asleep, until it is."""
    bad_sleeper: bool = False
    """Its engine failed to sleep or to wake: it is stopped instead until it is defined anew."""
    passed_over: list[str] = field(default_factory=list)
    """Why each profile before the chosen one was not taken when it was last placed."""
    wanted_since: float | None = None
    """Since when a person or `preload` wants it running, until it runs."""
    last_used: float = 0.0
    ready_since: float = 0.0
    started_at: float = 0.0
    retry_at: float = 0.0
    suspected: bool = False
    """The engine broke an exchange off and has not shown since that it lives."""
    why_stopping: str = ""
    removed: bool = False

    @property
    def state(self) -> State:
        return self.replica.state

    @property
    def wanted(self) -> bool:
        return bool(self.queue) or self.wanted_since is not None

    @property
    def waiting_since(self) -> float:
        """When the oldest of those who want the model began to. Only for a wanted model."""
        times = [] if self.wanted_since is None else [self.wanted_since]
        if self.queue:
            times.append(next(iter(self.queue.values())))
        return min(times)

    @property
    def idle(self) -> bool:
        return self.state is State.READY and not self.in_flight and not self.queue

    @property
    def held_mib(self) -> Need:
        """What it counts for on each device.

        Its claim, or more where it really holds more; asleep, what it was seen to keep.
        """
        if self.placement is None:
            return {}
        return self.asleep_mib or self.awake_mib  # asleep also while it is stopped in its sleep

    @property
    def awake_mib(self) -> Need:
        """What it counts for awake; of a sleeping one, by its last measurement before the sleep."""
        if self.placement is None:
            return {}
        claims = self.placement.claims_mib
        over = {d: mib for d, mib in self.used_mib.items() if mib > claims.get(d, 0)}
        return {**claims, **over} if over else claims

    @property
    def sleep_levels(self) -> list[int]:
        """The levels at which its engine can be trusted to sleep."""
        return [] if self.bad_sleeper else sorted(self.spec.sleep)

    def has_room(self) -> bool:
        if self.state is not State.READY or self.suspected:
            return False
        bound = self.spec.limits.concurrency
        return bound is None or self.in_flight < bound
