"""What a round of planning says is to be done, in words that `fleet` carries out.

Laws of this file:
- Values only: nothing is decided here and nothing is done.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from modelyard.core.specs import Placement
from modelyard.core.state import ReplicaState, Reservation


@dataclass(frozen=True, slots=True)
class Start:
    replica: ReplicaState
    placement: Placement


@dataclass(frozen=True, slots=True)
class Wake:
    replica: ReplicaState


@dataclass(frozen=True, slots=True)
class Leave:
    """Give memory back at once; no request is in flight. Sleep at `level`, or stop (3)."""

    replica: ReplicaState
    level: int
    why: str


@dataclass(frozen=True, slots=True)
class Reserve:
    """Promise memory to a replica and close the gates of those who leave for it."""

    replica: ReplicaState
    reservation: Reservation


@dataclass(frozen=True, slots=True)
class Unreserve:
    """The promise is off: who was to leave stays."""

    replica: ReplicaState


@dataclass(frozen=True, slots=True)
class Deepen:
    """A sleeper that wakes only to sleep deeper, so that others get its place on the host."""

    replica: ReplicaState
    level: int


PlanStep = Start | Wake | Deepen | Leave | Reserve | Unreserve


@dataclass(slots=True)
class Plan:
    """What to do, in order; and for those who get nothing now, why and when to look again."""

    steps: list[PlanStep] = field(default_factory=list)
    placed: set[str] = field(default_factory=set)
    """The models that memory is promised to by this plan."""
    passed_over: dict[str, list[str]] = field(default_factory=dict)
    look_at: dict[str, float] = field(default_factory=dict)
