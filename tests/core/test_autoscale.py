"""How many replicas run: more of a hot model, into free memory only, and fewer after that."""

from __future__ import annotations

from typing import TypedDict

import pytest
from tests.core.virtual_machine import Engine, Machine
from tests.core.world import card, model, on

from modelyard.core.events import ModelsChanged, PressureRead, StopWanted
from modelyard.core.policy import Policy
from modelyard.core.specs import Limits, ModelSpec, Replicas


class Gauges(TypedDict, total=False):
    """What an engine says of itself."""

    kv_share: float
    waiting: int


PATIENT = Limits(concurrency=2, idle_sleep_s=None, idle_stop_s=None)
POLICY = Policy(scale_up_after_s=5, scale_down_after_s=120)


def hot(most: int = 3, least: int = 0, mib: int = 100) -> ModelSpec:
    return model(
        "hot", profiles=on("rtx 3090", mib=mib), replicas=Replicas(least, most), limits=PATIENT
    )


def site_of(*specs: ModelSpec, cards: int = 2) -> Machine:
    return Machine(specs, [card(number) for number in range(cards)], POLICY)


def engines(site: Machine, name: str = "hot") -> list[Engine]:
    return [engine for engine in site.engines.values() if engine.model == name]


def comes_up(site: Machine, name: str = "hot") -> None:
    for engine in engines(site, name):
        if engine.doing == "starting":
            site.becomes_ready(engine)
    site.check()


def crowded(site: Machine, requests: int = 3) -> list[int]:
    """One replica runs, its places are taken, and others wait."""
    tickets = [site.ask("hot") for _ in range(requests)]
    comes_up(site)
    return tickets


def test_another_replica_starts_when_requests_have_waited_for_a_place() -> None:
    site = site_of(hot())
    tickets = crowded(site)

    site.passes(4.9)
    assert len(engines(site)) == 1
    site.passes(0.2)
    assert len(engines(site)) == 2
    comes_up(site)

    assert set(tickets) == set(site.granted)


def is_full(site: Machine, *, kv_share: float | None = None, waiting: int = 0) -> None:
    """Each engine that is ready tells its gauges."""
    for engine in engines(site):
        if engine.doing == "ready":
            site.tell(PressureRead("hot", engine.run, kv_share, waiting))
    site.check()


@pytest.mark.parametrize("gauges", [{"kv_share": 0.95}, {"waiting": 3}])
def test_another_replica_starts_when_an_engine_has_been_full_by_its_own_gauges(
    gauges: Gauges,
) -> None:
    site = site_of(hot())
    crowded(site, requests=1)
    is_full(site, **gauges)

    site.passes(4.9)
    assert len(engines(site)) == 1
    site.passes(0.2)

    assert len(engines(site)) == 2


def test_an_engine_that_was_full_for_a_moment_needs_no_other_replica() -> None:
    site = site_of(hot())
    crowded(site, requests=1)
    is_full(site, kv_share=0.95)
    site.passes(4)
    is_full(site, kv_share=0.5)
    site.passes(1)
    is_full(site, kv_share=0.95)

    site.passes(4)

    assert len(engines(site)) == 1


def test_while_one_of_its_engines_has_room_no_other_comes() -> None:
    site = site_of(hot())
    crowded(site, requests=1)
    is_full(site, waiting=1)
    site.passes(6)
    comes_up(site)
    first, second = engines(site)
    assert first.doing == second.doing == "ready"

    site.tell(PressureRead("hot", second.run, 0.2, 0))
    site.passes(60)

    assert len(engines(site)) == 2


def test_what_an_engine_said_before_it_ended_does_not_count() -> None:
    site = site_of(hot())
    (ticket,) = crowded(site, requests=1)
    is_full(site, waiting=1)
    (engine,) = engines(site)
    site.exits(engine, "killed")
    site.passes(1)
    site.ask("hot")
    comes_up(site)
    assert ticket in site.granted

    site.passes(60)

    assert len(engines(site)) == 1


def test_one_replica_comes_at_a_time() -> None:
    site = site_of(hot())
    crowded(site, requests=20)

    site.passes(60)

    assert len(engines(site)) == 2, "the second is on its way; it may be enough"


def test_no_more_than_the_most_run() -> None:
    site = site_of(hot(most=2), cards=4)
    crowded(site, requests=50)
    for _ in range(10):
        site.passes(10)
        comes_up(site)

    assert len(engines(site)) == 2


