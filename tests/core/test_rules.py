"""One small world for each rule of the policy, and the proof that it needs the rule.

Laws of this file:
- A scenario shows what one rule alone gives. It is run as the policy is, and must pass; then with
  that rule taken away, and must fail. So no rule can be lost, and none is there for nothing.
- A rule is taken away by its parameter where it has one, else by putting the simplest thing that
  knows nothing of the rule in its place.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from tests.core.test_sleeping import sleeper
from tests.core.world import World, card, gate, held, model, on

from modelyard.core import foresight, leaving, moves, placement, swap
from modelyard.core.demand import Demand
from modelyard.core.events import CostKnown, ModelsChanged, StopWanted
from modelyard.core.foresight import Foresight
from modelyard.core.lifecycle import State
from modelyard.core.planning import Planner
from modelyard.core.policy import Policy
from modelyard.core.specs import Device, Limits, Need, Placement, Replicas
from modelyard.core.state import ModelState, ReplicaState
from modelyard.core.swap import Offer, Verdict

NEVER = 1e9
Changed = Mapping[str, float]
Scenario = Callable[[Changed], None]
Patch = Callable[[pytest.MonkeyPatch], None]

PLAIN = Policy(
    fair_after_s=10,
    wait_factor=1.2,
    away_factor=2,
    residency_factor=4,
    loss_factor=1,
    reserve_factor=2,
    rate_memory_s=600,
)
"""The policy of these worlds: its numbers are part of what they expect."""


def policy(changed: Changed, **fields: float) -> Policy:
    return dataclasses.replace(PLAIN, **{**fields, **changed})  # type: ignore[arg-type]


def costs(world: World, name: str, **seconds: float) -> None:
    """What steps of a model on the host take."""
    for step, duration in seconds.items():
        world.tell(CostKnown(name, "default", "cpu", step, duration))


def often(world: World, name: str, requests: int) -> None:
    """Requests that come and are over: the model is in demand, and idle."""
    for _ in range(requests):
        world.finish(world.ask(name))


# ------------------------------------------------------------------------------ 1: who is there


def an_open_engine_serves_at_once_and_one_with_a_closed_gate_does_not(changed: Changed) -> None:
    world = World(model("a"), model("b"), mib=100, policy=policy(changed))
    world.up("a")
    world.ask("b")

    assert world.ask("a") in world.granted, "somebody waits for its memory, and it is there"
    world.passes(60)
    assert gate(world, "a") == "b"
    assert world.ask("a") not in world.granted


def without_gates(patch: pytest.MonkeyPatch) -> None:
    def has_room(replica: ReplicaState) -> bool:
        return replica.state is State.READY

    patch.setattr(ReplicaState, "has_room", has_room)


# ------------------------------------------------------------------------------------- 2: order


def the_larger_batch_goes_first(changed: Changed) -> None:
    world = World(model("a"), model("b"), model("c"), mib=100, policy=policy(changed))
    busy = world.up("a")
    world.ask("b")
    for _ in range(3):
        world.ask("c")
    world.passes(1)
    world.ask("c")

    world.finish(busy)
    world.exits("a")

    assert list(world.live) == ["c"]


def the_cheaper_change_goes_first(changed: Changed) -> None:
    world = World(model("a"), model("slow"), model("quick"), mib=100, policy=policy(changed))
    costs(world, "slow", start=60)
    costs(world, "quick", start=2)
    busy = world.up("a")
    world.ask("slow")
    world.ask("quick")
    world.passes(1)

    world.finish(busy)
    world.exits("a")

    assert list(world.live) == ["quick"]


def who_has_waited_for_the_age_bound_goes_before_larger_batches(changed: Changed) -> None:
    bounds = policy(changed, residency_factor=NEVER)
    world = World(model("a"), model("b"), model("c"), mib=100, policy=bounds)
    busy = world.up("a")
    world.ask("b")
    world.passes(10.5)
    for _ in range(20):
        world.ask("c")
    world.passes(1)

    world.finish(busy)
    world.exits("a")

    assert list(world.live) == ["b"], "not enough memory is free"


def by_arrival(patch: pytest.MonkeyPatch) -> None:
    def rank(planner: Planner, slot: ModelState) -> tuple[float, float, float]:
        return (0.0, slot.waiting_since, 0.0)

    patch.setattr(Planner, "_rank", rank)


def by_name(patch: pytest.MonkeyPatch) -> None:
    def rank(planner: Planner, slot: ModelState) -> tuple[float, float, str]:
        return (0.0, 0.0, f"{slot.spec.id != 'slow'}")

    patch.setattr(Planner, "_rank", rank)


# ----------------------------------------------------------------------------------- 3: victims


def the_least_missed_for_its_memory_leaves(changed: Changed) -> None:
    world = World(model("hot"), model("cold"), model("new"), policy=policy(changed))
    world.finish(world.up("hot"))
    often(world, "hot", 20)
    world.passes(5)
    world.finish(world.up("cold"))

    for _ in range(5):
        world.ask("new")

    assert list(world.stopping) == ["cold"], "it was used last, and is missed least"


def of_two_missed_alike_the_larger_leaves(changed: Changed) -> None:
    specs = (model("a small one", 50), model("large", 150), model("new", 50))
    world = World(*specs, policy=policy(changed))
    for name in ("a small one", "large"):
        world.finish(world.up(name))

    world.ask("new")

    assert list(world.stopping) == ["large"], "the next will find room, too"


def nothing_is_for_the_next(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(swap, "SURPLUS", 0.0)


def nobody_leaves_who_is_not_needed_after_all(changed: Changed) -> None:
    specs = (model("small", 50), model("big", 150), model("new", 140))
    world = World(*specs, policy=policy(changed))
    for name in ("small", "big"):
        world.finish(world.up(name))
    often(world, "big", 50)

    for _ in range(5):
        world.ask("new")

    assert list(world.stopping) == ["big"]


def idle_models_leave_before_models_in_use(changed: Changed) -> None:
    world = World(model("idle"), model("used"), model("new"), policy=policy(changed))
    world.finish(world.up("idle"))
    often(world, "idle", 20)
    world.up("used")

    for _ in range(5):
        world.ask("new")

    assert list(world.stopping) == ["idle"]


def by_last_use(patch: pytest.MonkeyPatch) -> None:
    def rank(offer: Offer, missing: Need) -> tuple[bool, float]:
        return (offer.is_busy, offer.replica.last_used)

    patch.setattr(swap, "_rank", rank)


def by_rate_alone(patch: pytest.MonkeyPatch) -> None:
    def rank(offer: Offer, missing: Need) -> float:
        return offer.rate

    patch.setattr(swap, "_rank", rank)


def keep_superfluous(patch: pytest.MonkeyPatch) -> None:
    def everybody(chosen: list[Offer], missing: Need) -> list[Offer]:
        return chosen

    patch.setattr(swap, "_without_superfluous", everybody)


# ------------------------------------------------------------------------------ 4: idle victims


def an_idle_model_leaves_at_once_unless_more_is_asked_of_it(changed: Changed) -> None:
    world = World(model("a"), model("b"), mib=100, policy=policy(changed))
    costs(world, "a", start=60)
    world.finish(world.up("a"))
    often(world, "a", 30)

    world.ask("b")
    assert world.stopping == {}, "0.05 requests a second, away for 40 s: two would wait for one"
    world.ask("b")
    world.ask("b")

    assert list(world.stopping) == ["a"]


def nothing_was_asked(patch: pytest.MonkeyPatch) -> None:
    def rate(demand: Demand, now: float) -> float:
        return 0.0

    patch.setattr(Demand, "rate", rate)


def idle_ones_wait_for_the_age_bound(patch: pytest.MonkeyPatch) -> None:
    def rate(demand: Demand, now: float) -> float:
        return 100.0

    patch.setattr(Demand, "rate", rate)


# ----------------------------------------------------------------------------- 5: balanced gate


def a_gate_closes_when_those_who_wait_have_waited_as_long_as_its_users_would_lose(
    changed: Changed,
) -> None:
    bounds = policy(changed, fair_after_s=NEVER, residency_factor=0)
    world = World(model("a"), model("b"), mib=100, policy=bounds)
    for name in "ab":
        costs(world, name, start=10, stop=2)
    world.up("a")
    for _ in range(29):
        world.ask("a")
    world.now += 100
    world.ask("b")
    world.ask("b")
    crossing = _crossing(world)

    assert 5 < crossing < 60, "else this world shows nothing"
    world.passes(crossing - 0.5)
    assert gate(world, "a") == ""
    world.passes(0.5 + swap.LATEST_S)
    assert gate(world, "a") == "b"


def _crossing(world: World) -> float:
    """When what two have waited outweighs what the users of `a` lose, worked out by hand."""
    slots, pace = world.scheduler.models, world.scheduler.pace
    a, b = slots["a"], slots["b"]
    for tenth in range(1, 6000):
        later = tenth / 10
        service = pace.service_s
        drain = 0.7 * service * math.log1p(30)
        known = a.costs.known
        up_a = next(seconds for (_, _, step), seconds in known.items() if step == "start")
        away = drain + 2 + 10 + service + 2 + up_a
        busy = min(0.9, a.demand.load(world.now + later) / 16)
        lost = a.demand.rate(world.now + later) * away**2 / (2 * (1 - busy))
        if b.queue.waited_s(world.now + later) >= lost:
            return later
    return math.inf


# -------------------------------------------------------------------------- 6: minimum residency


def nobody_in_use_leaves_before_the_change_has_paid_even_for_the_aged(changed: Changed) -> None:
    bounds = policy(changed, fair_after_s=1, away_factor=0, loss_factor=NEVER)
    _stays(World(model("a"), model("b"), mib=100, policy=bounds))


def nobody_in_use_leaves_before_the_change_has_paid_even_for_a_crowd(changed: Changed) -> None:
    bounds = policy(changed, fair_after_s=NEVER)
    _stays(World(model("a"), model("b"), mib=100, policy=bounds), crowd=50)


def _stays(world: World, crowd: int = 1) -> None:
    for name in "ab":
        costs(world, name, start=10, stop=2)
    world.ask("a")
    for _ in range(crowd):
        world.ask("b")
    world.passes(10)
    world.ready("a")

    world.passes(4 * 12 - 0.1)  # four times: `a` stops in 2 s, `b` starts in 10 s
    assert gate(world, "a") == ""
    world.passes(0.1 + swap.LATEST_S)
    assert gate(world, "a") == "b"


# ---------------------------------------------------------------------------------- 7: age bound


def the_age_bound_is_no_shorter_than_waits_are_anyway(changed: Changed) -> None:
    bounds = policy(changed, loss_factor=NEVER, residency_factor=0)
    world = World(model("a"), model("b"), mib=100, policy=bounds)
    for _ in range(100):
        world.scheduler.pace.waited(100.0)
    world.up("a")
    world.ask("b")

    world.passes(100)
    assert gate(world, "a") == ""
    world.passes(21)
    assert gate(world, "a") == "b"


def the_age_bound_is_no_shorter_than_twice_the_absence(changed: Changed) -> None:
    bounds = policy(changed, loss_factor=NEVER, residency_factor=0)
    world = World(model("a"), model("b"), mib=100, policy=bounds)
    for name in "ab":
        costs(world, name, start=40, stop=0)
    world.ask("a")
    world.passes(40)
    world.ready("a")
    world.ask("b")

    world.passes(2 * (40 + 40) - 40 - 5)  # away for two starts; it counts that `b` starts in 40 s
    assert gate(world, "a") == ""
    world.passes(40)
    assert gate(world, "a") == "b"


def a_starved_model_keeps_newcomers_off_its_place(changed: Changed) -> None:
    bounds = policy(changed, loss_factor=NEVER, residency_factor=NEVER)
    specs = [model(name, profiles=on("rtx 3090", mib=mib)) for name, mib in _CROWDED.items()]
    world = World(*specs, devices=[card(0)], policy=bounds)
    world.up("used")
    world.ask("big")

    world.passes(15)
    world.ask("early")
    assert "early" in world.live, "nobody is starved yet"
    world.ready("early")
    world.passes(10)
    world.ask("late")
    assert "late" not in world.live, "its memory is there, and another has waited for twice the age"


_CROWDED = {"used": 80, "big": 190, "early": 50, "late": 50}


# -------------------------------------------------------------------------------------- 8: level


def who_leaves_sleeps_as_lightly_as_the_host_has_room_for(changed: Changed) -> None:
    for host_mib, level in ((10_000, 1), (2000, 2)):
        host = Device("cpu", "cpu", host_mib, host_mib)
        world = World(
            sleeper("a", 6000),
            sleeper("b", 6000),
            devices=[card(0, 8000), host],
            policy=policy(changed),
        )
        world.finish(world.up("a"))

        world.ask("b")

        assert world.state("a") is State.SUSPENDING
        assert world.scheduler.models["a"].first.life.level == level


def the_host_is_endless(patch: pytest.MonkeyPatch) -> None:
    def has_room_for(given: Need, left: Need) -> bool:
        return True

    patch.setattr(leaving, "has_room_for", has_room_for)
    patch.setattr(moves, "has_room_for", has_room_for)


# ----------------------------------------------------------------------------------- 9: prefetch


def who_had_to_leave_comes_back_into_free_memory(changed: Changed) -> None:
    world = _evicted(changed)

    world.tell(StopWanted("b"))
    world.exits("b")
    world.passes(2)

    assert "a" in world.live


def nobody_leaves_for_who_might_be_asked_for(changed: Changed) -> None:
    world = _evicted(changed)

    world.passes(100)
    world.tell(StopWanted("c"))
    world.exits("c")
    world.passes(2)

    assert world.stopping == {}
    assert list(world.live) == ["b"], "not enough memory is free"


def _evicted(changed: Changed) -> World:
    """A world in which `a` had to leave for `b`, which is idle now, beside `c`."""
    endless = Limits(idle_sleep_s=None, idle_stop_s=None)
    specs = [model(name, mib, limits=endless) for name, mib in (("a", 150), ("b", 150), ("c", 50))]
    world = World(*specs, policy=policy(changed))
    world.finish(world.up("c"))
    world.ask("a")
    world.passes(2)  # or there would be nothing to save
    world.ready("a")
    world.finish(world.granted[-1])
    world.ask("b")
    world.exits("a")
    world.passes(2)
    world.ready("b")
    world.finish(world.granted[-1])
    return world


def prefetch_by_eviction(patch: pytest.MonkeyPatch) -> None:
    def bring_back(ahead: Foresight) -> None:
        for away in ahead._away:
            offers = ahead._planner.would_leave(away.replica, ahead._leavers)
            if offers:
                place = ahead._planner._profiles(away.replica)[0][0]
                ahead._planner._reserve(away.replica, place, offers)

    patch.setattr(Foresight, "_bring_back", bring_back)


def nobody_comes_back_who_takes_more_than_it_saves(changed: Changed) -> None:
    endless = Limits(idle_sleep_s=None, idle_stop_s=None)
    specs = [model(name, limits=endless) for name in ("often", "back", "last")]
    world = World(*specs, mib=100, policy=policy(changed))
    costs(world, "back", start=1, stop=60)
    world.finish(world.up("often"))
    often(world, "often", 20)
    world.tell(StopWanted("often"))
    world.exits("often")
    world.finish(world.up("back"))
    world.ask("last")
    world.exits("back")
    world.ready("last")
    world.finish(world.granted[-1])

    world.tell(StopWanted("last"))
    world.exits("last")
    world.passes(2)

    assert world.live == {}, "whoever wants the memory next waits a minute for it to be free again"


def nothing_is_lost_by_a_return(patch: pytest.MonkeyPatch) -> None:
    def loses(ahead: Foresight, comer: object, place: Placement) -> float:
        return 0.0

    patch.setattr(Foresight, "_loses", loses)


# ---------------------------------------------------------------------------- 9: room made ahead


def room_is_made_before_it_is_needed(changed: Changed) -> None:
    world = _displaced(changed, "rare", "often")

    world.passes(2.5)

    assert list(world.stopping) == ["rare"], "more is asked of the other, which is away"


def who_is_missed_more_than_others_save_stays(changed: Changed) -> None:
    world = _displaced(changed, "rare", "often")
    often(world, "rare", 60)

    world.passes(100)

    assert world.stopping == {}


def nobody_who_was_just_used_leaves_ahead(changed: Changed) -> None:
    world = _displaced({"make_room_after_s": 10.0, **changed}, "rare", "often")

    world.passes(9.9)

    assert world.stopping == {}


def those_that_are_kept_running_do_not_leave_ahead(changed: Changed) -> None:
    world = _displaced(changed, "rare", "often", replicas=Replicas(1, 1))

    world.passes(100)

    assert world.stopping == {}


def _displaced(changed: Changed, here: str, away: str, **fields: object) -> World:
    """A world in which `here` has taken the place of `away`, and is idle."""
    endless = Limits(idle_sleep_s=None, idle_stop_s=None)
    first = model(here, limits=endless)
    world = World(first, model(away, limits=endless), mib=100, policy=policy(changed))
    for name in (here, away):
        costs(world, name, start=10, stop=10)
    world.finish(world.up(away))
    often(world, away, 20)
    world.passes(5)
    for _ in range(3):
        world.ask(here)
    world.exits(away)
    world.ready(here)
    for ticket in tuple(world.leases):
        world.finish(ticket)
    kept = dataclasses.replace(first, **fields)  # type: ignore[arg-type]
    world.tell(ModelsChanged((kept, model(away, limits=endless))))
    return world


def nobody_is_missed(patch: pytest.MonkeyPatch) -> None:
    def missed(offer: Offer) -> float:
        return 0.0

    patch.setattr(foresight, "_missed", missed)


def all_may_leave_ahead(patch: pytest.MonkeyPatch) -> None:
    def may_go(offer: Offer) -> bool:
        return True

    patch.setattr(foresight, "_may_go", may_go)


# --------------------------------------------------------------------------------- 10: placement


def models_spread_over_like_cards(changed: Changed) -> None:
    specs = [model(name, profiles=on("rtx 3090", mib=80)) for name in "ab"]
    world = World(*specs, devices=[card(0), card(1)], policy=policy(changed))

    world.ask("a")
    world.ready("a")
    world.ask("b")

    assert {*held(world, "a"), *held(world, "b")} == {"GPU-0", "GPU-1"}


def a_newcomer_goes_where_least_is_lost(changed: Changed) -> None:
    names = ("hot", "cold", "new")
    specs = [model(name, profiles=on("rtx 3090", mib=150)) for name in names]
    world = World(*specs, devices=[card(0), card(1)], policy=policy(changed))
    world.finish(world.up("hot"))
    often(world, "hot", 20)
    world.finish(world.up("cold"))

    for _ in range(5):
        world.ask("new")

    assert list(world.stopping) == ["cold"]


def a_cheaper_place_is_waited_for_while_memory_moves_there(changed: Changed) -> None:
    sizes = {"hot": 150, "cold": 120, "small": 50, "new": 120}
    specs = [model(name, profiles=on("rtx 3090", mib=mib)) for name, mib in sizes.items()]
    world = World(*specs, devices=[card(0), card(1)], policy=policy(changed))
    for name in ("hot", "cold"):
        world.tell(CostKnown(name, "only", "rtx 3090", "start", 10))
    world.finish(world.up("hot"))
    often(world, "hot", 40)
    world.finish(world.up("cold"))
    world.ask("small")

    world.ask("new")
    assert world.stopping == {}, "the other card is free of moves in a moment"
    world.ready("small")

    assert list(world.stopping) == ["cold"]


def no_place_gets_better(patch: pytest.MonkeyPatch) -> None:
    def better_in_s(planner: Planner, replica: ReplicaState, best: Verdict) -> float | None:
        return None

    patch.setattr(Planner, "_better_in_s", better_in_s)


def the_first_that_fits(patch: pytest.MonkeyPatch) -> None:
    def first(choices: Sequence[Placement], *lefts: Need) -> Placement | None:
        fitting = (c for c in choices if all(placement.fits(c.claims_mib, at) for at in lefts))
        return next(fitting, None)

    patch.setattr(placement, "roomiest", first)


def the_first_swap(patch: pytest.MonkeyPatch) -> None:
    def agree(planner: Planner, replica: ReplicaState, verdicts: Sequence[Verdict]) -> bool:
        for verdict in verdicts:
            if verdict.is_worth_it:
                planner._reserve(replica, verdict.choice, verdict.swap.offers)
                return True
        return False

    patch.setattr(Planner, "_agree", agree)


# ------------------------------------------------------------------------------------ the rules


@dataclass(frozen=True)
class Rule:
    """A rule, what shows it, and how to take it away."""

    number: int
    shown_by: Scenario
    changed: Changed = field(default_factory=dict)
    patch: Patch | None = None

    def __str__(self) -> str:
        away = self.patch.__name__ if self.patch else "_".join(map(str, *self.changed.items()))
        return f"{self.number}-{self.shown_by.__name__}-{away}"


RULES = [
    Rule(
        1,
        an_open_engine_serves_at_once_and_one_with_a_closed_gate_does_not,
        patch=without_gates,
    ),
    Rule(2, the_larger_batch_goes_first, patch=by_arrival),
    Rule(2, the_cheaper_change_goes_first, patch=by_name),
    Rule(
        2,
        who_has_waited_for_the_age_bound_goes_before_larger_batches,
        {"fair_after_s": NEVER},
    ),
    Rule(3, the_least_missed_for_its_memory_leaves, patch=by_last_use),
    Rule(3, of_two_missed_alike_the_larger_leaves, patch=nothing_is_for_the_next),
    Rule(3, nobody_leaves_who_is_not_needed_after_all, patch=keep_superfluous),
    Rule(3, idle_models_leave_before_models_in_use, patch=by_rate_alone),
    Rule(4, an_idle_model_leaves_at_once_unless_more_is_asked_of_it, patch=nothing_was_asked),
    Rule(
        4,
        an_idle_model_leaves_at_once_unless_more_is_asked_of_it,
        patch=idle_ones_wait_for_the_age_bound,
    ),
    Rule(
        5,
        a_gate_closes_when_those_who_wait_have_waited_as_long_as_its_users_would_lose,
        {"loss_factor": 0},
    ),
    Rule(
        5,
        a_gate_closes_when_those_who_wait_have_waited_as_long_as_its_users_would_lose,
        {"loss_factor": NEVER},
    ),
    Rule(
        6,
        nobody_in_use_leaves_before_the_change_has_paid_even_for_the_aged,
        {"residency_factor": 0},
    ),
    Rule(
        6,
        nobody_in_use_leaves_before_the_change_has_paid_even_for_a_crowd,
        {"residency_factor": 0},
    ),
    Rule(7, the_age_bound_is_no_shorter_than_waits_are_anyway, {"wait_factor": 0}),
    Rule(7, the_age_bound_is_no_shorter_than_waits_are_anyway, {"fair_after_s": NEVER}),
    Rule(7, the_age_bound_is_no_shorter_than_twice_the_absence, {"away_factor": 0}),
    Rule(7, a_starved_model_keeps_newcomers_off_its_place, {"reserve_factor": NEVER}),
    Rule(7, a_starved_model_keeps_newcomers_off_its_place, {"reserve_factor": 0}),
    Rule(8, who_leaves_sleeps_as_lightly_as_the_host_has_room_for, patch=the_host_is_endless),
    Rule(9, who_had_to_leave_comes_back_into_free_memory, {"prefetch": False}),
    Rule(9, nobody_leaves_for_who_might_be_asked_for, patch=prefetch_by_eviction),
    Rule(9, nobody_comes_back_who_takes_more_than_it_saves, patch=nothing_is_lost_by_a_return),
    Rule(9, room_is_made_before_it_is_needed, {"make_room": False}),
    Rule(9, who_is_missed_more_than_others_save_stays, patch=nobody_is_missed),
    Rule(9, nobody_who_was_just_used_leaves_ahead, {"make_room_after_s": 0}),
    Rule(9, those_that_are_kept_running_do_not_leave_ahead, patch=all_may_leave_ahead),
    Rule(10, models_spread_over_like_cards, patch=the_first_that_fits),
    Rule(10, a_newcomer_goes_where_least_is_lost, patch=the_first_swap),
    Rule(10, a_cheaper_place_is_waited_for_while_memory_moves_there, patch=no_place_gets_better),
]


@pytest.mark.parametrize("shown_by", dict.fromkeys(rule.shown_by for rule in RULES))
def test_the_policy_keeps_its_rules(shown_by: Scenario) -> None:
    shown_by({})


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_without_a_rule_its_scenario_fails(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    if rule.patch is not None:
        rule.patch(monkeypatch)
    with pytest.raises(AssertionError):
        rule.shown_by(rule.changed)


def test_every_rule_has_a_scenario() -> None:
    assert {rule.number for rule in RULES} == set(range(1, 11))
