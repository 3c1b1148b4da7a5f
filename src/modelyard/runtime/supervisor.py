"""The runs of engines: begun, told what to do, and followed until nothing of them is left.

Laws of this file:
- A run is a named task that tells of its end by news, once, whatever happened, and never raises.
- No engine is told a port that another one listens on, or is about to listen on.
- A start of an `auto` model that ran out of memory is followed by its next step. What runs already
  is not started anew because a further replica does not fit.
- A remote model that was given up is looked for until it is back or no longer given up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import replace

from modelyard.core.events import (
    EngineCleared,
    EngineSuspected,
    PressureRead,
    SchedulerEvent,
    StartEngine,
    StartWanted,
    StopEngine,
    SuspendEngine,
    WakeEngine,
)
from modelyard.core.lifecycle import EngineEvent, EngineExited, State
from modelyard.core.scheduler import Scheduler
from modelyard.core.specs import Endpoint, Progress
from modelyard.core.views import Event, LineView
from modelyard.engines.base import Engine
from modelyard.engines.command import CommandEngine
from modelyard.engines.remote import Remote
from modelyard.launchers.base import Launcher, LogLine
from modelyard.runtime.advisor import Advisor
from modelyard.runtime.broadcast import Broadcast
from modelyard.runtime.dialing import SocketFolders
from modelyard.runtime.engine_run import EngineRun, Suspend, Wake
from modelyard.runtime.memory_watch import MemoryWatch
from modelyard.runtime.readiness import free_port
from modelyard.runtime.remote_run import RemoteRun, Run
from modelyard.runtime.tasks import Tasks
from modelyard.runtime.vitals import read_gauges

log = logging.getLogger("modelyard")


class Supervisor:
    """Starts engines and tells them to stop, to sleep and to wake."""

    def __init__(
        self,
        scheduler: Scheduler,
        runs: MutableMapping[tuple[str, int], Run],
        engines: Mapping[str, Engine],
        launcher: Launcher,
        sockets: SocketFolders,
        memory: MemoryWatch,
        advisor: Advisor,
        broadcast: Broadcast,
        *,
        post: Callable[[SchedulerEvent], None],
        on_news: Callable[[Run, EngineEvent], None],
        on_progress: Callable[[Run], None],
    ) -> None:
        """`runs` are the engines that run, by model and number of the run; they are kept here. The
        scheduler is only read."""
        self.last: dict[str, Run] = {}
        """The newest run of each model, also when it has ended."""
        self.sockets = sockets
        self._scheduler = scheduler
        self._runs = runs
        self._engines = engines
        self._launcher = launcher
        self._memory = memory
        self._advisor = advisor
        self._broadcast = broadcast
        self._post = post
        self._on_news = on_news
        self._on_progress = on_progress
        self._tasks = Tasks()
        self.revivals = Tasks()
        """Those who look whether a remote model is back; nobody waits for their end."""

    def start(self, start: StartEngine) -> None:
        """Begin a run."""
        run = self._new_run(start, self._engines[start.spec.engine])
        self._runs[start.spec.id, start.run] = self.last[start.spec.id] = run
        if start.spec.auto:
            advised = self._advisor.view(start.spec.id, start.placement.profile)
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

    def tell(self, action: StopEngine | SuspendEngine | WakeEngine) -> None:
        """Tell a run what to do, if it has not ended meanwhile."""
        run = self._runs.get((action.model, action.run))
        if run is None:
            return
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

    async def watch_gauges(self, every_s: float) -> None:
        """Ask ready engines that may get another replica how full they are, for ever."""
        while True:
            await asyncio.sleep(every_s)
            for run in tuple(self._runs.values()):
                replica = self._scheduler.replica_of(run.spec.id, run.run)
                is_ready = replica is not None and replica.state is State.READY
                if not is_ready or run.spec.replicas.max <= 1 or not isinstance(run, EngineRun):
                    continue
                read = await read_gauges(run.endpoint)
                if read is not None:
                    self._post(PressureRead(run.spec.id, run.run, read.kv_share, read.waiting))

    async def join(self) -> None:
        """Wait until every run has ended by itself."""
        await self._tasks.join()

    def cut(self) -> None:
        """End every engine now, whoever uses it."""
        for run in self._runs.values():
            run.ask_stop(0.0, 0.0)

    # ---------------------------------------------------------------------------------- a new run

    def _new_run(self, start: StartEngine, engine: Engine) -> Run:
        if isinstance(engine, Remote):
            return RemoteRun(
                start,
                engine,
                self.last.get(start.spec.id),
                on_news=self._on_news,
                on_suspicion=self._suspicion,
                on_progress=self._on_progress,
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
            on_news=self._on_news,
            on_suspicion=self._suspicion,
            on_line=self._heard,
            on_progress=self._on_progress,
        )

    def _free_port(self) -> int:
        """A port that nobody listens on and that no other engine is about to listen on."""
        given = {run.endpoint.port for run in self._runs.values() if isinstance(run, EngineRun)}
        return next(port for port in iter(free_port, 0) if port not in given)

    def _suspicion(self, run: Run, suspected: bool) -> None:
        kind = EngineSuspected if suspected else EngineCleared
        self._post(kind(run.spec.id, run.run))

    def _heard(self, run: Run, line: LogLine) -> None:
        topic = f"log:{run.spec.id}"
        if self._broadcast.wanted(topic):
            heard = LineView(run.spec.id, run.run, line.number, line.text)
            self._broadcast.publish(Event(topic, heard))

    # -------------------------------------------------------------------------- its life, its end

    async def _live(self, run: Run) -> None:
        news = EngineExited(run.run, "its task was cancelled")
        try:
            news = self._stepped(run, await run.live(self._launcher))
        except Exception as error:
            log.exception("model %s: run %d broke", run.spec.id, run.run)
            news = EngineExited(run.run, f"internal error: {error!r}", permanent=True)
        finally:
            del self._runs[run.spec.id, run.run]
            self._on_news(run, news)
            if isinstance(run, RemoteRun) and run.upstream.failover and news.reason:
                self.revivals.spawn(self._revive(run), f"look whether {run.spec.id} is back")

    def _stepped(self, run: Run, news: EngineExited) -> EngineExited:
        """What follows for an `auto` model whose start ran out of memory: a next step or none."""
        failure = run.failure if isinstance(run, EngineRun) else None
        replica = self._scheduler.replica_of(run.spec.id, run.run)
        if failure is None or failure.lack is None or replica is None:
            return news
        alone = replica.state is State.STARTING and len(replica.model.serving) == 1
        if not run.spec.auto or not alone:
            return news
        story = self._advisor.step(run.spec.id, run.placement.profile, failure)
        return news if story is None else replace(news, reason=story, permanent=True)

    async def _revive(self, run: RemoteRun) -> None:
        """Start a remote model that has failed again, once one of its upstreams is back."""
        while self._has_failed(run):
            if await run.is_back() and self._has_failed(run):
                self._post(StartWanted(run.spec.id))
                return

    def _has_failed(self, run: Run) -> bool:
        """Whether it was this run after which the model was given up."""
        replica = self._scheduler.replica_of(run.spec.id, run.run)
        return replica is not None and replica.state is State.FAILED
