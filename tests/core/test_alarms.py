"""When whom is looked at again."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from modelyard.core.alarms import Alarms

steps = st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0, 100)), max_size=40)
"""A subject and when it asks to be looked at; `d` stands for the time going by until then."""


def test_without_alarms_nothing_rings() -> None:
    alarms = Alarms()

    assert (alarms.next(), alarms.due(1e12)) == (math.inf, [])


def test_a_subject_has_one_alarm_the_earliest_asked_for() -> None:
    alarms = Alarms()
    alarms.set("a", 30.0)
    alarms.set("a", 10.0)
    alarms.set("a", 20.0)

    assert alarms.next() == 10.0
    assert alarms.due(10.0) == ["a"]
    assert (alarms.next(), alarms.due(100.0)) == (math.inf, [])


def test_an_alarm_rings_once_and_can_be_set_again() -> None:
    alarms = Alarms()
    alarms.set("a", 1.0)
    assert alarms.due(1.0) == ["a"]

    alarms.set("a", 5.0)

    assert (alarms.due(4.9), alarms.due(5.0)) == ([], ["a"])


def test_an_alarm_for_never_is_none() -> None:
    alarms = Alarms()

    alarms.set("a", math.inf)

    assert (alarms.next(), alarms.due(1e300)) == (math.inf, [])


@given(steps)
def test_everybody_is_looked_at_in_time_and_nobody_twice(walk: list[tuple[str, float]]) -> None:
    alarms, asked, now = Alarms(), dict[str, float](), 0.0
    for subject, span in walk:
        if subject == "d":
            now += span
            due = alarms.due(now)
            assert sorted(due) == sorted(each for each, at in asked.items() if at <= now)
            asked = {each: at for each, at in asked.items() if at > now}
        else:
            alarms.set(subject, now + span)
            asked[subject] = min(now + span, asked.get(subject, math.inf))
        assert alarms.next() == min(asked.values(), default=math.inf)
