"""One run of one engine: from its command to the exit of its last process.

Laws of this file:
- `live` never raises for anything the engine, the machine or the launcher does: it returns how the
  run ended, once, after no process of it is left and its memory was seen to be back.
- An engine is ready when its process lives, its port takes connections, its health route answers
  and it has given one token or one vector; a suspected one is cleared by the same layers. Its own
  traffic proves as much: no probe is made where real requests are answered meanwhile.
- Sleep and wake are orders within a run, carried out one at a time. A stop comes before all of
  them; an exit ends them.
- Whatever interrupts the run (a stop, a time-out, a cancelled server) goes through the same
  `finally`: connections closed, processes ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modelyard.core.errors import LaunchError
from modelyard.core.events import StartEngine
from modelyard.core.lifecycle import (
    EngineAsleep,
    EngineEvent,
    EngineExited,
    EngineReady,
    SleepFailed,
    WakeFailed,
)
from modelyard.core.specs import Call, Endpoint, Need, Progress
from modelyard.engines.base import Engine, Failure
from modelyard.launchers.base import EngineLog, Exit, Launcher, LogLine, Process
from modelyard.runtime.control import ControlFailed, NoAnswer, Unreachable, call
from modelyard.runtime.dialing import is_taken, make_folder, remove_folder
from modelyard.runtime.memory_watch import MemoryKept, MemoryWatch
from modelyard.runtime.readiness import until_ready
from modelyard.runtime.upstream import Upstream
from modelyard.runtime.vitals import Vitals

log = logging.getLogger("modelyard")

CAUSE_LINES = 400
"""Log lines in which the cause of an engine's end is looked for: vLLM prints long tracebacks after
it."""
REASON_LINES = 30
"""Log lines quoted when an engine ends before it is ready."""
EXIT_NEWS_S = 2.0
"""How long an engine that cannot be reached is given to turn out to be dead. A dead one has not
failed to sleep or to wake, and may do so again."""
MAX_SAID = 4000
"""Lines of an engine that are kept for its report of its memory."""
HUNG_AFTER_S = 30.0
"""How long an engine that broke an answer off may leave its health route or a probe unanswered."""
PROBE_AGAIN_S = 1.0
"""Pause between two probes of an engine that answers them with errors."""
PROBING = Progress("trying the model")


@dataclass(frozen=True, slots=True)
class Suspend:
    """Sleep once no request is in flight, or `drain_s` has passed."""

    level: int
    drain_s: float | None


@dataclass(frozen=True, slots=True)
class Wake:
    level: int


class EngineRun:
    """A run in progress. `upstream` takes requests once the engine is ready."""

    def __init__(
        self,
        start: StartEngine,
        engine: Engine,
        endpoint: Endpoint,
        memory: MemoryWatch,
        *,
        on_news: Callable[[EngineRun, EngineEvent], None],
        on_suspicion: Callable[[EngineRun, bool], None],
        on_line: Callable[[EngineRun, LogLine], None],
        on_progress: Callable[[EngineRun], None],
    ) -> None:
        self.spec = start.spec
        self.run = start.run
        self.key = start.key
        """Names the replica: the model's id, with a number from the second on."""
        self.placement = start.placement
        self.engine = engine
        self.endpoint = endpoint
        self.progress: Progress | None = Progress("starting")
        self.upstream = Upstream(start.spec.id, start.run, endpoint, self._suspect)
        self.vitals = Vitals(self._suspect)
        self.upstream.answered = self.vitals.answered
        self.upstream.quirks = engine.quirks(start.spec)
        self._memory = memory
        self._on_news = on_news
        self._on_suspicion = on_suspicion
        self._on_line = on_line
        self._on_progress = on_progress
        self._process: Process | None = None
        self._probed = f"GET {engine.health_path(start.spec)} "
        """How an engine's access log tells of our looking for it, again and again."""
        self._said: list[str] = []
        """Lines that may tell of memory: all until it is ready, then those that mention it."""
        self._report: Need = {}
        self._report_of = 0
        self._orders: asyncio.Queue[Suspend | Wake] = asyncio.Queue()
        self._suspected = asyncio.Event()
        self._awake = True
        """Whether requests would be answered: not between an order to sleep and the wake."""
        self._stop_asked = asyncio.Event()
        self._hastened = asyncio.Event()
        self._drain_until: float | None = None
        self._grace_s = start.spec.limits.stop_grace_s
        self.failure: Failure | None = None
        """Why the run ended, once it has ended by itself."""

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def reported_mib(self) -> Need:
        """What the engine's own log says that it holds, by device."""
        if self._report_of != len(self._said):
            said = tuple(self._said)
            self._report = self.engine.memory_report(said, self.placement)
            self._report_of = len(said)
        return self._report

    @property
    def log(self) -> EngineLog | None:
        return self._process.log if self._process else None

    def pids(self) -> set[int]:
        """The engine's processes that live now; may block."""
        return self._process.pids() if self._process else set()

    def order(self, order: Suspend | Wake) -> None:
        """Have the engine sleep or wake; news tells how it went."""
        self._orders.put_nowait(order)

    def ask_stop(self, drain_s: float | None, grace_s: float) -> None:
        """End the run once it is drained, or after `drain_s`. Asking again can only hasten it."""
        self._grace_s = grace_s
        if drain_s is not None:
            until = asyncio.get_running_loop().time() + drain_s
            self._drain_until = min(until, self._drain_until or until)
        self._stop_asked.set()
        self._hastened.set()

    async def live(self, launcher: Launcher) -> EngineExited:
        """Run the engine to its end and say how it ended."""
        if is_taken(self.endpoint):
            self.upstream.gone.set()
            return EngineExited(self.run, f"something else already listens at {self.endpoint}")
        try:
            make_folder(self.endpoint)
            command = self.engine.command(self.spec, self.placement, self.endpoint)
            self._process = await launcher.start(command, label=self.spec.id, on_line=self._heard)
        except LaunchError as error:
            self.upstream.gone.set()
            return EngineExited(self.run, str(error), permanent=True)
        finally:
            if self._process is None:
                remove_folder(self.endpoint)
        process = self._process
        try:
            failure = self.failure = await self._until_end(process)
        finally:
            before = self._memory.strangers()
            self.upstream.close()
            try:
                await process.stop(self._grace_s)
            finally:
                remove_folder(self.endpoint)
            self.upstream.gone.set()
        await self._memory.until_back(self.key, self.placement.claims_mib, before)
        if failure is None:
            return EngineExited(self.run)
        return EngineExited(self.run, failure.reason, failure.permanent)

    # --------------------------------------------------------------------------------------- phases

    async def _until_end(self, process: Process) -> Failure | None:
        """Wait for readiness, then obey until the exit or a stop. None if stopped as asked."""
        exited = asyncio.ensure_future(process.wait())
        stopped = asyncio.ensure_future(self._stop_asked.wait())
        path = self.engine.health_path(self.spec)
        ready = asyncio.ensure_future(self._until_ready(path))
        tasks: list[asyncio.Future[Any]] = [exited, stopped, ready]
        try:
            await asyncio.wait(
                tasks,
                timeout=self.spec.limits.start_timeout_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if exited.done():
                return self.engine.failure(
                    str(exited.result()), self._last_lines(process, CAUSE_LINES)
                )
            if not ready.done():
                return None if stopped.done() else self._too_slow(process)
            refused = ready.result()
            if refused is not None:
                return await self._refused(refused, exited, process)
            self.progress = None
            self.upstream.is_loaded()
            self._on_news(self, EngineReady(self.run))
            hung = asyncio.ensure_future(self._until_hung(path))
            obeying = asyncio.ensure_future(self._obey())
            tasks += [hung, obeying]
            await asyncio.wait(
                (exited, stopped, hung, obeying), return_when=asyncio.FIRST_COMPLETED
            )
            if hung.done() and not stopped.done():
                return Failure(hung.result())
            obeying.cancel()
            if not exited.done():
                await self._drain(exited)
            if exited.done() and not stopped.done():
                return self._died(str(exited.result()), process)
            return None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _until_ready(self, path: str) -> ControlFailed | None:
        """Return once the engine serves; what it answered if the model itself does not."""
        await until_ready(self.endpoint, path)
        if (probe := self._functional_probe()) is not None:
            self.progress = PROBING
            self._on_progress(self)
            try:
                await call(self.endpoint, probe)
            except ControlFailed as refused:
                return refused
        await self._warm_up()
        return None

    async def _warm_up(self) -> None:
        """Have the engine compute once, so that the first request is not the slow one.

        An engine that refuses this very request may still serve all others.
        """
        warm_up = self.engine.warm_up(self.spec) if self.spec.health.warm_up else None
        if warm_up is None:
            return
        self.progress = PROBING
        self._on_progress(self)
        try:
            await call(self.endpoint, warm_up)
        except ControlFailed as refused:
            log.warning("model %s: its warm-up request failed: %s", self.spec.id, refused)

    def _functional_probe(self) -> Call | None:
        if self.spec.health.functional is False:
            return None
        return self.engine.functional_probe(self.spec)

    async def _refused(
        self, refused: ControlFailed, exited: asyncio.Future[Exit], process: Process
    ) -> Failure:
        """Why a start failed whose health route answered: the engine's end explains it better."""
        await asyncio.wait((exited,), timeout=0 if isinstance(refused, NoAnswer) else EXIT_NEWS_S)
        if exited.done():
            return self.engine.failure(str(exited.result()), self._last_lines(process, CAUSE_LINES))
        return Failure(
            f"its health route answers, but the model does not: {refused}; last output: "
            + _quote(self._last_lines(process))
        )

    async def _drain(self, exited: asyncio.Future[Exit]) -> None:
        """Wait until no request is in flight, the drain's time is over, or the engine has ended."""
        loop = asyncio.get_running_loop()
        drained = asyncio.ensure_future(self.upstream.drained())
        try:
            while not drained.done() and not exited.done():
                left = None if self._drain_until is None else self._drain_until - loop.time()
                if left is not None and left <= 0:
                    return
                self._hastened = asyncio.Event()
                hastened = asyncio.ensure_future(self._hastened.wait())
                await asyncio.wait(
                    (drained, exited, hastened),
                    timeout=left,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                hastened.cancel()
        finally:
            drained.cancel()

    # --------------------------------------------------------------------------------------- orders

    async def _obey(self) -> None:
        """Carry out orders to sleep and to wake, one after another, until cancelled."""
        while True:
            order = await self._orders.get()
            try:
                if isinstance(order, Suspend):
                    news: EngineEvent = await self._suspend(order)
                else:
                    news = await self._wake(order)
            except ControlFailed as failed:
                if isinstance(failed, Unreachable):
                    await asyncio.sleep(EXIT_NEWS_S)  # an exit ends this task before
                kind = SleepFailed if isinstance(order, Suspend) else WakeFailed
                news = kind(self.run, str(failed))
            self._on_news(self, news)

    async def _suspend(self, order: Suspend) -> EngineEvent:
        try:
            async with asyncio.timeout(order.drain_s):
                await self.upstream.drained()
        except TimeoutError:
            pass  # what is still in flight is ended by the engine, as a bounded drain promises
        self._awake = False
        before = await self._memory.measure(self.key)
        for each in self.spec.sleep[order.level].enter:
            await call(self.endpoint, each)
        try:
            kept = await self._memory.after_sleep(
                self.key, self.placement.claims_mib, before, order.level
            )
        except MemoryKept as reason:
            return SleepFailed(self.run, str(reason))
        return EngineAsleep(self.run, kept)

    async def _wake(self, order: Wake) -> EngineEvent:
        self.upstream.begins_loading()
        for each in self.spec.sleep[order.level].leave:
            await call(self.endpoint, each)
        self._awake = True
        self.upstream.is_loaded()
        return EngineReady(self.run)

    def _suspect(self) -> None:
        """The engine broke an exchange off."""
        if not self._suspected.is_set():
            self._suspected.set()
            self._on_suspicion(self, True)

    async def _until_hung(self, path: str) -> str:
        """Look at the engine whenever it is suspected; return why it is given up, if it is."""
        while True:
            await self._suspected.wait()
            complaint = await self._complaint(path)
            if complaint:
                return complaint
            self._suspected.clear()
            self._on_suspicion(self, False)

    async def _complaint(self, path: str) -> str:
        """What is wrong with a suspected engine; nothing, as soon as it is known to be well."""
        well = self.vitals.well
        refused: ControlFailed | None = None
        is_up = False
        try:
            async with asyncio.timeout(HUNG_AFTER_S):
                await until_ready(self.endpoint, path)
                is_up = True
                probe = self._functional_probe()
                while probe is not None and self._awake and self.vitals.well == well:
                    try:
                        await call(self.endpoint, replace(probe, timeout_s=HUNG_AFTER_S))
                        break
                    except ControlFailed as error:
                        refused = error
                        await asyncio.sleep(PROBE_AGAIN_S)
        except TimeoutError:
            if refused is not None:
                return f"its health route answers, but the model does not: {refused}"
            if not (is_up and self.upstream.leases):
                return f"it broke an answer off and was silent for {HUNG_AFTER_S:g} s since"
            # Whoever is busy may leave one more request waiting; those in flight have a bound of
            # their own (response_timeout), after which this engine is looked at again.
        return ""

    # -------------------------------------------------------------------------------------- reasons

    def _too_slow(self, process: Process) -> Failure:
        limit = self.spec.limits.start_timeout_s
        return Failure(
            f"it was not ready after {limit:g} s (start_timeout); last output: "
            + _quote(self._last_lines(process))
        )

    def _died(self, how: str, process: Process) -> Failure:
        return Failure(
            f"it ended by itself ({how}); last output: {_quote(self._last_lines(process))}"
        )

    def _last_lines(self, process: Process, lines: int = REASON_LINES) -> Sequence[str]:
        return [line.text for line in process.log.tail(lines)]

    def _heard(self, line: LogLine) -> None:
        self._on_line(self, line)
        tells = self.progress or "memory" in line.text
        if len(self._said) < MAX_SAID and tells and self._probed not in line.text:
            self._said.append(line.text)
        progress = self.engine.progress(line.text)
        if progress is not None and self.progress is not None and progress != self.progress:
            self.progress = progress
            self._on_progress(self)


def _quote(lines: Sequence[str]) -> str:
    return " | ".join(line.strip() for line in lines if line.strip()) or "nothing"
