"""The table of states: every row is needed, and no order of events breaks it."""

import random
from collections import deque
from collections.abc import Callable

import pytest

from modelyard.core.lifecycle import (
    HOLDING,
    TRANSITIONS,
    Action,
    EngineAsleep,
    EngineExited,
    EngineReady,
    Event,
    InvalidTransition,
    Replica,
    RestartAsked,
    RestartPutOff,
    SleepAsked,
    SleepFailed,
    StartAsked,
    State,
    StopAsked,
    WakeAsked,
    WakeFailed,
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
    replica = Replica(state=State.READY, run=1, runs=iter([2]))

    assert replica.handle(RestartAsked()) is Action.STOP_ENGINE
    assert replica.state is State.RESTARTING
    assert replica.handle(EngineExited(1)) is Action.START_ENGINE
    assert (replica.state, replica.run) == (State.STARTING, 2)


def test_a_stop_during_a_restart_wins() -> None:
    replica = Replica(state=State.RESTARTING, run=1)

    replica.handle(StopAsked())
    replica.handle(EngineExited(1))

    assert replica.state is State.STOPPED


def test_a_ready_replica_sleeps_and_wakes() -> None:
    replica = Replica(state=State.READY, run=1)

    life = [
        (replica.handle(event), replica.state)
        for event in (SleepAsked(2), EngineAsleep(1, {}), WakeAsked(), EngineReady(1))
    ]

    assert life == [
        (Action.SUSPEND_ENGINE, State.SUSPENDING),
        (None, State.ASLEEP),
        (Action.WAKE_ENGINE, State.WAKING),
        (None, State.READY),
    ]
    assert replica.level == 2


def test_a_failed_sleep_ends_the_engine_and_a_failed_wake_replaces_it() -> None:
    suspending = Replica(state=State.SUSPENDING, run=1)
    waking = Replica(state=State.WAKING, run=1)

    assert suspending.handle(SleepFailed(1, "kept 3 GiB")) is Action.STOP_ENGINE
    assert waking.handle(WakeFailed(1, "500")) is Action.STOP_ENGINE

    assert (suspending.state, suspending.reason) == (State.STOPPING, "kept 3 GiB")
    assert waking.state is State.RESTARTING


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
        for seed in range(4000):
            _walk(random.Random(seed), _reached)
    return _reached


_reached: set[tuple[State, type[Event]]] = set()


NEWS: dict[str, list[tuple[str, Callable[[int], Event]]]] = {
    "starting": [("up", EngineReady)],
    "suspending": [
        ("asleep", lambda run: EngineAsleep(run, {})),
        ("suspending", lambda run: SleepFailed(run, "kept its memory")),
    ],
    "waking": [("up", EngineReady), ("waking", lambda run: WakeFailed(run, "garbage"))],
}
"""What an engine may report in each of its own states, and the state it is in then."""


def _walk(chance: random.Random, reached: set[tuple[State, type[Event]]]) -> None:
    """Random operators and a random engine: at most one run lives, and no row is missing."""
    replica, inbox = Replica(), deque[Event]()
    live: dict[int, str] = {}
    for _ in range(80):
        match chance.randrange(9):
            case 0 if replica.state in (State.STOPPED, State.BACKOFF):
                inbox.append(StartAsked())
            case 1 if chance.random() < 0.4:
                inbox.append(StopAsked())
            case 2 if chance.random() < 0.4:
                inbox.append(RestartAsked())
            case 3 if replica.state is State.READY:
                inbox.append(SleepAsked(chance.choice([1, 2])))
            case 4 if replica.state is State.ASLEEP:
                inbox.append(WakeAsked())
            case 4 if replica.state is State.RESTARTING and chance.random() < 0.2:
                inbox.append(RestartPutOff())
            case 5 if live:
                run = chance.choice(list(live))
                if live[run] in NEWS:
                    live[run], news = chance.choice(NEWS[live[run]])
                    inbox.append(news(run))
            case 6 if live and chance.random() < 0.5:
                run = chance.choice(list(live))
                del live[run]
                inbox.append(EngineExited(run, "ended", permanent=chance.random() < 0.1))
            case _ if inbox:
                _step(replica, inbox.popleft(), live, reached)


ASKED_ONLY = {
    StartAsked: {State.STOPPED, State.BACKOFF},
    SleepAsked: {State.READY},
    WakeAsked: {State.ASLEEP},
    RestartPutOff: {State.RESTARTING},
    RestartAsked: HOLDING - {State.ASLEEP},
}
"""Where the scheduler asks for what."""


def _step(
    replica: Replica,
    event: Event,
    live: dict[int, str],
    reached: set[tuple[State, type[Event]]],
) -> None:
    if replica.state not in ASKED_ONLY.get(type(event), set(State)):
        return
    before = replica.state
    current = getattr(event, "run", replica.run) == replica.run
    action = replica.handle(event)
    if current:
        reached.add(_row(before, replica))
    if action is Action.START_ENGINE:
        assert not live, replica.story
        live[replica.run] = "starting"
    elif action is Action.SUSPEND_ENGINE and replica.run in live:
        live[replica.run] = "suspending"
    elif action is Action.WAKE_ENGINE and replica.run in live:
        live[replica.run] = "waking"


def _row(before: State, replica: Replica) -> tuple[State, type[Event]]:
    name = replica.story[-1][1]
    kind = next(kind for _, kind in TRANSITIONS if kind.__name__ == name)
    return before, kind
