"""Limits of a key: never more than was promised, never less, and nobody else's business."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.core.quota import (
    MOST_TOKENS,
    NS,
    Allowance,
    Balance,
    Bucket,
    Quota,
    Rate,
    Refusal,
)

RATES = st.builds(Rate, st.integers(1, 1_000_000), st.integers(1, 86_400))
GAPS = st.one_of(st.just(0), st.integers(0, 10 * NS), st.integers(0, 10_000 * NS))
"""Nanoseconds between two events."""


class Exact:
    """The same bucket in fractions: what it holds, at the moment it was last looked at."""

    def __init__(self, rate: Rate) -> None:
        self.per_ns = Fraction(rate.amount, rate.per_s * NS)
        self.most = self.holds = Fraction(rate.amount)
        self.at = 0

    def level(self, now: int) -> Fraction:
        self.holds = min(self.most, self.holds + (now - self.at) * self.per_ns)
        self.at = now
        return self.holds


@given(RATES, st.lists(st.tuples(GAPS, st.floats(0, 1.5)), max_size=30))
def test_a_bucket_counts_like_exact_arithmetic(rate: Rate, steps: list[tuple[int, float]]) -> None:
    bucket, exact, now = Bucket(rate), Exact(rate), 0
    for gap, share in steps:
        now += gap
        count = int(share * rate.amount)
        level = exact.level(now)
        assert bucket.left(now) == level // 1
        assert bucket.has(count, now) is (level >= count) is (bucket.wait_ns(count, now) == 0)
        bucket.take(count, now)
        exact.holds -= count


@given(RATES, st.lists(st.tuples(GAPS, st.floats(0, 1)), min_size=1, max_size=30))
def test_no_span_of_time_sees_more_than_what_is_saved_and_what_flows_in(
    rate: Rate, steps: list[tuple[int, float]]
) -> None:
    bucket, now = Bucket(rate), 0
    taken: list[tuple[int, int]] = []
    for gap, share in steps:
        now += gap
        count = int(share * rate.amount)
        if bucket.wait_ns(count, now) == 0:
            bucket.take(count, now)
            taken.append((now, count))
    for at, (begin, _) in enumerate(taken):
        total = 0
        for end, count in taken[at:]:
            total += count
            assert total <= rate.amount + Fraction((end - begin) * rate.amount, rate.per_s * NS)


@given(RATES, st.data())
def test_who_waits_as_long_as_told_gets_it_and_not_a_nanosecond_earlier(
    rate: Rate, data: st.DataObject
) -> None:
    bucket = Bucket(rate)
    bucket.take(data.draw(st.integers(0, 2 * rate.amount)), 0)
    count = data.draw(st.integers(1, rate.amount))
    wait = bucket.wait_ns(count, 0)

    assert bucket.wait_ns(count, wait) == 0
    assert wait == 0 or bucket.wait_ns(count, wait - 1) == 1
    assert bucket.left(bucket.reset_ns(0)) == rate.amount


REQUESTS = st.lists(
    st.tuples(GAPS, st.integers(0, 100_000), st.floats(0, 1), st.integers(0, 40)),
    min_size=1,
    max_size=40,
)
"""Gap before it, bytes of its body, share of what is held for it that it uses, how many later
requests it outlives."""


@given(RATES, RATES, st.integers(1, 5), REQUESTS)
def test_whatever_requests_come_and_go_no_limit_is_exceeded(
    requests: Rate, tokens: Rate, at_once: int, script: list[tuple[int, int, float, int]]
) -> None:
    allowance = Allowance(Quota(requests, tokens, at_once))
    now, begun, charged = 0, [], []
    running: list[tuple[int, int, int, int]] = []
    for number, (gap, size, share, outlives) in enumerate(script):
        now += gap
        for one in [one for one in running if one[0] <= number]:
            running.remove(one)
            allowance.leave(one[1], one[2], one[3], 0, now)
            charged.append((now, one[3]))
        held = allowance.enter(size, now)
        if isinstance(held, int):
            begun.append((now, 1))
            running.append((number + 1 + outlives, held, size, int(held * share)))
        assert allowance.running == len(running) <= at_once

    for rate, spent in ((requests, begun), (tokens, charged)):
        for at, (begin, _) in enumerate(spent):
            total = 0
            for end, count in spent[at:]:
                total += count
                flowed = Fraction((end - begin) * rate.amount, rate.per_s * NS)
                assert total <= rate.amount + flowed


@given(RATES, RATES, REQUESTS)
def test_a_refused_request_has_taken_nothing(
    requests: Rate, tokens: Rate, script: list[tuple[int, int, float, int]]
) -> None:
    allowance, now = Allowance(Quota(requests, tokens, 3)), 0
    for gap, size, _, _ in script:
        now += gap
        before = (allowance.running, allowance.balances(now))
        if isinstance(allowance.enter(size, now), Refusal):
            assert before == (allowance.running, allowance.balances(now))


@given(RATES, RATES, REQUESTS)
def test_a_client_that_obeys_what_it_is_told_is_never_refused_twice(
    requests: Rate, tokens: Rate, script: list[tuple[int, int, float, int]]
) -> None:
    allowance, now = Allowance(Quota(requests, tokens)), 0
    for gap, size, share, _ in script:
        now += gap
        held = allowance.enter(size, now)
        if isinstance(held, Refusal):
            # Seconds are floats; nothing else of it is inexact.
            now += int(held.wait_s * NS) + int(held.wait_s) + 1
            again = allowance.enter(size, now)
            if isinstance(again, Refusal):  # the other limit has its say only now
                assert again.limit != held.limit
                now += int(again.wait_s * NS) + int(again.wait_s) + 1
                again = allowance.enter(size, now)
            assert isinstance(again, int)
            held = again
        allowance.leave(held, size, int(held * share), 0, now)


def test_a_key_that_has_used_up_its_limits_takes_nothing_from_another() -> None:
    quota = Quota(Rate(2, 60), Rate(1000, 60), 2)
    greedy, modest = Allowance(quota), Allowance(quota)
    for _ in range(5):
        greedy.enter(100, 0)

    assert isinstance(greedy.enter(100, 0), Refusal)
    assert isinstance(modest.enter(100, 0), int)


def test_what_an_estimate_missed_is_a_debt_that_is_waited_for() -> None:
    allowance = Allowance(Quota(tokens=Rate(1000, 10)))
    held = allowance.enter(40, 0)
    assert isinstance(held, int)
    allowance.leave(held, 40, 2500, 500, 0)
    refused = allowance.enter(0, 0)

    assert allowance.balances(0) == [Balance("tokens", 1000, 0, 30 * NS)]
    assert isinstance(refused, Refusal)
    assert (refused.limit, refused.wait_s > 20) == ("tokens", True)


def test_a_request_larger_than_the_limit_is_let_in_when_all_of_it_is_there() -> None:
    allowance = Allowance(Quota(tokens=Rate(100, 60)))

    assert allowance.enter(1_000_000, 0) == 100
    assert allowance.enter(1, 0) == Refusal("tokens", 60.0)


def test_tokens_are_held_back_while_a_request_runs_and_given_back_after_it() -> None:
    allowance = Allowance(Quota(tokens=Rate(1000, 60)))
    held = allowance.enter(400, 0)
    assert isinstance(held, int)
    during = allowance.balances(0)[0].left
    allowance.leave(held, 400, 3, 4, 0)

    assert (held, during) == (357, 643)
    assert allowance.balances(0)[0].left == 993


def test_estimates_follow_what_requests_really_use() -> None:
    allowance = Allowance(Quota(tokens=Rate(10**9, 1)))
    first = allowance.estimate(1_000_000)
    for at in range(100):
        held = allowance.enter(1_000_000, at * NS)
        assert isinstance(held, int)
        allowance.leave(held, 1_000_000, 1500, 20, at * NS)

    assert first > 250_000
    assert 1500 <= allowance.estimate(1_000_000) <= 1600


@pytest.mark.parametrize("told", [-5, 2**62])
def test_an_engine_that_tells_nonsense_neither_refills_a_bucket_nor_closes_it_for_ever(
    told: int,
) -> None:
    allowance = Allowance(Quota(tokens=Rate(1000, 1)))
    held = allowance.enter(10, 0)
    assert isinstance(held, int)
    allowance.leave(held, 10, told, 0, 0)

    assert allowance.balances(0)[0].left <= 1000
    assert allowance.balances(0)[0].reset_ns <= MOST_TOKENS * NS // 1000


def test_limits_that_stay_the_same_forget_nothing_when_others_change() -> None:
    allowance = Allowance(Quota(Rate(2, 60), Rate(1000, 60)))
    allowance.enter(0, 0)
    allowance.change(Quota(Rate(2, 60), Rate(9000, 60), 7))

    assert [(one.limit, one.amount, one.left) for one in allowance.balances(0)] == [
        ("requests", 2, 1),
        ("tokens", 9000, 9000 - allowance.estimate(0)),
    ]
    assert allowance.running == 1


def test_a_key_without_limits_is_never_refused() -> None:
    allowance = Allowance(Quota())

    assert {allowance.enter(10**9, 0) for _ in range(1000)} == {0}
    assert allowance.balances(0) == []
