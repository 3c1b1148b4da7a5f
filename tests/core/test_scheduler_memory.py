"""Who gets memory, who leaves for it, and whose turn it is, on small worlds."""

from __future__ import annotations

from tests.core.world import World, gate, model

from modelyard.core.errors import ModelTooLarge, NoDevice
from modelyard.core.events import RequestLeft, RequestWaits
from modelyard.core.policy import Policy
from modelyard.core.specs import Limits, Profile


def test_two_models_that_fit_run_side_by_side() -> None:
    world = World(model("a"), model("b"))

    world.ask("a")
    world.ask("b")

    assert world.live == {"a": 1, "b": 1}


def test_the_least_recently_used_idle_model_makes_room() -> None:
    world = World(model("a"), model("b"), model("c"))
    for name in ("a", "b"):
        world.finish(world.up(name))
        world.now += 1
    world.finish(world.ask("a"))
    world.now += 1

    ticket = world.ask("c")

    assert world.stopping == {"b": None}
    world.exits("b")
    world.ready("c")
    assert ticket in world.granted


def test_a_busy_model_is_not_stopped_for_another() -> None:
    world = World(model("a"), model("b"), model("c"))
    busy = world.up("a")
    world.up("b")

    world.ask("c")
    world.passes(5)

    assert world.stopping == {}
    world.finish(busy)
    assert world.stopping == {"a": None}


def test_a_pinned_model_stays() -> None:
    world = World(model("a", pinned=True), model("b"), model("c"))
    world.finish(world.up("a"))
    world.finish(world.up("b"))

    world.ask("c")
    world.passes(10_000)

    assert "a" in world.live
    assert "a" not in world.stopping


def test_memory_being_freed_is_promised_to_one_model_only() -> None:
    world = World(model("a"), model("b"), model("c"), model("d"))
    world.finish(world.up("a"))
    world.now += 1
    world.finish(world.up("b"))

    world.ask("c")
    assert list(world.stopping) == ["a"]
    world.ask("d")
    assert list(world.stopping) == ["a", "b"]
    world.exits("a")

    assert world.live == {"b": 1, "c": 1}


def test_as_few_models_as_possible_leave() -> None:
    world = World(model("small", 50), model("big", 150), model("new", 140))
    world.finish(world.up("small"))
    world.now += 1
    world.finish(world.up("big"))

    world.ask("new")

    assert list(world.stopping) == ["big"]


def test_a_small_model_starts_beside_memory_promised_to_a_big_one() -> None:
    world = World(model("a", 150), model("big", 160), model("small", 40))
    world.finish(world.up("a"))

    world.ask("big")
    world.ask("small")

    assert "small" in world.live
    world.exits("a")
    assert "big" in world.live


def test_a_model_that_can_never_fit_is_refused_at_once_with_the_numbers() -> None:
    world = World(model("huge", 900))

    ticket = world.ask("huge")

    error = world.refused[ticket]
    assert isinstance(error, ModelTooLarge)
    assert "needs 900 MiB on cpu, which can give 200 MiB" in error.message


def test_a_model_that_cannot_fit_beside_pinned_ones_says_so() -> None:
    world = World(model("a", 150, pinned=True), model("b", 100))
    world.up("a")

    ticket = world.ask("b")

    assert "beside pinned a" in str(world.refused[ticket])


def test_the_first_profile_that_fits_is_taken() -> None:
    big = Profile("big", memory_mib={"cpu": 180})
    small = Profile("small", memory_mib={"cpu": 60})
    world = World(model("a"), model("b", profiles=(big, small)))
    world.up("a")

    world.ask("b")

    placement = world.scheduler.models["b"].placement
    assert placement is not None
    assert (placement.profile, placement.claims_mib) == ("small", {"cpu": 60})


def test_a_missing_device_is_named_with_what_is_present() -> None:
    world = World(model("a", profiles=(Profile("gpu", devices=("rtx 4060",)),)))

    ticket = world.ask("a")

    assert isinstance(world.refused[ticket], NoDevice)
    assert "needs rtx 4060; present: cpu" in str(world.refused[ticket])


def test_a_model_in_use_closes_its_gate_when_another_has_waited_long_enough() -> None:
    world = World(model("a"), model("b"), mib=100, policy=Policy(fair_after_s=20))
    busy = world.up("a")
    waiting = world.ask("b")

    assert gate(world, "a") == ""
    world.passes(22)

    assert gate(world, "a") == "b"
    assert world.stopping == {}, "nobody is cut"
    late = world.ask("a")
    assert late not in world.granted, "new requests wait while it drains"
    world.finish(busy)
    assert world.stopping == {"a": None}
    world.exits("a")
    world.ready("b")
    assert waiting in world.granted


def test_the_gate_opens_again_when_nobody_waits_behind_it() -> None:
    world = World(model("a"), model("b"), mib=100)
    world.up("a")
    waiting = world.ask("b")
    world.passes(30)
    late = world.ask("a")
    assert late not in world.granted

    world.tell(RequestLeft("b", waiting))

    assert late in world.granted
    assert world.live == {"a": 1}


def test_within_one_model_a_key_of_higher_priority_goes_first_within_the_age_bound() -> None:
    one_at_a_time = Limits(concurrency=1)
    world = World(model("a", limits=one_at_a_time), policy=Policy(fair_after_s=10))
    world.finish(world.up("a"))
    running = world.ask("a")
    world.tell(RequestWaits("a", 101, "guest", 0))
    for ticket in range(102, 106):
        world.tell(RequestWaits("a", ticket, "staff", 1))

    world.finish(running)
    assert world.granted[-1] == 102
    world.passes(10)
    for _ in range(2):
        world.finish(world.granted[-1])

    assert world.granted[-2:] == [103, 101], "nobody starves behind a higher priority"


def test_a_higher_priority_goes_first() -> None:
    world = World(model("a"), model("b"), model("c", priority=5), mib=100)
    world.finish(world.up("a"))
    busy = world.ask("a")

    world.ask("b")
    world.ask("c")
    world.finish(busy)
    world.exits("a")

    assert world.live == {"c": 1}
