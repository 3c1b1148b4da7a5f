"""Which replica a request goes to: where its beginning is known, unless too much is to do there."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from tests.core.world import model

from modelyard.core.demand import Demand, Pace
from modelyard.core.lifecycle import Replica, State
from modelyard.core.routing import FULLER, choose
from modelyard.core.specs import Limits
from modelyard.core.state import ModelState, ReplicaState

_DICE = random.Random(0)
PROMPTS = [_DICE.getrandbits(64) for _ in range(1000)]
prompts = st.integers(0, 2**64 - 1)
loads = st.lists(st.integers(0, 20), min_size=1, max_size=8)


def replicas_of(*in_flight: int, concurrency: int | None = None) -> list[ReplicaState]:
    """Ready replicas with so many requests each."""
    spec = model("a", limits=Limits(concurrency=concurrency))
    slot = ModelState(spec, Demand(Pace(), 600.0))
    for number, count in enumerate(in_flight, start=1):
        life = Replica(state=State.READY, run=number)
        slot.replicas.append(ReplicaState(slot, number, life, in_flight=count))
    return slot.replicas


def routed(replicas: list[ReplicaState]) -> dict[int, int]:
    """The number of the replica that each prompt goes to while nobody has anything to do."""
    found = {}
    for prompt in PROMPTS:
        chosen = choose(replicas, prompt)
        assert chosen is not None
        found[prompt] = chosen.number
    return found


def test_without_a_known_beginning_it_goes_where_least_is_to_do() -> None:
    replicas = replicas_of(3, 1, 2)

    assert choose(replicas, None) is replicas[1]


def test_the_same_beginning_goes_to_the_same_replica() -> None:
    replicas = replicas_of(0, 0, 0)

    assert routed(replicas) == routed(replicas)
    assert routed(replicas) == routed(replicas[::-1]), "whatever order they stand in"


def test_beginnings_spread_evenly() -> None:
    counts = Counter(routed(replicas_of(0, 0, 0, 0)).values())

    assert sorted(counts) == [1, 2, 3, 4]
    assert all(200 < count < 300 for count in counts.values()), counts


def test_beginnings_in_a_row_spread_too() -> None:
    replicas = replicas_of(0, 0, 0, 0)
    counts = Counter(chosen.number for n in range(1000) if (chosen := choose(replicas, n)))

    assert all(200 < count < 300 for count in counts.values()), counts


def test_a_replica_that_comes_takes_its_share_and_moves_nothing_else() -> None:
    replicas = replicas_of(0, 0, 0, 0)
    before, after = routed(replicas[:3]), routed(replicas)

    moved = {prompt for prompt in PROMPTS if before[prompt] != after[prompt]}
    assert {after[prompt] for prompt in moved} == {4}
    assert 200 < len(moved) < 300, "a fourth of them"


def test_a_replica_that_goes_gives_up_its_own_and_moves_nothing_else() -> None:
    replicas = replicas_of(0, 0, 0, 0)
    before = routed(replicas)
    replicas[1].life.state = State.STOPPING
    after = routed(replicas)

    moved = {prompt for prompt in PROMPTS if before[prompt] != after[prompt]}
    assert {before[prompt] for prompt in moved} == {2}
    assert len({after[prompt] for prompt in moved}) == 3, "they spread over all others"


def test_a_favourite_with_too_much_to_do_is_passed_over() -> None:
    replicas = replicas_of(0, 0, 0)
    favourite = choose(replicas, PROMPTS[0])
    assert favourite is not None
    for replica in replicas:
        replica.in_flight = 4

    favourite.in_flight = 5  # 13 and one more: 5.8 for each at most
    assert choose(replicas, PROMPTS[0]) is not favourite
    favourite.in_flight = 4
    assert choose(replicas, PROMPTS[0]) is favourite


@given(loads, prompts)
def test_no_replica_is_given_much_more_than_its_share(counts: list[int], prompt: int) -> None:
    replicas = replicas_of(*counts)

    chosen = choose(replicas, prompt)

    assert chosen is not None
    share = (sum(counts) + 1) / len(counts)
    least = min(counts)
    assert chosen.in_flight + 1 <= max(1.0, FULLER * share) or chosen.in_flight == least


@given(loads, st.one_of(st.none(), prompts), st.integers(1, 5))
def test_it_goes_only_where_there_is_room(
    counts: list[int], prompt: int | None, concurrency: int
) -> None:
    replicas = replicas_of(*counts, concurrency=concurrency)
    for replica in replicas[::3]:
        replica.promised_to = "b"

    chosen = choose(replicas, prompt)

    having = [each for each in replicas if each.in_flight < concurrency and not each.promised_to]
    assert (chosen in having) if having else chosen is None
