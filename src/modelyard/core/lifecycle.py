"""The life of a replica: one enum, one table, one owner.

Laws of this file:
- Everything that may change a replica's state is a row of TRANSITIONS; there is no other way.
- News about an engine carries the number of its run; news of an older run is dropped.
- A missing row is a bug in Modelyard, never in an engine: `InvalidTransition` tells the story,
  and whoever feeds events fails that one replica and goes on.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from modelyard.core.specs import Need


class State(StrEnum):
    """Where a replica is."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    SUSPENDING = "suspending"
    """Finishes the requests in flight, then gives its memory back and keeps its processes."""
    ASLEEP = "asleep"
    """Has its processes and little memory; wakes faster than it starts."""
    WAKING = "waking"
    STOPPING = "stopping"
    """Takes no more requests, finishes those in flight, then ends its processes."""
    RESTARTING = "restarting"
    """Stopping, and to be started again with the same placement."""
    BACKOFF = "backoff"
    """Failed; tried again when its delay is over and somebody wants it."""
    FAILED = "failed"
    """Failed for good or too often; requests are refused until a person or a long pause helps."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a replica."""


@dataclass(frozen=True, slots=True)
class StartAsked(Event):
    """The scheduler has placed the replica."""


@dataclass(frozen=True, slots=True)
class StopAsked(Event):
    """A person, idleness or another model's need ends the replica.

    Asked again while it stops, it may shorten the drain.
    """


@dataclass(frozen=True, slots=True)
class SleepAsked(Event):
    """Idleness, another model's need or a person puts the replica to sleep."""

    level: int


@dataclass(frozen=True, slots=True)
class WakeAsked(Event):
    """The scheduler has found the memory that the replica gave back."""


@dataclass(frozen=True, slots=True)
class RestartAsked(Event):
    """A person wants a fresh engine on the same placement."""


@dataclass(frozen=True, slots=True)
class RestartPutOff(Event):
    """The replica cannot start again at once: memory is on the move on its GPU."""


@dataclass(frozen=True, slots=True)
class EngineEvent(Event):
    """News about one run of the engine."""

    run: int


@dataclass(frozen=True, slots=True)
class EngineReady(EngineEvent):
    """The engine answers its readiness probe."""


@dataclass(frozen=True, slots=True)
class EngineAsleep(EngineEvent):
    """The engine sleeps, and this is what it was seen to hold since, on each device."""

    held_mib: Need


@dataclass(frozen=True, slots=True)
class SleepFailed(EngineEvent):
    """The engine did not go to sleep, or kept its memory."""

    reason: str


@dataclass(frozen=True, slots=True)
class WakeFailed(EngineEvent):
    """The engine did not wake up properly; only a fresh one can be trusted."""

    reason: str


@dataclass(frozen=True, slots=True)
class EngineExited(EngineEvent):
    """No process of the run is left. Reported exactly once a run, whatever ended it."""

    reason: str = ""
    permanent: bool = False


@dataclass(frozen=True, slots=True)
class GaveUp(EngineEvent):
    """An exit after which starting again is pointless or was tried often enough."""


class Action(StrEnum):
    """What the owner of the replica has to do now."""

    START_ENGINE = "start engine"
    STOP_ENGINE = "stop engine"
    SUSPEND_ENGINE = "put engine to sleep"
    WAKE_ENGINE = "wake engine"


