"""Which devices a model gets, and what happens when they come, go or fill up."""

from __future__ import annotations

from tests.core.world import World, card, held, model, on

from modelyard.core.errors import NoDevice
from modelyard.core.events import DevicesChanged, MemoryMeasured, StopWanted
from modelyard.core.specs import Device


def test_two_models_land_on_different_identical_cards() -> None:
    profiles = on("rtx 3090", mib=80)
    world = World(
        model("a", profiles=profiles), model("b", profiles=profiles), devices=[card(0), card(1)]
    )

    world.ask("a")
    world.ask("b")

    assert sorted(list(held(world, name)) for name in "ab") == [["GPU-0"], ["GPU-1"]]


def test_a_profile_over_two_identical_cards_gets_both() -> None:
    world = World(model("a", profiles=on("rtx 3090", "rtx 3090")), devices=[card(0), card(1)])

    world.ask("a")

    assert held(world, "a") == {"GPU-0": 100, "GPU-1": 100}


def test_two_cards_are_not_one_card_twice() -> None:
    world = World(model("a", profiles=on("rtx 3090", "rtx 3090")), devices=[card(0)])

    ticket = world.ask("a")

    assert "needs 2 different devices; present: rtx 3090" in str(world.refused[ticket])


def test_an_earlier_profile_is_preferred_even_if_idle_models_must_leave_for_it() -> None:
    profiles = (*on("rtx 3090", mib=150, name="gpu"), *on("cpu", mib=150, name="host"))
    world = World(
        model("a", profiles=on("rtx 3090", mib=150)),
        model("b", profiles=profiles),
        devices=[card(0), Device("cpu", "cpu", 500, 500)],
    )
    world.finish(world.up("a"))

    world.ask("b")
    assert list(world.stopping) == ["a"]
    world.exits("a")

    assert held(world, "b") == {"GPU-0": 150}


def test_a_later_profile_is_taken_while_the_earlier_one_is_in_use_and_the_reason_is_kept() -> None:
    profiles = (*on("rtx 3090", mib=150, name="gpu"), *on("cpu", mib=150, name="host"))
    world = World(
        model("a", profiles=on("rtx 3090", mib=150)),
        model("b", profiles=profiles),
        devices=[card(0), Device("cpu", "cpu", 500, 500)],
    )
    world.up("a")

    world.ask("b")

    assert held(world, "b") == {"cpu": 150}
    assert world.scheduler.models["b"].passed_over == [
        "profile 'gpu': GPU-0 has 50 MiB free of the 150 MiB needed"
    ]


def test_a_vanished_card_ends_its_replica_and_the_model_moves() -> None:
    profiles = (*on("rtx 3090", name="gpu"), *on("cpu", name="host"))
    host = Device("cpu", "cpu", 500, 500)
    world = World(model("a", profiles=profiles), devices=[card(0), host])
    world.up("a")

    world.tell(DevicesChanged((host,)))
    assert world.stopping == {"a": 0.0}
    waiting = world.ask("a")
    world.exits("a")
    world.ready("a")

    assert waiting in world.granted
    assert held(world, "a") == {"cpu": 100}


def test_who_waits_for_a_card_that_vanished_is_told() -> None:
    world = World(model("a", profiles=on("rtx 3090")), devices=[card(0)])
    world.up("a")
    world.tell(StopWanted("a"))
    waiting = world.ask("a")

    world.tell(DevicesChanged((Device("cpu", "cpu", 500, 500),)))

    assert isinstance(world.refused[waiting], NoDevice)


def test_on_one_card_models_start_one_after_another_and_on_two_at_once() -> None:
    profiles = on("rtx 3090", mib=50)
    models = [model(name, profiles=profiles) for name in "abc"]
    world = World(*models, devices=[card(0), card(1)])

    for name in "abc":
        world.ask(name)
    assert world.live == {"a": 1, "b": 1}
    world.ready("a")

    assert world.live == {"a": 1, "b": 1, "c": 1}


def test_nobody_leaves_a_card_while_another_starts_there() -> None:
    idle, starting, waiting = (
        model("idle", profiles=on("rtx 3090", mib=90)),
        model("starting", profiles=on("rtx 3090", mib=90)),
        model("waiting", profiles=on("rtx 3090", mib=90)),
    )
    world = World(idle, starting, waiting, devices=[card(0)])
    world.finish(world.up("idle"))
    world.ask("starting")

    world.ask("waiting")
    assert world.stopping == {}
    world.ready("starting")

    assert list(world.stopping) == ["idle"]


def test_memory_held_beyond_the_claim_counts() -> None:
    world = World(model("a", 100), model("b", 80))
    world.up("a")

    world.tell(MemoryMeasured("a", 1, {"cpu": 150}))
    world.ask("b")

    assert world.live == {"a": 1}


def test_a_strangers_memory_is_waited_for_and_not_taken_for_never() -> None:
    world = World(model("a", 150))
    used = Device("cpu", "cpu", 200, 80, strangers_mib=120, ceiling_mib=200)
    world.tell(DevicesChanged((used,)))

    ticket = world.ask("a")
    assert ticket not in world.refused
    assert world.live == {}
    world.tell(DevicesChanged((Device("cpu", "cpu", 200, 200, ceiling_mib=200),)))

    assert world.live == {"a": 1}
