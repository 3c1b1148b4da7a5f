"""The table of states: every row is needed, and no order of events breaks it."""

import random
from collections import deque

import pytest

from modelyard.core.lifecycle import (
    HOLDING,
    TRANSITIONS,
    Action,
    EngineExited,
    EngineReady,
    Event,
    InvalidTransition,
    Replica,
    RestartAsked,
    StartAsked,
    State,
    StopAsked,
)


def test_a_replica_starts_becomes_ready_and_stops() -> None:
    replica = Replica()

    life = [
        (replica.handle(event), replica.state)
        for event in (StartAsked(), EngineReady(1), StopAsked(), EngineExited(1))
    ]

    assert life == [
        (Action.START_ENGINE, State.STARTING),
        (None, State.READY),
        (Action.STOP_ENGINE, State.STOPPING),
        (None, State.STOPPED),
    ]


def test_news_of_an_older_run_is_dropped() -> None:
    replica = Replica(state=State.STARTING, run=7)

    assert replica.handle(EngineExited(6, "late")) is None
    assert replica.state is State.STARTING
    assert replica.failures == 0


def test_a_stop_while_starting_is_not_lost_when_the_engine_becomes_ready_meanwhile() -> None:
    replica = Replica(state=State.STARTING, run=1)

    replica.handle(StopAsked())
    replica.handle(EngineReady(1))

    assert replica.state is State.STOPPING


def test_a_restart_starts_again_only_after_the_old_engine_has_ended() -> None:
    replica = Replica(state=State.READY, run=1)

    assert replica.handle(RestartAsked()) is Action.STOP_ENGINE
    assert replica.state is State.RESTARTING
    assert replica.handle(EngineExited(1)) is Action.START_ENGINE
    assert (replica.state, replica.run) == (State.STARTING, 2)


def test_a_stop_during_a_restart_wins() -> None:
    replica = Replica(state=State.RESTARTING, run=1)

    replica.handle(StopAsked())
    replica.handle(EngineExited(1))

    assert replica.state is State.STOPPED


def test_failures_in_a_row_lead_to_failed_at_the_limit() -> None:
    replica = Replica(max_failures=2)

    replica.handle(StartAsked())
    replica.handle(EngineExited(1, "first"))
    assert (replica.state, replica.failures, replica.reason) == (State.BACKOFF, 1, "first")
    replica.handle(StartAsked())
    replica.handle(EngineExited(2, "second"))

    assert (replica.state, replica.reason) == (State.FAILED, "second")


def test_a_permanent_failure_is_final_at_once() -> None:
    replica = Replica(state=State.STARTING, run=1)

    replica.handle(EngineExited(1, "no such file", permanent=True))

    assert replica.state is State.FAILED


def test_work_done_makes_the_next_failure_the_first() -> None:
    replica = Replica(max_failures=2, state=State.READY, run=1, failures=1)

    replica.forgive()
    replica.handle(EngineExited(1, "crash"))

    assert (replica.state, replica.failures) == (State.BACKOFF, 1)


def test_being_ready_clears_the_reason_but_not_the_count() -> None:
    replica = Replica(state=State.STARTING, run=2, failures=1, reason="crash")

    replica.handle(EngineReady(2))

    assert (replica.reason, replica.failures) == ("", 1)


def test_a_missing_row_tells_the_story() -> None:
    replica = Replica()
    replica.handle(StartAsked())
    replica.handle(EngineReady(1))

    with pytest.raises(InvalidTransition, match=r"starting \+ EngineReady -> ready"):
        replica.handle(StartAsked())


@pytest.mark.parametrize("row", TRANSITIONS, ids=lambda row: f"{row[0]}-{row[1].__name__}")
def test_every_row_of_the_table_is_reached(row: tuple[State, type[Event]]) -> None:
    assert row in _rows_of_random_walks()


def _rows_of_random_walks() -> set[tuple[State, type[Event]]]:
    if not _reached:
        for seed in range(1500):
            _walk(random.Random(seed), _reached)
    return _reached


_reached: set[tuple[State, type[Event]]] = set()


def _walk(chance: random.Random, reached: set[tuple[State, type[Event]]]) -> None:
    """Random operators and a random engine: at most one run lives, and no row is missing."""
    replica, inbox = Replica(), deque[Event]()
    live: dict[int, str] = {}
    for _ in range(60):
        match chance.randrange(7):
            case 0 if replica.state in (State.STOPPED, State.BACKOFF):
                inbox.append(StartAsked())
            case 1:
                inbox.append(StopAsked())
            case 2 if replica.state in HOLDING:
                inbox.append(RestartAsked())
            case 3 if live:
                run = chance.choice(list(live))
                if live[run] == "starting":
                    live[run] = "up"
                    inbox.append(EngineReady(run))
            case 4 if live:
                run = chance.choice(list(live))
                del live[run]
                inbox.append(EngineExited(run, "ended", permanent=chance.random() < 0.1))
            case _ if inbox:
                _step(replica, inbox.popleft(), live, reached)


def _step(
    replica: Replica,
    event: Event,
    live: dict[int, str],
    reached: set[tuple[State, type[Event]]],
) -> None:
    startable = replica.state in (State.STOPPED, State.BACKOFF)
    if isinstance(event, StartAsked) and not startable:
        return  # the scheduler asks only where it can start
    if isinstance(event, RestartAsked) and replica.state not in HOLDING:
        return
    before = replica.state
    current = getattr(event, "run", replica.run) == replica.run
    action = replica.handle(event)
    if current:
        reached.add(_row(before, event, replica))
    if action is Action.START_ENGINE:
        assert not live, replica.story
        live[replica.run] = "starting"


def _row(before: State, event: Event, replica: Replica) -> tuple[State, type[Event]]:
    name = replica.story[-1][1]
    kind = next(kind for _, kind in TRANSITIONS if kind.__name__ == name)
    return before, kind
