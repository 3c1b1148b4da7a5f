"""What is kept of who would leave, against what is worked out anew, whatever happens between."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tests.core.test_policy_walks import Site, behave, happen

from modelyard.core.leavers import Leavers
from modelyard.core.planning import next_replica
from modelyard.core.state import ReplicaState

WALKS = 60
STEPS = 60


def test_what_is_kept_says_the_same_as_what_is_worked_out_anew() -> None:
    answers = [answer for seed in range(WALKS) for answer in _walk(random.Random(seed))]

    assert len(answers) > 40 * WALKS, "somebody would leave for somebody"
    others = [answer for answer in answers if answer[0] != answer[1]]
    assert len(others) < len(answers) / 200, "only what is measured meanwhile may count later"


Leaving = list[tuple[ReplicaState, int]]


def _walk(chance: random.Random) -> Iterator[tuple[Leaving, Leaving]]:
    """Ask the same of both after every few steps."""
    site, kept = Site(chance), Leavers()
    for _ in range(STEPS):
        for _ in range(chance.choice([1, 2, 6])):
            chance.choice([happen, behave])(site)
        site.passes(chance.choice([0, 0.1, 1]))
        planner, fresh = site.scheduler._planner(site.now), Leavers()
        planner.see_leavers(kept)
        planner.see_leavers(fresh)
        for slot in site.scheduler.models.values():
            replica = next_replica(slot, site.now)
            if replica is not None and not slot.serving:
                found, expected = (
                    [(offer.replica, offer.level) for offer in planner.would_leave(replica, each)]
                    for each in (kept, fresh)
                )
                if found or expected:
                    yield found, expected
