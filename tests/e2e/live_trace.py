"""One trace, played twice: against real processes, and against imagined ones.

Laws of this file:
- Both sides get the same requests, models, costs, devices and parameters, in seconds of the wall's
  clock; nothing is scaled on one side only.
- What the live scheduler was told and what it answered is written down in order, with its times.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from modelyard.config import Config
from modelyard.config import Devices as DeviceSettings
from modelyard.core.events import (
    CostKnown,
    SchedulerAction,
    SchedulerEvent,
    StartEngine,
    StopEngine,
)
from modelyard.core.footprints import kinds_of
from modelyard.core.policy import Policy
from modelyard.core.scheduler import Scheduler
from modelyard.core.specs import Device, Limits, ModelSpec, Profile, Task
from modelyard.simulation.trace import read_trace
from modelyard.simulation.values import (
    Costs,
    Cut,
    Job,
    Model,
    Setup,
    Switch,
    default_memory_gib,
    mib,
)
from modelyard.testing.fake_books import Book
from modelyard.testing.fake_gpu import FakeGpuProbe
from modelyard.testing.server import Running, running

TRACE = Path(__file__).parents[2] / "bench" / "traces" / "vtc_arena_requests.csv.gz"
STRETCH = 3.0
"""The arena's requests, three times as far apart: 300 in 404 s."""
SPEED = 10.0
"""So many times faster than that everything is played: arrivals, service, costs, patience."""
DEVICES = 2
DEVICE_GIB = 76
SIZES_GIB = (1.5, 4, 8, 8, 15, 16, 16, 28, 30, 40, 48, 61)
TOKENS_PER_S = 1000
"""Of the fake engines: a token of an answer is a millisecond of service."""
CONCURRENCY = 16
START_ADDS_S, STOP_ADDS_S, SERVICE_ADDS_S = 0.012, 0.033, 0.003
"""What our server and the system add to an engine's own times: seconds from a decision to the
process and from the health route to the news; from the exit to the news; of the way to and fro.
Engines take that much less, so that a cost is what the scheduler sees; on another machine the rest
is part of the jitter."""

Turn = tuple[str, str]
"""`start` or `stop`, and the model."""


def requests(count: int) -> list[Job]:
    """The first requests of the trace, in seconds of the wall's clock."""
    jobs = read_trace(TRACE, (), cut=Cut(stretch=STRETCH))[:count]
    return [Job(job.model, job.arrived_s / SPEED, round(job.service_s / SPEED, 3)) for job in jobs]


def parameters() -> Policy:
    """The usual ones, in the trace's time; but nobody looks ahead.

    That happens at most once a second, on whatever news comes then, and a live server has more news
    than the simulator: readings of the devices, and what was measured and learned.
    """
    usual = Policy()
    return replace(
        usual,
        make_room=False,
        prefetch=False,
        fair_after_s=usual.fair_after_s / SPEED,
        rate_memory_s=usual.rate_memory_s / SPEED,
        scale_up_after_s=usual.scale_up_after_s / SPEED,
    )


def setup_for(jobs: Sequence[Job]) -> Setup:
    """Models of all sizes. A start takes 0.4 to 1 s: much more than Python takes to start."""
    chance = random.Random(1)
    models = {}
    for name in sorted({job.model for job in jobs}):
        gib = chance.choice(SIZES_GIB)
        costs = Costs(Switch((4 + gib / 10) / SPEED, 1 / SPEED))
        memory_mib = mib(default_memory_gib(gib, 1, DEVICE_GIB))
        models[name] = Model(name, gib, memory_mib, costs)
    return Setup(models, [DEVICE_GIB * 1024] * DEVICES, CONCURRENCY)


# ------------------------------------------------------------------------------------- what was so


@dataclass(frozen=True)
class Told:
    """An event, or a call of the hot path, and what came back."""

    now: float
    what: str
    """`handle`, `lease` or `release`."""
    given: tuple[object, ...]
    answer: object


class RecordingScheduler:
    """The scheduler itself; it only writes down what it hears and says. No subclass: where it is
    compiled, none may be interpreted."""

    def __init__(self, policy: Policy, devices: Sequence[Device]) -> None:
        self._scheduler = Scheduler(policy, devices)
        self.begun_with = (policy, self._scheduler.devices)
        self.told: list[Told] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    def handle(self, event: SchedulerEvent, now: float) -> list[SchedulerAction]:
        actions = self._scheduler.handle(event, now)
        self.told.append(Told(now, "handle", (event,), tuple(actions)))
        return actions

    def lease(self, model: str, now: float, prefix: int | None = None) -> int | None:
        run = self._scheduler.lease(model, now, prefix)
        self.told.append(Told(now, "lease", (model, prefix), run))
        return run

    def release(self, model: str, run: int, now: float, *, served: bool) -> list[SchedulerAction]:
        actions = self._scheduler.release(model, run, now, served=served)
        self.told.append(Told(now, "release", (model, run, served), tuple(actions)))
        return actions


