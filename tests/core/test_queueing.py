"""Whose turn it is among those who wait for one model."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.core.queueing import Waiting, WaitQueue

requests = st.tuples(st.sampled_from("abc"), st.integers(0, 2))
"""Who asks, and with which priority."""
steps = st.lists(st.one_of(requests, st.just("pop"), st.integers(0, 30)), max_size=40)
"""Somebody asks, somebody is served, or the request of this number leaves."""


def queue_of(*asked: tuple[str, int]) -> WaitQueue:
    queue = WaitQueue()
    for ticket, (key, priority) in enumerate(asked):
        queue.add(Waiting(ticket, float(ticket), key, priority))
    return queue


def drained(queue: WaitQueue) -> list[int]:
    return [queue.pop().ticket for _ in range(len(queue))]


def told(queue: WaitQueue) -> list[int]:
    return [request.ticket for request in queue.in_order()]


def walked(walk: list[tuple[str, int] | str | int]) -> tuple[WaitQueue, dict[int, Waiting]]:
    """A queue after some steps, and who waits in it by a list that knows nothing of turns."""
    queue, waiting = WaitQueue(), dict[int, Waiting]()
    for ticket, step in enumerate(walk):
        if isinstance(step, tuple):
            waiting[ticket] = Waiting(ticket, float(ticket), *step)
            queue.add(waiting[ticket])
        elif isinstance(step, int):
            assert queue.remove(step) == waiting.pop(step, None)
        elif waiting:
            del waiting[queue.pop().ticket]
    return queue, waiting


def test_keys_take_turns_and_each_keeps_its_own_order() -> None:
    queue = queue_of(("a", 0), ("a", 0), ("a", 0), ("b", 0), ("b", 0), ("c", 0))

    assert drained(queue) == [0, 3, 5, 1, 4, 2]


def test_a_client_with_a_thousand_requests_delays_another_by_one() -> None:
    queue = queue_of(*[("greedy", 0)] * 1000, ("modest", 0))

    assert drained(queue)[:2] == [0, 1000]


def test_a_key_that_comes_back_does_not_get_its_turn_twice() -> None:
    queue = queue_of(("a", 0), ("b", 0))
    queue.pop()

    queue.add(Waiting(2, 2.0, "a"))

    assert drained(queue) == [1, 2]


def test_a_higher_priority_goes_first_whatever_turn_it_is() -> None:
    queue = queue_of(("a", 0), ("b", 0), ("a", 2), ("a", 1), ("b", -1))

    assert drained(queue) == [2, 3, 0, 1, 4]


def test_who_has_waited_for_the_bound_gets_every_second_turn_behind_higher_priorities() -> None:
    queue = WaitQueue()
    for ticket, priority, arrived in ((1, 0, 0.0), (2, 0, 1.0), (3, 0, 50.0)):
        queue.add(Waiting(ticket, arrived, "patient", priority))
    for ticket in range(4, 10):
        queue.add(Waiting(ticket, 40.0, "urgent", 5))

    served = [queue.pop(aged_before=10.0).ticket for _ in range(9)]

    assert served == [4, 1, 5, 2, 6, 7, 8, 9, 3]


def test_nobody_can_be_taken_from_an_empty_queue() -> None:
    queue = WaitQueue()

    with pytest.raises(ValueError, match="empty"):
        queue.pop()
    assert queue.remove(7) is None


def test_a_cleared_queue_gives_its_tickets_in_the_order_of_arrival() -> None:
    queue = queue_of(("a", 0), ("b", 3), ("a", 1))

    assert queue.clear() == [0, 1, 2]
    assert (len(queue), told(queue), queue.waited_s(99.0)) == (0, [], 0.0)


@given(steps)
def test_it_holds_exactly_those_who_came_and_did_not_go(
    walk: list[tuple[str, int] | str | int],
) -> None:
    queue, waiting = walked(walk)

    assert list(queue) == list(waiting), "in the order of arrival"
    assert len(queue) == len(waiting)
    assert all(ticket in queue for ticket in waiting)
    assert queue.waited_s(100.0) == sum(100.0 - each.arrived for each in waiting.values())
    if waiting:
        assert queue.oldest == next(iter(waiting.values()))


@given(steps)
def test_the_order_it_tells_is_the_order_in_which_it_serves(
    walk: list[tuple[str, int] | str | int],
) -> None:
    queue, waiting = walked(walk)
    order = told(queue)

    assert sorted(order) == sorted(waiting)
    assert drained(queue) == order


@given(steps)
def test_between_two_turns_of_a_key_every_other_key_that_waits_has_one(
    walk: list[tuple[str, int] | str | int],
) -> None:
    queue, waiting = walked(walk)
    served = [waiting[ticket] for ticket in drained(queue)]

    assert [each.priority for each in served] == sorted(
        (each.priority for each in served), reverse=True
    )
    for priority in range(3):
        keys = [each.key for each in served if each.priority == priority]
        left = Counter(keys)
        since: dict[str, set[str]] = {key: set(left) for key in left}
        for key in keys:
            assert since[key] >= {other for other, count in left.items() if count and other != key}
            left[key] -= 1
            since[key] = set()
            for seen in since.values():
                seen.add(key)


@given(steps, st.integers(0, 40))
def test_who_leaves_changes_the_turns_of_no_other_key(
    walk: list[tuple[str, int] | str | int], gone: int
) -> None:
    queue, waiting = walked(walk)
    before = told(queue)

    left = queue.remove(gone)

    for key in "abc":
        for priority in range(3):
            lane = {
                t for t, each in waiting.items() if (each.key, each.priority) == (key, priority)
            }
            expected = [ticket for ticket in before if ticket in lane and ticket != gone]
            assert [ticket for ticket in told(queue) if ticket in lane] == expected
    if left is None:
        assert told(queue) == before
