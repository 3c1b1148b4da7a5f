from __future__ import annotations

from collections.abc import Iterable

import hypothesis.strategies as st
from hypothesis import given

from modelyard.servers.transformers.batching import Input, Waiting

MANY = 1000


def inputs(lengths: Iterable[int], lane: str = "text", job: str = "a") -> list[Input[str]]:
    return [Input(lane, length, None, job, place) for place, length in enumerate(lengths)]


def waiting(
    *more: Iterable[Input[str]], max_inputs: int = MANY, max_tokens: int = MANY
) -> Waiting[str]:
    found: Waiting[str] = Waiting(max_inputs, max_tokens)
    for each in more:
        found.add(each)
    return found


def lengths(batch: list[Input[str]]) -> list[int]:
    return [each.length for each in batch]


def test_the_oldest_input_goes_first_with_those_nearest_in_length() -> None:
    queue = waiting(inputs([10, 90, 11, 9, 50]), max_inputs=3)

    assert [lengths(queue.take()) for _ in range(3)] == [[9, 10, 11], [50, 90], []]


def test_a_batch_counts_its_padding() -> None:
    queue = waiting(inputs([10, 30, 10, 10]), max_tokens=60)

    assert [lengths(queue.take()) for _ in range(2)] == [[10, 10, 10], [30]]


def test_an_input_too_long_for_any_batch_goes_alone() -> None:
    queue = waiting(inputs([500, 2, 3]), max_tokens=100)

    assert [lengths(queue.take()) for _ in range(2)] == [[500], [2, 3]]


def test_lanes_do_not_mix() -> None:
    queue = waiting(inputs([5, 6], "query"), inputs([5, 6], "document"))

    assert [{each.lane for each in queue.take()} for _ in range(2)] == [{"query"}, {"document"}]


def test_what_is_no_longer_wanted_is_not_taken() -> None:
    queue = waiting(inputs([5, 6], job="gone"), inputs([5, 7], job="stays"))
    queue.discard("gone")

    assert len(queue) == 2
    assert {each.job for each in queue.take()} == {"stays"}
    assert not queue.take()


@given(st.lists(st.integers(1, 200), max_size=60), st.integers(1, 8), st.integers(1, 400))
def test_everything_is_taken_once_within_the_bounds_and_the_oldest_is_always_in(
    sizes: list[int], max_inputs: int, max_tokens: int
) -> None:
    queue = waiting(inputs(sizes), max_inputs=max_inputs, max_tokens=max_tokens)
    left = set(range(len(sizes)))
    while batch := queue.take():
        assert min(left) in {each.place for each in batch}
        assert len(batch) <= max_inputs
        assert len(batch) == 1 or len(batch) * max(lengths(batch)) <= max_tokens
        left -= {each.place for each in batch}

    assert not left
    assert not len(queue)
