"""What the scheduler decides, shown on small worlds without clocks, processes or sockets."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Sequence

import pytest

from modelyard.core.errors import (
    EngineStartFailed,
    ModelNotFound,
    ModelStopped,
    ModelTooLarge,
    ModelyardError,
    NoDevice,
    QueueFull,
    WaitTimeout,
)
from modelyard.core.events import (
    Changed,
    DevicesChanged,
    EngineCleared,
    EngineNews,
    EngineSuspected,
    Grant,
    KeepWanted,
    MemoryMeasured,
    ModelsChanged,
    Refuse,
    RequestLeft,
    RequestWaits,
    RestartWanted,
    SchedulerAction,
    SchedulerEvent,
    ShutdownAsked,
    StartEngine,
    StartWanted,
    StopEngine,
    StopWanted,
    TimerDue,
)
from modelyard.core.lifecycle import EngineExited, EngineReady, State
from modelyard.core.policy import Policy
from modelyard.core.scheduler import Scheduler
from modelyard.core.specs import Device, Limits, ModelSpec, Profile, Task


def model(name: str, mib: int = 100, **kwargs: object) -> ModelSpec:
    spec = ModelSpec(name, "llamacpp", frozenset({Task.CHAT}), estimate_mib=mib)
    return dataclasses.replace(spec, **kwargs)  # type: ignore[arg-type]


class World:
    """A scheduler with a clock, engines that obey, and a record of what was asked of them."""

    def __init__(
        self,
        *specs: ModelSpec,
        mib: int = 200,
        policy: Policy | None = None,
        devices: Sequence[Device] = (),
    ) -> None:
        self.scheduler = Scheduler(policy or Policy(), devices or [Device("cpu", "cpu", mib, mib)])
        self.now = 1000.0
        self.granted: list[int] = []
        self.refused: dict[int, ModelyardError] = {}
        self.leases: dict[int, tuple[str, int]] = {}
        self.live: dict[str, int] = {}
        self.stopping: dict[str, float | None] = {}
        self.tickets = itertools.count(1)
        self.tell(ModelsChanged(specs))

    def tell(self, event: SchedulerEvent) -> list[SchedulerAction]:
        return self.perform(self.scheduler.handle(event, self.now))

    def perform(self, actions: list[SchedulerAction]) -> list[SchedulerAction]:
        for action in actions:
            match action:
                case StartEngine(spec, run):
                    assert spec.id not in self.live, "two runs of one model"
                    self.live[spec.id] = run
                case StopEngine(name, run, drain_s):
                    assert self.live[name] == run
                    self.stopping[name] = drain_s
                case Grant(ticket, name, run):
                    self.granted.append(ticket)
                    self.leases[ticket] = (name, run)
                case Refuse(ticket, error):
                    self.refused[ticket] = error
        return [action for action in actions if not isinstance(action, Changed)]

    def ask(self, name: str) -> int:
        """A request: its ticket, granted or waiting."""
        ticket = next(self.tickets)
        run = self.scheduler.lease(name, self.now)
        if run is not None:
            self.granted.append(ticket)
            self.leases[ticket] = (name, run)
        else:
            self.tell(RequestWaits(name, ticket))
        return ticket

    def finish(self, ticket: int, *, served: bool = True) -> None:
        name, run = self.leases.pop(ticket)
        self.perform(self.scheduler.release(name, run, self.now, served=served))

    def ready(self, name: str) -> None:
        self.tell(EngineNews(name, EngineReady(self.live[name])))

    def exits(self, name: str, reason: str = "", *, permanent: bool = False) -> None:
        run = self.live.pop(name)
        self.stopping.pop(name, None)
        self.tell(EngineNews(name, EngineExited(run, reason, permanent)))

    def passes(self, seconds: float) -> None:
        """Time goes by, with a timer event at every deadline on the way."""
        until = self.now + seconds
        while (due := self.scheduler.next_timer()) <= until:
            self.now = due
            self.tell(TimerDue())
        self.now = until

    def state(self, name: str) -> State:
        return self.scheduler.models[name].state

    def up(self, name: str) -> int:
        ticket = self.ask(name)
        self.ready(name)
        return ticket

    def check(self) -> None:
        """What must hold at any moment."""
        slots = self.scheduler.models.values()
        for device in self.scheduler.devices:
            held = sum(slot.held_mib.get(device.id, 0) for slot in slots)
            assert held <= device.most_mib, f"overcommitted {device.id}"
        for name in self.live:
            slot = self.scheduler.models[name]
            assert slot.placement is not None, f"{name} lives without a claim"
        for name, slot in self.scheduler.models.items():
            run = self.live.get(name)
            leased = sum(1 for lease in self.leases.values() if lease == (name, run))
            assert slot.in_flight == leased, f"lost or doubled lease of {name}"


# ---------------------------------------------------------------------------------------- starting


def test_a_cold_model_is_started_once_however_many_ask() -> None:
    world = World(model("a"))

    first = world.tell(RequestWaits("a", 1))
    second = world.tell(RequestWaits("a", 2))
    world.ready("a")

    assert [(a.spec.id, a.run) for a in first if isinstance(a, StartEngine)] == [("a", 1)]
    assert second == []
    assert world.granted == [1, 2]


def test_a_ready_model_is_leased_without_an_event() -> None:
    world = World(model("a"))
    world.up("a")

    assert world.scheduler.lease("a", world.now) == 1


def test_concurrency_queues_instead_of_refusing() -> None:
    world = World(model("a", limits=Limits(concurrency=1)))
    first = world.up("a")
    second = world.ask("a")

    assert [first] == world.granted
    world.finish(first)
    assert [first, second] == world.granted


def test_a_request_that_leaves_is_never_granted() -> None:
    world = World(model("a"))
    ticket = world.ask("a")

    world.tell(RequestLeft("a", ticket))
    world.ready("a")

    assert world.granted == []
    assert world.scheduler.models["a"].in_flight == 0


def test_an_unknown_model_is_refused_and_not_forgotten() -> None:
    world = World()

    world.tell(RequestWaits("nobody", 1))

    assert isinstance(world.refused[1], ModelNotFound)


def test_one_request_too_many_in_the_queue_is_refused() -> None:
    world = World(model("a", limits=Limits(max_queue=2)))

    tickets = [world.ask("a") for _ in range(3)]

    assert [tickets[2]] == list(world.refused)
    assert isinstance(world.refused[tickets[2]], QueueFull)


def test_a_preloaded_model_starts_by_itself() -> None:
    world = World(model("a", preload=True))

    assert world.live == {"a": 1}


# ------------------------------------------------------------------------------------------ memory


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


def gate(world: World, name: str) -> str:
    """The model for which this one takes no new requests; empty if it takes them."""
    return world.scheduler.models[name].first.promised_to


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


# ----------------------------------------------------------------------------------------- devices


def card(number: int, mib: int = 200, **kwargs: object) -> Device:
    device = Device(f"GPU-{number}", "NVIDIA GeForce RTX 3090", mib, mib, "nvidia", number)
    return dataclasses.replace(device, **kwargs)  # type: ignore[arg-type]


def on(*devices: str, mib: int = 100, name: str = "only") -> tuple[Profile, ...]:
    return (Profile(name, devices, dict.fromkeys(devices, mib)),)


def held(world: World, name: str) -> dict[str, int]:
    return dict(world.scheduler.models[name].held_mib)


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


# ------------------------------------------------------------------------------------------ ending


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


# ---------------------------------------------------------------------------------------- failures


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


# ------------------------------------------------------------------------------------- new models


def test_a_removed_model_is_drained_and_forgotten() -> None:
    world = World(model("a"))
    world.up("a")

    world.tell(ModelsChanged(()))
    assert "a" in world.stopping
    world.exits("a")

    assert world.scheduler.models == {}


def test_a_failed_model_that_is_defined_anew_is_tried_again_at_once() -> None:
    broken = model("a", source="/wrong.gguf")
    world = World(broken)
    world.ask("a")
    world.exits("a", "no such file", permanent=True)

    world.tell(ModelsChanged((dataclasses.replace(broken, source="/right.gguf"),)))
    world.ask("a")

    assert world.live == {"a": 2}


def test_only_a_model_that_runs_differently_is_stopped() -> None:
    a, b = model("a"), model("b")
    world = World(a, b)
    world.up("a")
    world.up("b")

    changed = dataclasses.replace(b, options={"ctx_size": 4096})
    world.tell(ModelsChanged((dataclasses.replace(a, aliases=("x",)), changed)))

    assert list(world.stopping) == ["b"]
    assert world.scheduler.models["a"].spec.aliases == ("x",)


# ----------------------------------------------------------------------------------- random walks


@pytest.mark.parametrize("block", range(10))
def test_whatever_happens_nothing_is_overcommitted_lost_or_left_waiting(block: int) -> None:
    for seed in range(block * 100, block * 100 + 100):
        _walk(random.Random(seed))


def _walk(chance: random.Random) -> None:
    specs = [
        model(
            f"m{number}",
            chance.choice([40, 90, 150]),
            pinned=number == 0 and chance.random() < 0.3,
            preload=chance.random() < 0.1,
            limits=Limits(idle_stop_s=50, max_wait_s=400, concurrency=chance.choice([None, 1, 2])),
        )
        for number in range(4)
    ]
    world = World(*specs, policy=Policy(backoff_s=1, failed_cooldown_s=30))
    waiting: dict[int, str] = {}
    for _ in range(120):
        _happen(world, chance, waiting)
        world.passes(chance.choice([0, 0.1, 3, 30]))
        world.check()
    _settle(world)
    undecided = set(waiting) - set(world.granted) - set(world.refused)
    assert not undecided, "a request was forgotten"
    assert all(slot.in_flight == 0 for slot in world.scheduler.models.values())


def _happen(world: World, chance: random.Random, waiting: dict[int, str]) -> None:
    name = f"m{chance.randrange(4)}"
    match chance.randrange(9):
        case 0 | 1 | 2:
            waiting[world.ask(name)] = name
        case 3 if world.leases:
            world.finish(chance.choice(list(world.leases)), served=chance.random() < 0.9)
        case 4 if name in world.live and world.state(name) is State.STARTING:
            world.ready(name)
        case 5 if name in world.stopping:
            world.exits(name)
        case 6 if name in world.live and chance.random() < 0.4:
            world.exits(name, "crash", permanent=chance.random() < 0.2)
        case 7 if chance.random() < 0.3:
            asked: list[SchedulerEvent] = [StopWanted(name), RestartWanted(name), StartWanted(name)]
            world.tell(chance.choice(asked))
        case 8 if waiting and chance.random() < 0.5:
            ticket = chance.choice(list(waiting))
            if ticket not in world.granted and ticket not in world.refused:
                world.tell(RequestLeft(waiting.pop(ticket), ticket))


def _settle(world: World) -> None:
    """Engines and clients do what they should for a while: everybody who waits is served."""
    for _ in range(200):
        for ticket in tuple(world.leases):
            world.finish(ticket)
        for name in tuple(world.stopping):
            world.exits(name)
        for name in tuple(world.live):
            if world.state(name) is State.STARTING:
                world.ready(name)
        world.passes(5)
        world.check()
