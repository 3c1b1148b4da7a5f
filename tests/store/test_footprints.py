"""What is remembered of measurements, and what is claimed for them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.store import Footprint, FootprintKey, Measured, claim_mib
from modelyard.store.footprints import LARGEST_MARGIN_MIB, LARGEST_MIB, RECENT, STEP_MIB, observe

KEY = FootprintKey("m", "default", "llamacpp", "1", "00", "cpu", "ready")
MIB = st.one_of(st.integers(0, LARGEST_MIB), st.integers(0, 100_000))
MEASUREMENTS = st.lists(MIB, min_size=1, max_size=2 * RECENT)


def observed(*mib: int) -> Footprint:
    footprint = None
    for now, measured in enumerate(mib):
        footprint = observe(footprint, KEY, {"0": measured}, float(now))
    assert footprint is not None
    return footprint


def claimed(*mib: int) -> int:
    return claim_mib(observed(*mib))["0"]


@given(MEASUREMENTS)
def test_a_claim_is_never_below_a_recent_measurement_nor_far_above_all_of_them(
    mib: list[int],
) -> None:
    largest = max(mib[-RECENT:])

    assert largest <= claimed(*mib) <= largest + LARGEST_MARGIN_MIB + STEP_MIB


@given(MEASUREMENTS, st.data())
def test_measuring_more_never_lowers_a_claim(mib: list[int], data: st.DataObject) -> None:
    more = [data.draw(st.integers(one, LARGEST_MIB)) for one in mib]

    assert claimed(*mib) <= claimed(*more)


@given(MIB, st.integers(1, 2 * RECENT))
def test_measuring_the_same_again_leaves_a_claim_as_it_is(mib: int, times: int) -> None:
    assert claimed(*[mib] * times) == claimed(mib)


@given(MEASUREMENTS, MIB)
def test_one_odd_measurement_is_forgotten_after_enough_others(mib: list[int], odd: int) -> None:
    settled = [mib[0]] * RECENT

    assert claimed(*mib, odd, *settled) == claimed(*settled)


@pytest.mark.parametrize(
    ("measured", "claim"),
    [(0, 0), (1, 16), (100, 112), (512, 528), (4000, 4064), (22118, 22192)],
)
def test_a_claim_is_what_was_measured_with_a_small_margin(measured: int, claim: int) -> None:
    assert claimed(measured) == claim


def test_what_is_known_of_a_position_is_its_last_measurements_their_average_and_the_largest() -> (
    None
):
    known = observed(*range(1000, 2000, 100)).devices["0"]

    assert known.recent_mib == tuple(range(1200, 2000, 100))
    assert (known.latest_mib, known.max_mib, known.seen, known.updated_at) == (1900, 1900, 10, 9.0)
    assert 1500 < known.average_mib < 1900


def test_a_position_that_was_not_measured_keeps_what_is_known_of_it() -> None:
    before = observe(None, KEY, {"0": 500, "cpu": 70}, 1.0)
    after = observe(before, KEY, {"0": 600}, 2.0)

    assert after.devices["cpu"] == before.devices["cpu"]
    assert after.devices["0"].recent_mib == (500, 600)


def test_a_measurement_does_not_change_what_was_known_before_it() -> None:
    before = observe(None, KEY, {"0": 500}, 1.0)
    observe(before, KEY, {"0": 600, "1": 600}, 2.0)

    assert before.devices == {"0": Measured((500,), 500, 500.0, 1, 1.0)}


@pytest.mark.parametrize(
    ("mib", "now"),
    [
        ({}, 1.0),
        ({"": 5}, 1.0),
        ({"0": -1}, 1.0),
        ({"0": LARGEST_MIB + 1}, 1.0),
        ({"0": 1.5}, 1.0),
        ({"0": True}, 1.0),
        ({"0": 5, "1": -5}, 1.0),
        ({"0": 5}, math.nan),
        ({"0": 5}, math.inf),
    ],
)
def test_what_cannot_be_a_measurement_is_refused(mib: dict[str, int], now: float) -> None:
    with pytest.raises(ValueError, match=r"memory|position|time"):
        observe(None, KEY, mib, now)


def test_a_measurement_of_another_key_is_refused() -> None:
    with pytest.raises(ValueError, match="does not belong"):
        observe(observed(5), replace(KEY, state="asleep2"), {"0": 5}, 1.0)