def actions_of(told: Told) -> Iterator[SchedulerAction]:
    if isinstance(told.answer, tuple):
        yield from told.answer


def turns_of(story: Sequence[Told]) -> list[Turn]:
    """Who came and who left, in order."""
    turns = []
    for told in story:
        for action in actions_of(told):
            if isinstance(action, StartEngine):
                turns.append(("start", action.spec.id))
            elif isinstance(action, StopEngine):
                turns.append(("stop", action.model))
    return turns


# ------------------------------------------------------------------------------------------- live


@dataclass
class Live:
    """What real processes made of the requests."""

    begun_s: float
    """The moment 0 of the trace, on the scheduler's clock."""
    story: list[Told]
    scheduler: RecordingScheduler
    statuses: list[int]

    @property
    def turns(self) -> list[Turn]:
        return turns_of(self.story)


def specs(setup: Setup) -> tuple[ModelSpec, ...]:
    return tuple(_spec(model) for model in setup.models.values())


def _spec(model: Model) -> ModelSpec:
    load_s = model.costs.start.up_s - START_ADDS_S
    unload_s = model.costs.start.down_s - STOP_ADDS_S
    return ModelSpec(
        model.name,
        "command",
        frozenset({Task.COMPLETION}),
        command=(
            *(sys.executable, "-m", "modelyard.testing.fake_engine", "--port", "{port}"),
            *("--model", model.name, "--tps", str(TOKENS_PER_S)),
            *("--load", f"{load_s:.3f}s", "--load-since-birth", "--unload", f"{unload_s:.3f}s"),
        ),
        profiles=(Profile("default", ("gpu",), {"gpu": model.memory_mib}),),
        limits=Limits(
            idle_sleep_s=None, idle_stop_s=None, concurrency=CONCURRENCY, stop_grace_s=10
        ),
    )


async def play(setup: Setup, jobs: Sequence[Job], folder: Path) -> Live:
    """Send the requests at their times to a server. Its scheduler has to be a recording one."""
    book = Book.create(folder / "gpus", [f"{DEVICE_GIB}GiB"] * DEVICES, host="512GiB")
    config = Config(
        models=specs(setup),
        devices=DeviceSettings(reserve_mib=0, sample_every_s=None),
        scheduling=parameters(),
    )
    probes = [FakeGpuProbe(book.folder)]
    async with running(config, folder / "state", devices=probes) as server:
        return await _play(server, setup, jobs)


async def _play(server: Running, setup: Setup, jobs: Sequence[Job]) -> Live:
    loop = server.yard.loop
    scheduler = loop.scheduler
    assert isinstance(scheduler, RecordingScheduler)
    kinds = kinds_of([device for device in scheduler.devices if device.kind != "cpu"][:1])
    for model in setup.models.values():
        costs = model.costs.start
        for step, seconds in (("start", costs.up_s), ("stop", costs.down_s)):
            loop.post(CostKnown(model.name, "default", kinds, step, seconds))
    timeout, limits = httpx.Timeout(120, pool=None), httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=timeout, limits=limits) as http:
        await http.get("/v1/models")
        first = len(scheduler.told)
        begun_s = asyncio.get_running_loop().time() + 0.1
        asked = (asyncio.create_task(_ask(http, job, begun_s)) for job in jobs)
        statuses = await asyncio.gather(*asked)
        async with asyncio.timeout(60):
            while any(slot.in_flight for slot in scheduler.models.values()):
                await asyncio.sleep(0.01)
        last = max(at for at, told in enumerate(scheduler.told) if told.what == "release")
        return Live(begun_s, scheduler.told[first : last + 1], scheduler, statuses)


async def _ask(http: httpx.AsyncClient, job: Job, begun_s: float) -> int:
    loop = asyncio.get_running_loop()
    await asyncio.sleep(begun_s + job.arrived_s - loop.time())
    length = max(1, round((job.service_s - SERVICE_ADDS_S) * TOKENS_PER_S))
    body = {"model": job.model, "prompt": "hello", "max_tokens": length}
    return (await http.post("/v1/completions", json=body)).status_code
