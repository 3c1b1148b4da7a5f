"""What follows when engines fail to start, die or are suspected."""

from __future__ import annotations

from tests.core.world import World, model

from modelyard.core.errors import EngineStartFailed
from modelyard.core.events import EngineCleared, EngineSuspected, StartWanted
from modelyard.core.lifecycle import State
from modelyard.core.policy import Policy


def test_a_failed_start_is_tried_again_while_requests_wait() -> None:
    world = World(model("a"), policy=Policy(backoff_s=1))
    ticket = world.ask("a")

    world.exits("a", "port taken")
    assert world.state("a") == State.BACKOFF
    world.passes(1.1)

    assert world.live == {"a": 2}
    world.ready("a")
    assert [ticket] == world.granted


def test_after_the_last_attempt_requests_get_the_reason() -> None:
    world = World(model("a"), policy=Policy(backoff_s=1, max_start_attempts=2))
    ticket = world.ask("a")

    world.exits("a", "out of memory")
    world.passes(2)
    world.exits("a", "out of memory")

    error = world.refused[ticket]
    assert isinstance(error, EngineStartFailed)
    assert "out of memory" in error.message
    later = world.ask("a")
    assert "out of memory" in str(world.refused[later])


def test_a_permanent_failure_is_told_at_once() -> None:
    world = World(model("a"))
    ticket = world.ask("a")

    world.exits("a", "not a GGUF file", permanent=True)

    assert "not a GGUF file" in str(world.refused[ticket])


def test_a_failed_model_is_tried_again_after_its_pause() -> None:
    world = World(model("a"), policy=Policy(failed_cooldown_s=300))
    world.ask("a")
    world.exits("a", "broken", permanent=True)

    world.passes(301)
    ticket = world.ask("a")
    world.ready("a")

    assert ticket in world.granted


def test_a_person_can_start_a_failed_model_at_once() -> None:
    world = World(model("a"))
    world.ask("a")
    world.exits("a", "broken", permanent=True)

    world.tell(StartWanted("a"))

    assert world.live == {"a": 2}


def test_an_engine_that_dies_while_ready_is_replaced_at_once_on_demand() -> None:
    world = World(model("a"))
    world.up("a")
    world.exits("a", "killed")

    ticket = world.ask("a")

    assert world.live == {"a": 2}
    world.ready("a")
    assert ticket in world.granted


def test_leases_of_a_dead_run_do_not_count_for_the_next() -> None:
    world = World(model("a"))
    old = world.up("a")
    world.exits("a", "killed")
    world.up("a")

    world.finish(old, served=False)

    assert world.scheduler.models["a"].in_flight == 1
    world.check()


def test_a_suspected_engine_gets_nobody_new_until_it_is_cleared() -> None:
    world = World(model("a"))
    world.up("a")

    world.tell(EngineSuspected("a", 1))
    ticket = world.ask("a")
    assert ticket not in world.granted
    world.tell(EngineCleared("a", 1))

    assert ticket in world.granted


def test_a_suspicion_ends_with_its_engine() -> None:
    world = World(model("a"))
    world.up("a")
    world.tell(EngineSuspected("a", 1))
    ticket = world.ask("a")

    world.exits("a", "killed")
    world.ready("a")

    assert ticket in world.granted


def test_an_engine_that_dies_on_every_request_is_given_up() -> None:
    world = World(model("a"), policy=Policy(max_start_attempts=3, backoff_s=1))
    for _ in range(3):
        world.passes(10)
        world.up("a")
        world.exits("a", "segfault")

    ticket = world.ask("a")

    assert "segfault" in str(world.refused[ticket])


def test_a_preloaded_model_that_dies_comes_back_by_itself() -> None:
    world = World(model("a", preload=True))
    world.ready("a")

    world.exits("a", "killed")
    world.passes(1)

    assert world.live == {"a": 2}


def test_a_bug_in_a_lifecycle_fails_that_model_and_spares_the_others() -> None:
    world = World(model("a"), model("b"))
    world.up("a")
    waiting = world.ask("b")

    world.perform(world.scheduler.fail("b", "story"))
    world.exits("b")

    assert "story" in str(world.refused[waiting])
    assert world.state("a") == State.READY
