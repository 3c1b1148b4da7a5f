"""The only writer of the state: events go into the scheduler, its actions are performed here.

Laws of this file:
- Everything runs on one event loop. `post` applies an event at once; an event that arises while
  another is applied waits its turn in the inbox, so the scheduler is never entered twice.
- An action that takes time is a named task which reports back by an event and never raises.
- A bug in one model's lifecycle fails that model, tells its story in the log, and spares the rest.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Protocol

from modelyard.core.errors import ModelyardError, ShuttingDown
from modelyard.core.events import (
    Changed,
    CostLearned,
    DevicesChanged,
    EngineCleared,
    EngineNews,
    EngineSuspected,
    Grant,
    KeepWanted,
    MemoryMeasured,
    ModelEvent,
    ModelsChanged,
    PressureRead,
    Refuse,
    RequestLeft,
    RequestWaits,
    SchedulerAction,
    SchedulerEvent,
    ShutdownAsked,
    StartEngine,
    StartWanted,
    StopEngine,
    SuspendEngine,
    TimerDue,
    WakeEngine,
)
from modelyard.core.footprints import AWAKE
from modelyard.core.leaving import residue
from modelyard.core.lifecycle import (
    EngineAsleep,
    EngineEvent,
    EngineExited,
    EngineReady,
    InvalidTransition,
    SleepFailed,
    State,
    WakeFailed,
)
from modelyard.core.names import Names
from modelyard.core.policy import Policy
from modelyard.core.scheduler import Scheduler
from modelyard.core.shaping import VirtualModel
from modelyard.core.specs import Device, Endpoint, ModelSpec, Need, Progress
from modelyard.core.state import ModelState, ReplicaState
from modelyard.core.views import DeviceView, Event, LineView, LogView, ModelView, WaitingView
from modelyard.devices.base import Reading
from modelyard.engines.base import Engine
from modelyard.engines.command import CommandEngine
from modelyard.engines.remote import Remote
from modelyard.launchers.base import Launcher, LogLine
from modelyard.runtime.advisor import Advisor
from modelyard.runtime.broadcast import Broadcast
from modelyard.runtime.dialing import SocketFolders
from modelyard.runtime.engine_run import EngineRun, Suspend, Wake
from modelyard.runtime.learning import Learning
from modelyard.runtime.memory_watch import MemoryWatch
from modelyard.runtime.readiness import free_port
from modelyard.runtime.remote_run import RemoteRun, Run
from modelyard.runtime.sampling import Holder, Sample, Sampler
from modelyard.runtime.tasks import Tasks
from modelyard.runtime.upstream import Lease, Upstream
from modelyard.runtime.viewing import view_devices, view_model, view_waiting
from modelyard.runtime.virtuals import Virtuals
from modelyard.runtime.vitals import read_gauges

log = logging.getLogger("modelyard")

NOISE_MIB = 16
"""A change of a device's capacity by less than this is no news."""


class Waiter(Protocol):
    """A request that waits for its model. Exactly one of the two is called, once."""

    def granted(self, lease: Lease) -> None: ...

    def refused(self, error: ModelyardError) -> None: ...


