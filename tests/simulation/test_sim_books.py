"""The books refuse what real devices cannot do, and tell how it came to that."""

from __future__ import annotations

import pytest

from modelyard.simulation.books import Books, LawBroken
from modelyard.simulation.costs import costs_of
from modelyard.simulation.values import Job, Model, Setup
from modelyard.simulation.yard import Rules, Tier, Yard

SETUP = Setup(
    {name: Model(name, 10, 600, costs_of("gguf", 10)) for name in ("a", "b")},
    [1000, 1000],
    concurrency=1,
    host_mib=100,
)


@pytest.fixture
def books() -> Books:
    return Books(SETUP)


def test_a_device_never_holds_more_than_it_has(books: Books) -> None:
    books.take("a", [0], 600)
    with pytest.raises(LawBroken, match="device 0 would hold 1200 of 1000 MiB with 'b'"):
        books.take("b", [0], 600)


def test_the_host_never_holds_more_than_it_has(books: Books) -> None:
    with pytest.raises(LawBroken, match="the host would hold 101 of 100 MiB"):
        books.take_host("a", 101)


def test_memory_is_given_back_once(books: Books) -> None:
    with pytest.raises(LawBroken, match="gave back memory of device 1 twice"):
        books.give("a", [1], 1)


def test_memory_moves_for_one_model_at_a_time_on_a_device(books: Books) -> None:
    books.begin("start", "a", (0,), 5)
    books.begin("start", "b", (1,), 5)
    with pytest.raises(LawBroken, match="device 1 is to start 'c' during a move of 'b'"):
        books.begin("start", "c", (1,), 5)


def test_a_request_is_served_once(books: Books) -> None:
    job = Job("a", 0, 1)
    books.serve(job, [0], 1)
    with pytest.raises(LawBroken, match="was served twice"):
        books.serve(job, [0], 1)


def test_a_model_serves_no_more_at_once_than_it_can(books: Books) -> None:
    with pytest.raises(LawBroken, match="'a' serves 2 requests at once"):
        books.serve(Job("a", 0, 1), [0], 2)


def test_the_story_names_the_moves_before(books: Books) -> None:
    books.now = 3.0
    books.begin("start", "a", (0,), 5)
    books.now = 4.5
    with pytest.raises(LawBroken) as told:
        books.audit(1)

    assert "at 4.500 s 0 of 1 requests were served" in str(told.value)
    assert "  3.000 s: start a" in str(told.value)


class Careless:
    """Brings up whoever is asked for, on the first device, and looks at nothing."""

    def arrive(self, yard: Yard, job: Job) -> None:
        """Nothing to remember."""

    def step(self, yard: Yard) -> None:
        for slot in yard.waiting():
            yard.swap(slot, (0,), [])


class Idle(Careless):
    """Does nothing."""

    def step(self, yard: Yard) -> None:
        """Nobody is served."""


class Cutting(Careless):
    """Throws out whoever is there."""

    def step(self, yard: Yard) -> None:
        yard.serve_all()
        up = [slot for slot in yard.slots.values() if slot.tier is Tier.UP]
        for slot in yard.waiting():
            if not yard.books.is_moving(0):
                yard.swap(slot, (0,), up)


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        (Careless(), "device 0 would hold 1200"),
        (Idle(), "0 of 2 requests were served"),
        (Cutting(), "'a' is to leave while it serves"),
    ],
)
def test_a_policy_that_breaks_a_law_is_found_out(rules: Rules, told: str) -> None:
    with pytest.raises(LawBroken, match=told):
        Yard(SETUP, rules).run([Job("a", 0, 50), Job("b", 10, 50)])
