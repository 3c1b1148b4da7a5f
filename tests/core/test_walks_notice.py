"""The random walks notice what they are there for: a few of them find each of these mistakes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import pytest
from tests.core.test_policy_walks import random_walk

from modelyard.core import moves, placement, swap
from modelyard.core.alarms import Alarms
from modelyard.core.fleet import Fleet
from modelyard.core.lifecycle import State
from modelyard.core.planning import Planner
from modelyard.core.queueing import Waiting, WaitQueue
from modelyard.core.specs import Need, Placement
from modelyard.core.state import ReplicaState

WALKS = 60
Patch = Callable[[pytest.MonkeyPatch], None]


def memory_is_endless(patch: pytest.MonkeyPatch) -> None:
    def fits(need: Need, left: Need) -> bool:
        return True

    patch.setattr(placement, "fits", fits)


def memory_moves_for_several_at_a_time(patch: pytest.MonkeyPatch) -> None:
    def moving(replicas: Iterable[ReplicaState], gpus: frozenset[str]) -> set[str]:
        return set()

    patch.setattr(moves, "moving_gpus", moving)


def pinned_models_may_leave(patch: pytest.MonkeyPatch) -> None:
    def may_leave(replica: ReplicaState) -> bool:
        free = not replica.promised_to and replica.reservation is None
        return free and replica.state is State.READY

    patch.setattr(swap, "_may_leave", may_leave)


def who_leaves_does_not_finish(patch: pytest.MonkeyPatch) -> None:
    careful = Planner._pursue

    def pursue(
        planner: Planner,
        replica: ReplicaState,
        chosen: Placement,
        leaving: Iterable[tuple[ReplicaState, int]],
    ) -> None:
        pairs = tuple(leaving)
        in_flight = [leaver.in_flight for leaver, _ in pairs]
        for leaver, _ in pairs:
            leaver.in_flight = 0
        careful(planner, replica, chosen, pairs)
        for (leaver, _), count in zip(pairs, in_flight, strict=True):
            leaver.in_flight = count

    patch.setattr(Planner, "_pursue", pursue)


def gates_do_not_close(patch: pytest.MonkeyPatch) -> None:
    def has_room(replica: ReplicaState) -> bool:
        bound = replica.model.spec.limits.concurrency
        ready = replica.life.state is State.READY and not replica.suspected
        return ready and (bound is None or replica.in_flight < bound)

    patch.setattr(ReplicaState, "has_room", has_room)


def gates_do_not_open_again(patch: pytest.MonkeyPatch) -> None:
    def unreserve(fleet: Fleet, replica: ReplicaState) -> None:
        if replica.reservation is not None:
            replica.reservation = None
            fleet._reserved.remove(replica)

    patch.setattr(Fleet, "_unreserve", unreserve)


def suspicion_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    def has_room(replica: ReplicaState) -> bool:
        bound = replica.model.spec.limits.concurrency
        ready = replica.life.state is State.READY and not replica.promised_to
        return ready and (bound is None or replica.in_flight < bound)

    patch.setattr(ReplicaState, "has_room", has_room)


def priorities_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    def pop(queue: WaitQueue, aged_before: float = 0.0) -> Waiting:
        oldest = queue.remove(queue.oldest.ticket)
        assert oldest is not None
        return oldest

    patch.setattr(WaitQueue, "pop", pop)


def who_waits_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    def clear(queue: WaitQueue) -> list[int]:
        queue.__init__()  # type: ignore[misc]
        return []

    patch.setattr(WaitQueue, "clear", clear)


def alarms_ring_for_ever(patch: pytest.MonkeyPatch) -> None:
    def due(alarms: Alarms, now: float) -> list[str]:
        return [subject for subject, at in alarms._at.items() if at <= now]

    patch.setattr(Alarms, "due", due)


MISTAKES: list[tuple[Patch, str]] = [
    (memory_is_endless, "overcommitted"),
    (memory_moves_for_several_at_a_time, "moves beside"),
    (pinned_models_may_leave, "is pinned and leaves"),
    (who_leaves_does_not_finish, "leaves with requests"),
    (gates_do_not_close, "behind the closed gate"),
    (gates_do_not_open_again, "is closed for nobody"),
    (suspicion_is_forgotten, "gets a request"),
    (priorities_are_forgotten, "before"),
    (who_waits_is_forgotten, "lost request"),
    (alarms_ring_for_ever, "rings for ever"),
]


@pytest.mark.parametrize(("mistake", "found"), MISTAKES)
def test_a_mistake_is_found_within_a_few_walks(
    mistake: Patch, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(monkeypatch)

    with pytest.raises(AssertionError, match=found):
        walks()


def walks() -> None:
    for seed in range(WALKS):
        random_walk(random.Random(seed))
