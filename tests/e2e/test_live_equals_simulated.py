"""The simulator tells the truth: what it says of a trace is what real processes do.

Who comes next depends on who was first by milliseconds, so two runs of one trace differ, and so do
two simulations whose starts take a little longer in one of them. What tells a tolerated difference
from a wrong one:

- A fresh scheduler that hears what the live one heard says exactly the same.
- The simulator does exactly what was done, all in the same order, when everything takes as long in
  it as it took live. So times are all that differs.
- With times as planned it swaps as often, give or take what jitter like the live one's changes.

`MODELYARD_LIVE=300` plays so many requests in place of few.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.e2e import live_times, live_trace
from tests.e2e.live_trace import Live, RecordingScheduler

from modelyard.simulation.results import Result
from modelyard.simulation.run import simulate
from modelyard.simulation.values import Job, Setup

REQUESTS = int(os.environ.get("MODELYARD_LIVE", "60"))
SEEDS = range(10)
SWAPS_OFF = 0.1
"""How far outside the jittery simulations the swaps of a live run may lie, as a share of them."""

REPLAY = """
import pickle, sys
from modelyard.core.scheduler import Scheduler

begun_with, told = pickle.load(sys.stdin.buffer)
scheduler = Scheduler(*begun_with)
for number, (now, what, given, answer) in enumerate(told):
    match what:
        case "handle":
            found = tuple(scheduler.handle(*given, now))
        case "lease":
            found = scheduler.lease(given[0], now, given[1])
        case "release":
            found = tuple(scheduler.release(*given[:2], now, served=given[2]))
    if found != answer:
        sys.exit(f"{number}: {what} {given} at {now}: {answer} live, and {found} again")
print(len(told))
"""


@dataclass(frozen=True)
class Played:
    """One trace, live and simulated."""

    jobs: list[Job]
    setup: Setup
    live: Live
    simulated: Result

    @property
    def planned(self) -> list[live_trace.Turn]:
        return live_times.simulated_turns(self.simulated.moves)


@pytest.fixture
async def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_left: None) -> Played:
    monkeypatch.setattr("modelyard.runtime.loop.Scheduler", RecordingScheduler)
    jobs = live_trace.requests(REQUESTS)
    setup = live_trace.setup_for(jobs)
    simulated = simulate("modelyard", setup, jobs, parameters=live_trace.parameters())
    return Played(jobs, setup, await live_trace.play(setup, jobs, tmp_path), simulated)


async def test_real_processes_come_and_go_as_in_the_simulator(played: Played) -> None:
    live, setup, jobs = played.live, played.setup, played.jobs
    times = live_times.measured(live, setup, jobs)
    worlds = [live_times.JitteryWorld(setup, times.over, seed) for seed in SEEDS]
    jittery = [live_times.simulated_turns(world.play(jobs)) for world in worlds]
    swaps = [live_times.swaps_of(turns) for turns in [*jittery, played.planned]]
    off = max(2, SWAPS_OFF * max(swaps))
    report(played, times, jittery)

    assert live.statuses == [200] * REQUESTS
    assert live_times.swaps_of(played.planned) >= REQUESTS / 10, "hardly anything was swapped"
    assert replayed(live) == len(live.scheduler.told)
    assert live.turns == live_times.as_measured(setup, times)
    assert min(swaps) - off <= live_times.swaps_of(live.turns) <= max(swaps) + off


def replayed(live: Live) -> int:
    """How many answers a fresh scheduler repeats, in a process that orders sets differently."""
    told = [(each.now, each.what, each.given, each.answer) for each in live.scheduler.told]
    again = subprocess.run(
        [sys.executable, "-c", REPLAY],
        input=pickle.dumps((live.scheduler.begun_with, told)),
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert again.returncode == 0, again.stderr.decode()
    return int(again.stdout)


def report(
    played: Played, times: live_times.Measured, jittery: Sequence[Sequence[live_trace.Turn]]
) -> None:
    """Shown by `pytest -rP`, and when the test fails."""
    live, planned = played.live.turns, played.planned
    like = [live_times.likeness(turns, planned) for turns in (live, *jittery)]
    swaps = [live_times.swaps_of(turns) for turns in (planned, live, *jittery)]
    print(f"{REQUESTS} requests, {len(played.setup.models)} models, {live_trace.DEVICES} devices")
    for what, over in sorted(times.over.items()):
        ordered = sorted(1000 * each for each in over)
        middle = ordered[len(ordered) // 2]
        print(f"{what}: {middle:+.1f} ms ({ordered[0]:+.1f} to {ordered[-1]:+.1f}) against plan")
    print(f"swaps: {swaps[0]} planned, {swaps[1]} live, {swaps[2:]} with jitter")
    print(f"in the order of the plan: {like[0]:.0%} live, {[f'{each:.0%}' for each in like[1:]]}")
    waits = played.simulated.waits.mean, times.mean_wait_s
    print("mean wait: {:.3f} s planned, {:.3f} s live".format(*waits))
