"""The only writer of the state: events go into the scheduler, its actions are performed here.

Laws of this file:
- Everything runs on one event loop. `post` applies an event at once; an event that arises while
  another is applied waits its turn in the inbox, so the scheduler is never entered twice.
- An action that takes time is a named task which reports back by an event and never raises: what
  engines do is in `supervisor`, what devices tell in `device_watch`.
- A bug in one model's lifecycle fails that model, tells its story in the log, and spares the rest.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from modelyard.core.errors import ModelyardError, ShuttingDown
from modelyard.core.events import (
    Changed,
    CostLearned,
    EngineNews,
    Grant,
    KeepWanted,
    ModelEvent,
    ModelsChanged,
    Refuse,
    RequestLeft,
    RequestWaits,
    SchedulerAction,
    SchedulerEvent,
    ShutdownAsked,
    StartEngine,
    StopEngine,
    SuspendEngine,
    TimerDue,
    WakeEngine,
)
from modelyard.core.footprints import AWAKE
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
from modelyard.core.specs import Device, ModelSpec, Need
from modelyard.core.state import ModelState
from modelyard.core.views import DeviceView, Event, LineView, LogView, ModelView, WaitingView
from modelyard.engines.base import Engine
from modelyard.launchers.base import Launcher
from modelyard.runtime.advisor import Advisor
from modelyard.runtime.broadcast import Broadcast
from modelyard.runtime.device_watch import DeviceWatch
from modelyard.runtime.dialing import SocketFolders
from modelyard.runtime.learning import Learning
from modelyard.runtime.memory_watch import MemoryWatch
from modelyard.runtime.remote_run import Run
from modelyard.runtime.sampling import Sampler
from modelyard.runtime.supervisor import Supervisor
from modelyard.runtime.tasks import Tasks
from modelyard.runtime.upstream import Lease, Upstream
from modelyard.runtime.viewing import view_devices, view_model, view_waiting
from modelyard.runtime.virtuals import Virtuals

log = logging.getLogger("modelyard")


class Waiter(Protocol):
    """A request that waits for its model. Exactly one of the two is called, once."""

    def granted(self, lease: Lease) -> None: ...

    def refused(self, error: ModelyardError) -> None: ...


class Loop:
    """Owns the scheduler, and those who wait."""

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
        advisor: Advisor,
    ) -> None:
        self.scheduler = Scheduler(policy, devices)
        self.names = Names(())
        self.virtuals = Virtuals()
        self._specs: tuple[ModelSpec, ...] = ()
        self.broadcast = broadcast
        self.runs: dict[tuple[str, int], Run] = {}
        """The engines that run, by model and number of the run."""
        self.loads = 0
        self.stops = 0
        self.sleeps = 0
        self.wakes = 0
        self.device_watch = DeviceWatch(
            self.scheduler,
            self.runs,
            sampler,
            advisor,
            post=self.post,
            on_use=lambda run, used: self._learn(run, AWAKE, used),
        )
        watch = self.device_watch
        self.supervisor = Supervisor(
            self.scheduler,
            self.runs,
            engines,
            launcher,
            sockets,
            MemoryWatch(watch.sample, watch.strangers, watch.residue),
            advisor,
            broadcast,
            post=self.post,
            on_news=self._news,
            on_progress=lambda run: self._publish(run.spec.id),
        )
        self._learning = learning
        self._advisor = advisor
        self._loop = asyncio.get_running_loop()
        self._tasks = Tasks()
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
        last = self.supervisor.last.get(model)
        view = view_model(slot, runs, last, self.scheduler, self._loop.time(), time.time())
        if self.names.virtuals:
            view = replace(view, virtuals=self.virtuals.leading_to(slot.spec, self.names))
        if not slot.spec.auto:
            return view
        return replace(view, auto=self._advisor.view(model, view.profile))

    def view_log(self, model: str, lines: int) -> LogView:
        """The newest lines of a model's running or last engine."""
        run = self.supervisor.last.get(model)
        if run is None or run.log is None:
            return LogView(model, None, [])
        tail = [LineView(model, run.run, line.number, line.text) for line in run.log.tail(lines)]
        return LogView(model, str(run.log.path), tail)

    def view_devices(self) -> list[DeviceView]:
        """The devices, who holds what there by claim, and what they really hold."""
        return view_devices(self.scheduler, self.device_watch.readings)

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

    # --------------------------------------------------------------------------------- the events

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
        await self.supervisor.revivals.close()
        self.post(ShutdownAsked())
        try:
            async with asyncio.timeout(deadline_s):
                await self.supervisor.join()
        except TimeoutError:
            log.warning("requests were still in flight after %g s; they are cut", deadline_s)
            self.supervisor.cut()
            await self.supervisor.join()
        await self._tasks.join()
        if self._timer is not None:
            self._timer.cancel()

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
                self.supervisor.start(action)
            case StopEngine() | SuspendEngine() | WakeEngine():
                self.supervisor.tell(action)
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

    def _news(self, run: Run, news: EngineEvent) -> None:
        """A run tells what it has become: counted, told to people, remembered, and posted."""
        model = run.spec.id
        match news:
            case EngineReady():
                replica = self.scheduler.replica_of(model, run.run)
                woke = replica is not None and replica.state is State.WAKING
                self.wakes += woke
                self.loads += not woke
                log.info("model %s: run %d is %s", model, run.run, "awake" if woke else "ready")
            case EngineAsleep(_, held_mib):
                self.sleeps += 1
                replica = self.scheduler.replica_of(model, run.run)
                self._learn(run, replica.life.level if replica is not None else 0, held_mib)
                log.info("model %s: run %d sleeps and keeps %s", model, run.run, dict(held_mib))
            case SleepFailed(_, reason) | WakeFailed(_, reason):
                log.warning("model %s: %s: %s", model, type(news).__name__, reason)
            case EngineExited(_, reason):
                self.stops += 1
                log.info(
                    "model %s: run %d ended%s", model, run.run, f": {reason}" if reason else ""
                )
        self.post(EngineNews(model, news))
        slot = self.scheduler.models.get(model)
        if isinstance(news, EngineExited) and slot is not None:
            asked = self._learning.asked(model, slot.demand, self._loop.time())
            self._tasks.spawn(asked, f"remember the demand of {model}")

    def _learn(self, run: Run, level: int, used: Need) -> None:
        """Remember what a run holds at a level of sleep."""
        self._tasks.spawn(self._measured(run, level, used), f"learn from {run.key}")

    async def _measured(self, run: Run, level: int, used: Need) -> None:
        spec, placed = run.spec, run.placement
        learned = await self._learning.measured(spec, run.run, placed, level, used)
        if learned is not None:
            self.post(learned)

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
