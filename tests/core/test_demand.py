"""What is learned of how often models are asked, against counts that remember everything."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.core.demand import BELIEF, ENOUGH, LONGER, MOST_ENDED, USUAL_SERVICE_S, Demand, Pace

MEMORY_S = 600.0
served = st.lists(st.tuples(st.floats(0.0, 500.0), st.floats(0.01, 60.0)), min_size=1, max_size=30)
"""When requests come, and how long each is worked on."""


def happened(pace: Pace, requests: list[tuple[float, float]]) -> tuple[Demand, float]:
    """A model that has served all these; and when the last was over."""
    demand = Demand(pace, MEMORY_S)
    begun = [(at, 0, at) for at, _ in requests]
    over = [(at + seconds, 1, at) for at, seconds in requests]
    for at, is_over, _ in sorted(begun + over):
        if is_over:
            demand.over(at)
        else:
            demand.arrived(at)
            demand.begun(at)
    return demand, max(at + seconds for at, seconds in requests)


@given(served)
def test_the_mean_time_of_service_is_what_a_count_of_every_request_gives(
    requests: list[tuple[float, float]],
) -> None:
    pace = Pace()
    demand, _ = happened(pace, requests)
    total = sum(seconds for _, seconds in requests)

    assert demand.in_flight == 0
    assert demand.area == pytest.approx(total)
    everybody = (total + BELIEF * USUAL_SERVICE_S) / (len(requests) + BELIEF)
    assert pace.service_s == pytest.approx(everybody)
    own = (total + BELIEF * everybody) / (len(requests) + BELIEF)
    assert demand.service_s == pytest.approx(own)


@given(served, st.floats(0.0, 2000.0))
def test_the_rate_is_the_faded_count_of_arrivals(
    requests: list[tuple[float, float]], later: float
) -> None:
    demand, end = happened(Pace(), requests)
    now = end + later

    rates = [
        sum(math.exp(-(now - at) / memory_s) for at, _ in requests) / memory_s
        for memory_s in (MEMORY_S, LONGER * MEMORY_S)
    ]
    assert demand.rate(now) == pytest.approx(sum(rates) / 2)


@given(served, st.floats(0.0, 2000.0))
def test_the_load_is_the_faded_time_that_requests_were_in_flight(
    requests: list[tuple[float, float]], later: float
) -> None:
    demand, end = happened(Pace(), requests)
    now = end + later

    faded = sum(
        math.exp((at + seconds - now) / MEMORY_S) - math.exp((at - now) / MEMORY_S)
        for at, seconds in requests
    )
    assert demand.load(now) == pytest.approx(faded, abs=1e-9)


def test_a_steady_model_is_told_its_rate_and_its_load() -> None:
    demand = Demand(Pace(), MEMORY_S)
    for second in range(30_000):
        demand.arrived(float(second))
        demand.begun(float(second))
        demand.over(second + 0.5)

    assert demand.rate(30_000.0) == pytest.approx(1.0, rel=0.01)
    assert demand.load(30_000.0) == pytest.approx(0.5, rel=0.01)
    assert demand.service_s == pytest.approx(0.5, rel=0.05)


def test_a_request_served_at_once_counts_as_one_that_came_and_was_served() -> None:
    one, other = Demand(Pace(), MEMORY_S), Demand(Pace(), MEMORY_S)
    for at in (1.0, 4.0, 60.0):
        one.arrived(at)
        one.begun(at)
        other.served_at_once(at)

    assert other.in_flight == 3
    assert (one.rate(90.0), one.load(90.0)) == (other.rate(90.0), other.load(90.0))


def test_a_request_cut_off_tells_no_time_of_service() -> None:
    pace = Pace()
    demand = Demand(pace, MEMORY_S)
    demand.begun(0.0)

    demand.over(3.0, ended=False)

    assert (demand.in_flight, demand.ended, pace.ended) == (0, 0.0, 0.0)


def test_a_model_that_becomes_slower_is_noticed_after_any_number_of_requests() -> None:
    demand, now = Demand(Pace(), MEMORY_S), 0.0
    for seconds in [1.0] * 20_000 + [9.0] * int(MOST_ENDED):
        demand.begun(now)
        now += seconds
        demand.over(now)

    assert demand.service_s > 5.0


def test_a_clock_that_stands_still_counts_and_adds_no_time() -> None:
    demand = Demand(Pace(), MEMORY_S)
    for _ in range(3):
        demand.arrived(5.0)
        demand.begun(5.0)
    demand.over(5.0)

    assert (demand.in_flight, demand.area) == (2, 0.0)
    assert demand.rate(5.0) == pytest.approx((3 / MEMORY_S + 3 / MEMORY_S / LONGER) / 2)


def test_what_was_known_before_a_restart_counts_until_more_is_seen() -> None:
    demand = Demand(Pace(), MEMORY_S)

    demand.recall(0.5, 20.0, 1000.0, 100.0)

    assert demand.rate(100.0) == pytest.approx(0.5)
    believed = (20.0 * BELIEF * 10 + USUAL_SERVICE_S * BELIEF) / (BELIEF * 11)
    assert demand.service_s == pytest.approx(believed)


def test_what_is_seen_is_not_replaced_by_what_was_known_before() -> None:
    demand = Demand(Pace(), MEMORY_S)
    for _ in range(50):
        demand.arrived(1.0)
        demand.begun(1.0)
        demand.over(1.0)
    rate, service_s = demand.rate(1.0), demand.service_s

    demand.recall(0.0, 99.0, 1000.0, 1.0)

    assert (demand.rate(1.0), demand.service_s) == (rate, service_s)


def test_the_usual_wait_is_what_nine_of_ten_waited_at_most() -> None:
    pace = Pace()
    for _ in range(ENOUGH - 1):
        pace.waited(50.0)
    assert pace.usual_wait_s() == 0.0, "too few to tell"

    for waited in range(200):
        pace.waited(float(waited))

    assert pace.usual_wait_s() == 180.0
