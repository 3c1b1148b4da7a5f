"""How models and requests end that nothing is wrong with: unused, told to, waiting too long."""

from __future__ import annotations

import math

import pytest
from tests.core.world import World, gate, model

from modelyard.core.errors import ModelStopped, WaitTimeout
from modelyard.core.events import KeepWanted, RestartWanted, ShutdownAsked, StopWanted
from modelyard.core.specs import Limits


def test_an_idle_model_is_stopped_after_its_time() -> None:
    world = World(model("a", limits=Limits(idle_stop_s=60)))
    world.finish(world.up("a"))

    world.passes(59)
    assert world.stopping == {}
    world.passes(2)

    assert world.stopping == {"a": None}


def test_a_model_in_use_is_not_idle_however_long_it_takes() -> None:
    world = World(model("a", limits=Limits(idle_stop_s=60)))
    world.up("a")

    world.passes(1000)

    assert world.stopping == {}


def test_a_model_that_never_idles_out_stays() -> None:
    world = World(model("a", limits=Limits(idle_stop_s=None)))
    world.finish(world.up("a"))

    world.passes(10**6)

    assert world.stopping == {}


@pytest.mark.parametrize(("keep_s", "stays_s"), [(0.0, -1), (20.0, 19), (300.0, 299)])
def test_a_model_is_kept_as_long_as_its_client_wants(keep_s: float, stays_s: float) -> None:
    world = World(model("a", limits=Limits(idle_stop_s=60)))
    world.tell(KeepWanted("a", keep_s))
    world.finish(world.up("a"))

    if stays_s > 0:
        world.passes(stays_s)
        assert world.stopping == {}
    world.passes(2)

    assert world.stopping == {"a": None}
    assert world.scheduler.models["a"].keep_s is None


def test_a_model_that_a_client_keeps_for_ever_still_leaves_for_another() -> None:
    world = World(model("a", mib=900), model("b", mib=900), mib=1000)
    world.finish(world.up("a"))
    world.tell(KeepWanted("a", math.inf))
    world.passes(10**6)
    assert world.stopping == {}

    world.ask("b")
    world.passes(60)

    assert world.stopping == {"a": None}


def test_a_person_who_stops_a_model_has_its_waiting_requests_refused() -> None:
    world = World(model("a", limits=Limits(drain_timeout_s=7)))
    ticket = world.ask("a")

    world.tell(StopWanted("a"))

    assert isinstance(world.refused[ticket], ModelStopped)
    assert world.stopping == {"a": 7}


def test_a_person_can_stop_a_model_whose_gate_is_closed() -> None:
    world = World(model("a", limits=Limits(drain_timeout_s=7)), model("b"), mib=100)
    world.up("a")
    world.ask("b")
    world.passes(30)
    assert gate(world, "a") == "b"

    world.tell(StopWanted("a"))

    assert world.stopping == {"a": 7}


def test_stopping_again_can_shorten_a_drain_without_a_bound() -> None:
    world = World(model("a", limits=Limits(drain_timeout_s=7)))
    world.up("a")
    world.tell(ShutdownAsked())
    assert world.stopping == {"a": None}

    world.tell(StopWanted("a"))

    assert world.stopping == {"a": 7}


def test_a_request_during_a_stop_waits_and_starts_the_model_again() -> None:
    world = World(model("a"))
    world.finish(world.up("a"))
    world.tell(StopWanted("a"))

    ticket = world.ask("a")
    world.exits("a")
    world.ready("a")

    assert ticket in world.granted
    assert world.live == {"a": 2}


def test_a_restart_keeps_the_claim_and_the_queue() -> None:
    world = World(model("a"), model("b"), mib=100)
    world.up("a")
    world.tell(RestartWanted("a"))
    ticket = world.ask("a")
    world.ask("b")

    world.exits("a")

    assert world.live == {"a": 2}
    world.ready("a")
    assert ticket in world.granted


def test_a_request_times_out_with_the_reason_of_its_wait() -> None:
    world = World(model("a"), model("b", limits=Limits(max_wait_s=10)), mib=100)
    world.up("a")
    ticket = world.ask("b")

    world.passes(11)

    error = world.refused[ticket]
    assert isinstance(error, WaitTimeout)
    assert "cpu has 0 MiB free of the 100 MiB needed; held by a (ready, 1 in flight)" in str(error)


def test_shutting_down_refuses_who_waits_and_stops_who_runs() -> None:
    world = World(model("a"), model("b"), mib=100)
    world.up("a")
    ticket = world.ask("b")

    world.tell(ShutdownAsked())
    world.exits("a")

    assert ticket in world.refused
    assert world.live == {}