def test_a_queue_that_is_served_in_time_needs_no_other_replica() -> None:
    site = site_of(hot())
    crowded(site)
    site.passes(4)
    site.finish(next(iter(site.leases)))

    site.passes(60)

    assert len(engines(site)) == 1


def test_a_hot_model_drives_nobody_out_for_its_second_replica() -> None:
    site = site_of(hot(mib=150), model("cold", profiles=on("rtx 3090", mib=150)))
    site.ask("cold")
    comes_up(site, "cold")
    site.finish(next(iter(site.leases)))
    crowded(site, requests=20)

    site.passes(300)

    assert len(engines(site)) == 1
    assert [engine.doing for engine in engines(site, "cold")] == ["ready"]


def test_the_second_replica_comes_when_memory_falls_free() -> None:
    site = site_of(hot(mib=150), model("cold", profiles=on("rtx 3090", mib=150)))
    site.ask("cold")
    comes_up(site, "cold")
    crowded(site)
    site.passes(10)

    site.tell(StopWanted("cold"))
    site.exits(engines(site, "cold")[0])

    assert len(engines(site)) == 2


def test_spare_replicas_stop_when_they_were_unused_for_long_and_the_first_stays() -> None:
    site = site_of(hot())
    crowded(site)
    site.passes(6)
    comes_up(site)
    for ticket in tuple(site.leases):
        site.finish(ticket)

    site.passes(119)
    assert [engine.doing for engine in engines(site)] == ["ready", "ready"]
    site.passes(2)

    assert sorted(engine.doing for engine in engines(site)) == ["ready", "stopping"]
    site.passes(10_000)
    assert [engine.number for engine in engines(site) if engine.doing == "ready"] == [1]


def test_a_load_that_comes_and_goes_does_not_make_the_number_swing() -> None:
    site = site_of(hot())
    crowded(site)
    site.passes(6)
    comes_up(site)
    before = [engine.id for engine in engines(site)]
    for _ in range(20):
        for ticket in tuple(site.leases):
            site.finish(ticket)
        site.passes(60)
        for _ in range(4):
            site.ask("hot")
        site.passes(10)
        site.check()

    assert [engine.id for engine in engines(site)] == before


def test_so_many_as_wanted_run_without_a_request() -> None:
    site = site_of(hot(least=1))
    comes_up(site)

    site.passes(10_000)

    assert [engine.doing for engine in engines(site)] == ["ready"]


def test_two_that_are_to_run_without_a_request_come_up_one_after_the_other() -> None:
    site = site_of(hot(least=2))
    comes_up(site)
    site.passes(10)
    comes_up(site)

    site.passes(10_000)

    assert [engine.doing for engine in engines(site)] == ["ready", "ready"]


def test_a_replica_that_is_to_run_comes_back_when_its_engine_dies() -> None:
    site = site_of(hot(least=1))
    comes_up(site)

    site.exits(engines(site)[0], "killed")
    site.passes(10)
    comes_up(site)

    assert [engine.doing for engine in engines(site)] == ["ready"]


def test_the_second_that_is_to_run_comes_back_when_its_engine_dies() -> None:
    site = site_of(hot(least=2))
    for _ in range(3):
        site.passes(10)
        comes_up(site)
    assert [engine.number for engine in engines(site)] == [1, 2]

    site.exits(engines(site)[1], "killed")
    site.passes(10)
    comes_up(site)

    assert [engine.doing for engine in engines(site)] == ["ready", "ready"]


def test_a_person_can_stop_what_is_to_run_until_it_is_asked_for() -> None:
    site = site_of(hot(least=2))
    for _ in range(3):
        site.passes(10)
        comes_up(site)

    site.tell(StopWanted("hot"))
    for engine in engines(site):
        site.exits(engine)
    site.passes(100)
    assert engines(site) == []

    site.ask("hot")
    for _ in range(3):
        comes_up(site)
        site.passes(10)
    assert [engine.doing for engine in engines(site)] == ["ready", "ready"]


def test_a_model_that_is_removed_does_not_start_again_however_many_are_to_run() -> None:
    site = site_of(hot(least=2))
    for _ in range(3):
        site.passes(10)
        comes_up(site)

    site.tell(ModelsChanged(()))
    for engine in engines(site):
        site.exits(engine)
    site.passes(100)

    assert engines(site) == []
    assert site.scheduler.models == {}