class Loop:
    """Owns the scheduler, the engine runs, and those who wait."""

    def __init__(
        self,
        policy: Policy,
        devices: Sequence[Device],
        engines: Mapping[str, Engine],
        launcher: Launcher,
        broadcast: Broadcast,
        sampler: Sampler,
        learning: Learning,
        sockets: SocketFolders,
    ) -> None:
        self.scheduler = Scheduler(policy, devices)
        self.names = Names(())
        self.virtuals = Virtuals()
        self._specs: tuple[ModelSpec, ...] = ()
        self.broadcast = broadcast
        self.runs: dict[tuple[str, int], Run] = {}
        """The engines that run, by model and number of the run."""
        self.readings: Mapping[str, Reading] = {}
        """What the probes said last, by device."""
        self.advisor: Advisor | None = None
        """Knows what `auto` models are started with."""
        self._last_runs: dict[str, Run] = {}
        self.loads = 0
        self.stops = 0
        self.sleeps = 0
        self.wakes = 0
        self._sampler = sampler
        self._learning = learning
        self._memory = MemoryWatch(self.sample, self._strangers, self._residue)
        self._engines = engines
        self._launcher = launcher
        self.sockets = sockets
        self._loop = asyncio.get_running_loop()
        self._tasks = Tasks()
        self._revivals = Tasks()
        """Those who look whether a remote model is back; nobody waits for their end."""
        self._inbox: deque[SchedulerEvent] = deque()
        self._busy = False
        self._closing = False
        self._waiters: dict[int, Waiter] = {}
        self._tickets = itertools.count(1)
        self._timer: asyncio.TimerHandle | None = None
        self._fires_at = 0.0

    # ---------------------------------------------------------------------------- for the gateway

    @property
    def waiting(self) -> int:
        """Requests that wait for a model."""
        return len(self._waiters)

    def lease(self, model: str, prefix: int | None = None) -> Lease | None:
        """A lease on a ready engine, without waiting; None if the request has to wait.

        `prefix` is a hash of the beginning of the prompt: like ones go to the same replica.
        """
        run = self.scheduler.lease(model, self._loop.time(), prefix)
        return None if run is None else self._new_lease(model, run)

    def wait(self, model: str, waiter: Waiter, key: str = "", priority: int = 0) -> int:
        """Queue a request; `waiter` hears of its grant or refusal, perhaps before this returns.

        Requests of one `key` share their turns; a higher `priority` is served first.
        """
        ticket = next(self._tickets)
        if self._closing:
            waiter.refused(ShuttingDown())
            return ticket
        self._waiters[ticket] = waiter
        self.post(RequestWaits(model, ticket, key, priority))
        return ticket

    def leave(self, model: str, ticket: int) -> None:
        """The request no longer waits: its client is gone."""
        if self._waiters.pop(ticket, None) is not None:
            self.post(RequestLeft(model, ticket))

    def keep(self, model: str, keep_s: float) -> None:
        """Keep the model this long after its last request, unless others need its memory."""
        slot = self.scheduler.models.get(model)
        if slot is not None and slot.keep_s != keep_s:
            self.post(KeepWanted(model, keep_s))

    # ------------------------------------------------------------------------------ for operators

    def view(self, slot: ModelState) -> ModelView:
        """What the admin API says of a model now."""
        model = slot.spec.id
        runs = {run.run: run for run in self.runs.values() if run.spec.id == model}
        last = self._last_runs.get(model)
        view = view_model(slot, runs, last, self.scheduler, self._loop.time(), time.time())
        if self.names.virtuals:
            view = replace(view, virtuals=self.virtuals.leading_to(slot.spec, self.names))
        if self.advisor is None or not slot.spec.auto:
            return view
        return replace(view, auto=self.advisor.view(model, view.profile))

    def view_log(self, model: str, lines: int) -> LogView:
        """The newest lines of a model's running or last engine."""
        run = self._last_runs.get(model)
        if run is None or run.log is None:
            return LogView(model, None, [])
        tail = [LineView(model, run.run, line.number, line.text) for line in run.log.tail(lines)]
        return LogView(model, str(run.log.path), tail)

    def view_devices(self) -> list[DeviceView]:
        """The devices, who holds what there by claim, and what they really hold."""
        return view_devices(self.scheduler, self.readings)

    def view_waiting(self) -> list[WaitingView]:
        """Every request that waits for a model, and what will happen to it."""
        return view_waiting(self.scheduler, self._loop.time())

    def models_changed(self, specs: Iterable[ModelSpec]) -> None:
        """Serve exactly these models from now on. Only what changed is stopped."""
        specs = tuple(specs)
        self._specs = specs
        self.names = Names(specs, self.virtuals.known)
        self.post(ModelsChanged(specs))
        for spec in specs:
            for learned in self._learning.of(spec):
                self.post(learned)

    def virtuals_changed(self, virtuals: Iterable[VirtualModel]) -> None:
        """Serve these virtual models from now on."""
        self.virtuals.follow(virtuals)
        self.names = Names(self._specs, self.virtuals.known)

    def targets(self, name: str) -> list[str]:
        """The models that a name may mean, the one to ask first in front."""
        virtual = self.names.virtuals.get(name)
        if virtual is None:
            return [name]
        return self.virtuals.targets(virtual, self.names, self.scheduler)

    async def sample(self) -> Sample:
        """Read the devices now, and decide by what they hold."""
        ready = set()
        holders = []
        for run in self.runs.values():
            if (replica := self._replica(run)) is not None:
                claims, is_ready = run.placement.claims_mib, replica.state is State.READY
                holders.append(Holder(run.key, claims, is_ready, run.pids, run.reported_mib))
                if is_ready:
                    ready.add(run)
        sample = await self._sampler.sample(holders)
        self._sampled(sample, ready)
        return sample

    async def watch_devices(self, every_s: float | None) -> None:
        """Read the devices at this period, for ever; None never does."""
        while every_s is not None:
            await asyncio.sleep(every_s)
            await self.sample()

    async def watch_gauges(self, every_s: float) -> None:
        """Ask ready engines that may get another replica how full they are, for ever."""
        while True:
            await asyncio.sleep(every_s)
            for run in tuple(self.runs.values()):
                replica = self._replica(run)
                is_ready = replica is not None and replica.state is State.READY
                if not is_ready or run.spec.replicas.max <= 1 or not isinstance(run, EngineRun):
                    continue
                read = await read_gauges(run.endpoint)
                if read is not None:
                    self.post(PressureRead(run.spec.id, run.run, read.kv_share, read.waiting))

    def _strangers(self) -> Need:
        return {device.id: device.strangers_mib for device in self.scheduler.devices}

    def _residue(self, key: str, level: int) -> Need:
        runs = (self._replica(run) for run in self.runs.values())
        return next((residue(each, level) for each in runs if each and each.key == key), {})

    def _sampled(self, sample: Sample, ready: Set[Run]) -> None:
        """The devices were read: decide by what they hold now.

        What was measured of a replica that became ready meanwhile may be of an earlier moment.
        """
        self.readings = sample.readings
        if _differ(self.scheduler.devices, sample.devices):
            known = {device.id for device in self.scheduler.devices}
            self.post(DevicesChanged(sample.devices))
            if self.advisor is not None and known != {device.id for device in sample.devices}:
                self.advisor.devices_changed()
        for run in self.runs.values():
            replica = self._replica(run)
            used = sample.used_mib.get(replica.key) if replica is not None else None
            if replica is None or used is None or replica.state is not State.READY:
                continue
            lost = tuple(sample.lost.get(replica.key, ()))
            if run in ready and (used != replica.used_mib or lost):
                self.post(MemoryMeasured(run.spec.id, run.run, used, lost))
                self._tasks.spawn(self._learn(run, AWAKE, used), f"learn from {replica.key}")

    def _replica(self, run: Run) -> ReplicaState | None:
        slot = self.scheduler.models.get(run.spec.id)
        return slot.replica_of(run.run) if slot is not None else None

    async def _learn(self, run: Run, level: int, used: Need) -> None:
        spec, placed = run.spec, run.placement
        learned = await self._learning.measured(spec, run.run, placed, level, used)
        if learned is not None:
            self.post(learned)

    def post(self, event: SchedulerEvent) -> None:
        """Apply an event and perform what follows from it."""
        self._inbox.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._inbox:
                self._apply(self._inbox.popleft())
        finally:
            self._busy = False
        self._arm(self.scheduler.next_timer())

    async def close(self, deadline_s: float) -> None:
        """Stop everything: let requests in flight end for at most `deadline_s`, then cut them."""
        self._closing = True
        await self._revivals.close()
        self.post(ShutdownAsked())
        try:
            async with asyncio.timeout(deadline_s):
                await self._tasks.join()
        except TimeoutError:
            log.warning("requests were still in flight after %g s; they are cut", deadline_s)
            self.cut()
            await self._tasks.join()
        if self._timer is not None:
            self._timer.cancel()

    def cut(self) -> None:
        """End every engine now, whoever uses it."""
        for run in self.runs.values():
            run.ask_stop(0.0, 0.0)

    # ------------------------------------------------------------------------------------- inside

    def _apply(self, event: SchedulerEvent) -> None:
        try:
            actions = self.scheduler.handle(event, self._loop.time())
        except InvalidTransition as bug:
            model = event.model if isinstance(event, ModelEvent) else ""
            log.exception("model %s: a bug in its lifecycle", model)
            actions = self.scheduler.fail(model, str(bug)) if model else []
        for action in actions:
            self._perform(action)

    def _perform(self, action: SchedulerAction) -> None:
        match action:
            case StartEngine():
                self._start(action)
            case StopEngine() | SuspendEngine() | WakeEngine():
                run = self.runs.get((action.model, action.run))
                if run is not None:
                    _tell(run, action)
            case Grant(ticket, model, number):
                waiter = self._waiters.pop(ticket, None)
                if waiter is None:
                    self._new_lease(model, number).close(served=True)
                else:
                    waiter.granted(self._new_lease(model, number))
            case Refuse(ticket, error):
                waiter = self._waiters.pop(ticket, None)
                if waiter is not None:
                    waiter.refused(error)
            case Changed(model):
                self._publish(model)
            case CostLearned():
                slot = self.scheduler.models.get(action.model)
                if slot is not None:  # its files may have gone while its engine ended
                    took = self._learning.took(slot.spec, action)
                    self._tasks.spawn(took, f"learn from {action.model}")

    def _start(self, start: StartEngine) -> None:
        run = self._new_run(start, self._engines[start.spec.engine])
        self.runs[start.spec.id, start.run] = self._last_runs[start.spec.id] = run
        if self.advisor is not None and start.spec.auto:
            advised = self.advisor.view(start.spec.id, start.placement.profile)
            if advised is not None and advised.tried:
                run.progress = Progress(f"trying {advised.step}")
        log.info(
            "model %s: starting run %d%s with profile %s",
            start.spec.id,
            start.run,
            f" at {run.endpoint}" if isinstance(run, EngineRun) else "",
            start.placement.profile,
        )
        self._tasks.spawn(self._live(run), f"run {start.run} of {start.spec.id}")

    def _new_run(self, start: StartEngine, engine: Engine) -> Run:
        if isinstance(engine, Remote):
            return RemoteRun(
                start,
                engine,
                self._last_runs.get(start.spec.id),
                on_news=self._news,
                on_suspicion=self._suspicion,
                on_progress=self._progressed,
            )
        if isinstance(engine, CommandEngine) and engine.takes_socket(start.spec, start.placement):
            endpoint = self.sockets.new()
        else:
            endpoint = Endpoint("127.0.0.1", engine.fixed_port(start.spec) or self._free_port())
        return EngineRun(
            start,
            engine,
            endpoint,
            self._memory,
            on_news=self._news,
            on_suspicion=self._suspicion,
            on_line=self._heard,
            on_progress=self._progressed,
        )

    def _free_port(self) -> int:
        """A port that nobody listens on and that no other engine is about to listen on."""
        given = {run.endpoint.port for run in self.runs.values() if isinstance(run, EngineRun)}
        return next(port for port in iter(free_port, 0) if port not in given)

    async def _live(self, run: Run) -> None:
        news = EngineExited(run.run, "its task was cancelled")
        try:
            news = self._stepped(run, await run.live(self._launcher))
        except Exception as error:
            log.exception("model %s: run %d broke", run.spec.id, run.run)
            news = EngineExited(run.run, f"internal error: {error!r}", permanent=True)
        finally:
            del self.runs[run.spec.id, run.run]
            self.stops += 1
            why = f": {news.reason}" if news.reason else ""
            log.info("model %s: run %d ended%s", run.spec.id, run.run, why)
            self.post(EngineNews(run.spec.id, news))
            slot = self.scheduler.models.get(run.spec.id)
            if slot is not None:
                asked = self._learning.asked(run.spec.id, slot.demand, self._loop.time())
                self._tasks.spawn(asked, f"remember the demand of {run.spec.id}")
            if isinstance(run, RemoteRun) and run.upstream.failover and news.reason:
                self._revivals.spawn(self._revive(run), f"look whether {run.spec.id} is back")

    def _stepped(self, run: Run, news: EngineExited) -> EngineExited:
        """After a start that ran out of memory: the next step of an `auto` model, or its failure.

        What runs already is not started anew because a further replica does not fit.
        """
        failure = run.failure if isinstance(run, EngineRun) else None
        replica = self._replica(run)
        if self.advisor is None or failure is None or failure.lack is None or replica is None:
            return news
        alone = replica.state is State.STARTING and len(replica.model.serving) == 1
        if not run.spec.auto or not alone:
            return news
        story = self.advisor.step(run.spec.id, run.placement.profile, failure)
        return news if story is None else replace(news, reason=story, permanent=True)

    async def _revive(self, run: RemoteRun) -> None:
        """Start a remote model that has failed again, once one of its upstreams is back."""
        while self._has_failed(run):
            if await run.is_back() and self._has_failed(run):
                self.post(StartWanted(run.spec.id))
                return

    def _has_failed(self, run: Run) -> bool:
        """Whether it was this run after which the model was given up."""
        replica = self._replica(run)
        return replica is not None and replica.state is State.FAILED

    def _news(self, run: Run, news: EngineEvent) -> None:
        model = run.spec.id
        match news:
            case EngineReady():
                replica = self._replica(run)
                woke = replica is not None and replica.state is State.WAKING
                self.wakes += woke
                self.loads += not woke
                log.info("model %s: run %d is %s", model, run.run, "awake" if woke else "ready")
            case EngineAsleep(_, held_mib):
                self.sleeps += 1
                replica = self._replica(run)
                slept = replica.life.level if replica is not None else 0
                self._tasks.spawn(self._learn(run, slept, held_mib), f"learn from {model}")
                log.info("model %s: run %d sleeps and keeps %s", model, run.run, dict(held_mib))
            case SleepFailed(_, reason) | WakeFailed(_, reason):
                log.warning("model %s: %s: %s", model, type(news).__name__, reason)
        self.post(EngineNews(model, news))

    def _suspicion(self, run: Run, suspected: bool) -> None:
        kind = EngineSuspected if suspected else EngineCleared
        self.post(kind(run.spec.id, run.run))

    def _heard(self, run: Run, line: LogLine) -> None:
        topic = f"log:{run.spec.id}"
        if self.broadcast.wanted(topic):
            heard = LineView(run.spec.id, run.run, line.number, line.text)
            self.broadcast.publish(Event(topic, heard))

    def _progressed(self, run: Run) -> None:
        self._publish(run.spec.id)

    def _publish(self, model: str) -> None:
        if not self.broadcast.wanted("models"):
            return
        slot = self.scheduler.models.get(model)
        if slot is None:
            self.broadcast.publish(Event("removed", model))
        else:
            self.broadcast.publish(Event("models", self.view(slot)))

    def _new_lease(self, model: str, run: int) -> Lease:
        upstream = self.runs[model, run].upstream
        upstream.leases += 1
        return Lease(upstream, self._release)

    def _release(self, upstream: Upstream, served: bool) -> None:
        upstream.lease_closed()
        now = self._loop.time()
        for action in self.scheduler.release(upstream.model, upstream.run, now, served=served):
            self._perform(action)
        if not upstream.leases:
            self._arm(self.scheduler.next_timer())

    def _arm(self, due: float) -> None:
        """Have a timer fire at `due` at the latest.

        One that fires early does no harm: the deadlines are computed anew when it does.
        """
        if due == math.inf or (self._timer is not None and self._fires_at <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._fires_at = due  # uvloop's timers do not tell, if they are due at once
        self._timer = self._loop.call_at(due, self._timer_due)

    def _timer_due(self) -> None:
        self._timer = None
        self.post(TimerDue())


def _differ(before: Sequence[Device], now: Sequence[Device]) -> bool:
    """Whether decisions could come out differently; a few MiB of noise do not count."""
    if [device.id for device in before] != [device.id for device in now]:
        return True
    pairs = zip(before, now, strict=True)
    return any(
        abs(a.capacity_mib - b.capacity_mib) >= NOISE_MIB or a.most_mib != b.most_mib
        for a, b in pairs
    )


def _tell(run: Run, action: StopEngine | SuspendEngine | WakeEngine) -> None:
    match action:
        case StopEngine(model, _, drain_s, grace_s, why):
            log.info("model %s: stopping, %s", model, why)
            run.ask_stop(drain_s, grace_s)
        case SuspendEngine(model, _, level, drain_s, why):
            log.info("model %s: going to sleep at level %d, %s", model, level, why)
            run.order(Suspend(level, drain_s))
        case WakeEngine(model, _, level):
            log.info("model %s: waking up", model)
            run.order(Wake(level))