S = State
TRANSITIONS: dict[tuple[State, type[Event]], tuple[State, Action | None]] = {
    (S.STOPPED, StartAsked): (S.STARTING, Action.START_ENGINE),
    (S.STOPPED, StopAsked): (S.STOPPED, None),
    (S.STARTING, EngineReady): (S.READY, None),
    (S.STARTING, EngineExited): (S.BACKOFF, None),
    (S.STARTING, GaveUp): (S.FAILED, None),
    (S.STARTING, StopAsked): (S.STOPPING, Action.STOP_ENGINE),
    (S.STARTING, RestartAsked): (S.RESTARTING, Action.STOP_ENGINE),
    (S.READY, EngineExited): (S.BACKOFF, None),
    (S.READY, GaveUp): (S.FAILED, None),
    (S.READY, StopAsked): (S.STOPPING, Action.STOP_ENGINE),
    (S.READY, RestartAsked): (S.RESTARTING, Action.STOP_ENGINE),
    (S.READY, SleepAsked): (S.SUSPENDING, Action.SUSPEND_ENGINE),
    (S.SUSPENDING, EngineAsleep): (S.ASLEEP, None),
    (S.SUSPENDING, SleepFailed): (S.STOPPING, Action.STOP_ENGINE),
    (S.SUSPENDING, EngineExited): (S.BACKOFF, None),
    (S.SUSPENDING, GaveUp): (S.FAILED, None),
    (S.SUSPENDING, StopAsked): (S.STOPPING, Action.STOP_ENGINE),
    (S.SUSPENDING, RestartAsked): (S.RESTARTING, Action.STOP_ENGINE),
    (S.ASLEEP, WakeAsked): (S.WAKING, Action.WAKE_ENGINE),
    (S.ASLEEP, EngineExited): (S.BACKOFF, None),
    (S.ASLEEP, GaveUp): (S.FAILED, None),
    (S.ASLEEP, StopAsked): (S.STOPPING, Action.STOP_ENGINE),
    (S.WAKING, EngineReady): (S.READY, None),
    (S.WAKING, WakeFailed): (S.RESTARTING, Action.STOP_ENGINE),
    (S.WAKING, EngineExited): (S.BACKOFF, None),
    (S.WAKING, GaveUp): (S.FAILED, None),
    (S.WAKING, StopAsked): (S.STOPPING, Action.STOP_ENGINE),
    (S.WAKING, RestartAsked): (S.RESTARTING, Action.STOP_ENGINE),
    (S.STOPPING, EngineAsleep): (S.STOPPING, None),
    (S.STOPPING, SleepFailed): (S.STOPPING, None),
    (S.STOPPING, WakeFailed): (S.STOPPING, None),
    (S.RESTARTING, EngineAsleep): (S.RESTARTING, None),
    (S.RESTARTING, SleepFailed): (S.RESTARTING, None),
    (S.RESTARTING, WakeFailed): (S.RESTARTING, None),
    (S.STOPPING, StopAsked): (S.STOPPING, Action.STOP_ENGINE),
    (S.STOPPING, RestartAsked): (S.RESTARTING, None),
    (S.STOPPING, EngineReady): (S.STOPPING, None),
    (S.STOPPING, EngineExited): (S.STOPPED, None),
    (S.RESTARTING, StopAsked): (S.STOPPING, Action.STOP_ENGINE),
    (S.RESTARTING, RestartAsked): (S.RESTARTING, None),
    (S.RESTARTING, RestartPutOff): (S.STOPPING, None),
    (S.RESTARTING, EngineReady): (S.RESTARTING, None),
    (S.RESTARTING, EngineExited): (S.STARTING, Action.START_ENGINE),
    (S.BACKOFF, StartAsked): (S.STARTING, Action.START_ENGINE),
    (S.BACKOFF, StopAsked): (S.STOPPED, None),
    (S.FAILED, StopAsked): (S.STOPPED, None),
}

ALIVE = frozenset({S.STARTING, S.READY, S.SUSPENDING, S.ASLEEP, S.WAKING})
"""States in which a replica has an engine that nobody has given up."""
HOLDING = ALIVE | {S.STOPPING, S.RESTARTING}
"""States in which a replica has, or may have, processes and therefore memory."""


class InvalidTransition(Exception):
    """The table has no row for what happened."""

    def __init__(self, replica: Replica, event: Event) -> None:
        past = "; ".join(f"{was} + {what} -> {now}" for was, what, now in replica.story)
        super().__init__(f"{event} while {replica.state} (before: {past or 'nothing'})")


@dataclass(slots=True)
class Replica:
    """One replica's state, the number of its current run, and its failures in a row."""

    max_failures: int = 3
    runs: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    """Numbers for its runs. Replicas of one model share them, so that a run names its replica."""
    state: State = State.STOPPED
    run: int = 0
    level: int = 0
    """How deep it sleeps, or last slept: 1 keeps its weights in host memory, 2 drops them."""
    failures: int = 0
    reason: str = ""
    """Why the last run ended, if it ended unasked and no later run became ready."""
    story: deque[tuple[State, str, State]] = field(default_factory=lambda: deque(maxlen=20))

    def handle(self, event: Event) -> Action | None:
        """Apply one event and return what is to be done.

        Raises InvalidTransition when the table has no row for it.
        """
        if isinstance(event, EngineEvent) and event.run != self.run:
            return None
        event = self._count_failures(event)
        try:
            new, action = TRANSITIONS[self.state, type(event)]
        except KeyError:
            raise InvalidTransition(self, event) from None
        self.story.append((self.state, type(event).__name__, new))
        self.state = new
        if action is Action.START_ENGINE:
            self.run = next(self.runs)
        return action

    def forgive(self) -> None:
        """Forget the failures: the engine has done real work, or a person starts afresh."""
        self.failures = 0

    def _count_failures(self, event: Event) -> Event:
        if isinstance(event, EngineReady):
            self.reason = ""
        elif isinstance(event, SleepAsked):
            self.level = event.level
        elif isinstance(event, SleepFailed | WakeFailed):
            self.reason = event.reason
        elif isinstance(event, EngineExited) and self.state in ALIVE:
            self.failures += 1
            self.reason = event.reason
            if event.permanent or self.failures >= self.max_failures:
                return GaveUp(event.run)
        return event
