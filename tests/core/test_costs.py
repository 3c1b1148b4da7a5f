"""What changes are expected to take, before the first was seen and after."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.world import World, model

from modelyard.core.costs import SHARE, Costs, Step
from modelyard.core.events import CostKnown, CostLearned, EngineNews, StopWanted
from modelyard.core.lifecycle import EngineExited, EngineReady
from modelyard.core.specs import Placement

seconds = st.floats(0.0, 1000.0)


def placed(mib: int = 24 * 1024, cards: int = 1, kinds: str = "rtx 3090") -> Placement:
    names = tuple(f"GPU-{number}" for number in range(cards))
    return Placement("gpu", dict.fromkeys(names, mib), names, kinds)


def test_an_engine_that_was_never_seen_starts_as_its_kind_and_size_do() -> None:
    costs = Costs()
    vllm, llamacpp = model("a", engine="vllm"), model("b")

    assert costs.seconds(vllm, placed(), Step.START) > costs.seconds(llamacpp, placed(), Step.START)
    small, big = placed(1024), placed(24 * 1024)
    for step in (Step.START, Step.SLEEP_1, Step.WAKE_1, Step.WAKE_2):
        assert costs.seconds(vllm, small, step) < costs.seconds(vllm, big, step)


def test_an_engine_of_a_kind_that_nobody_measured_has_a_guess_too() -> None:
    assert Costs().seconds(model("a", engine="custom"), placed(), Step.START) > 0


def test_waking_is_expected_to_take_less_than_starting() -> None:
    for engine in ("vllm", "transformers", "custom"):
        spec = model("a", engine=engine)
        wakes = [Costs().seconds(spec, placed(), step) for step in (Step.WAKE_1, Step.WAKE_2)]
        assert max(wakes) < Costs().seconds(spec, placed(), Step.START)


def test_weights_shared_by_cards_are_copied_at_once() -> None:
    costs, spec = Costs(), model("a", engine="vllm")

    two = costs.seconds(spec, placed(12 * 1024, cards=2), Step.WAKE_1)

    assert two == pytest.approx(costs.seconds(spec, placed(12 * 1024), Step.WAKE_1))


def test_the_first_duration_seen_replaces_the_guess() -> None:
    costs, spec = Costs(), model("a", engine="vllm")

    assert costs.learn(placed(), Step.START, 3.0) == 3.0
    assert costs.seconds(spec, placed(), Step.START) == 3.0


def test_what_is_seen_here_says_nothing_of_another_card_or_step() -> None:
    costs, spec = Costs(), model("a")
    before = costs.seconds(spec, placed(kinds="rtx 4060"), Step.START)
    stop = costs.seconds(spec, placed(), Step.STOP)

    costs.learn(placed(), Step.START, 500.0)

    assert costs.seconds(spec, placed(kinds="rtx 4060"), Step.START) == before
    assert costs.seconds(spec, placed(), Step.STOP) == stop


@given(st.lists(seconds, min_size=1, max_size=20))
def test_what_is_expected_lies_within_what_was_seen(seen: list[float]) -> None:
    costs = Costs()
    for each in seen:
        expected = costs.learn(placed(), Step.START, each)

    assert min(seen) - 1e-6 <= expected <= max(seen) + 1e-6


@given(seconds, seconds)
def test_one_slow_start_is_no_rule(usual: float, slow: float) -> None:
    costs = Costs()
    costs.learn(placed(), Step.START, usual)

    expected = costs.learn(placed(), Step.START, slow)

    assert expected - usual == pytest.approx(SHARE * (slow - usual))


def test_the_scheduler_learns_what_it_sees_and_says_so() -> None:
    world = World(model("a"))
    world.ask("a")
    world.passes(7)
    learned = world.tell(EngineNews("a", EngineReady(world.live["a"])))
    assert CostLearned("a", "default", "cpu", "start", 7.0) in learned

    world.finish(world.granted[0])
    world.tell(StopWanted("a"))
    world.passes(2)
    run = world.live.pop("a")
    world.stopping.clear()

    learned = world.tell(EngineNews("a", EngineExited(run)))
    assert CostLearned("a", "default", "cpu", "stop", 2.0) in learned


def test_the_wait_for_answers_in_flight_is_no_part_of_a_stop() -> None:
    world = World(model("a"))
    ticket = world.up("a")
    world.tell(StopWanted("a"))
    world.passes(40)
    world.finish(ticket)
    world.passes(2)
    run = world.live.pop("a")
    world.stopping.clear()

    learned = world.tell(EngineNews("a", EngineExited(run)))

    assert CostLearned("a", "default", "cpu", "stop", 2.0) in learned


def test_what_earlier_runs_of_the_server_saw_counts_until_this_one_sees_it() -> None:
    world = World(model("a"))
    costs = world.scheduler.models["a"].costs
    world.tell(CostKnown("a", "default", "cpu", "start", 100.0))
    assert costs.known["default", "cpu", Step.START] == 100.0

    world.ask("a")
    world.passes(50)
    world.ready("a")
    assert costs.known["default", "cpu", Step.START] == pytest.approx(85.0)
    world.tell(CostKnown("a", "default", "cpu", "start", 1.0))

    assert costs.known["default", "cpu", Step.START] == pytest.approx(85.0)
