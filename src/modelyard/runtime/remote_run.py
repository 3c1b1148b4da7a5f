"""One run of a remote model: no process and no memory, only upstreams that answer or do not.

Laws of this file:
- The same face as `EngineRun` towards the loop: one `live`, news by callbacks, one end.
- Ready at once where nothing speaks against it; nobody is asked before a client asks. An upstream
  that failed is looked at with a request that costs nothing, and asked again once that is answered.
- When no upstream is left, new requests wait while all are looked at; if none answers, the run
  ends with the reasons, and the model has failed. Whoever holds the run may go on looking
  (`is_back`). The next run begins by looking too, because it inherits what was known.
- A run that ends by itself leaves answers in flight alone; one that is stopped cuts them once its
  drain is over.
"""

from __future__ import annotations

import asyncio
import logging
import math
import ssl
from collections.abc import Callable
from typing import Any, TypeAlias

from modelyard.core.circuit import Circuit, Gate
from modelyard.core.errors import ModelyardError
from modelyard.core.events import StartEngine
from modelyard.core.lifecycle import EngineEvent, EngineExited, EngineReady
from modelyard.core.specs import Endpoint, ModelSpec, Need, Progress
from modelyard.engines.remote import Remote, Target
from modelyard.launchers.base import EngineLog, Launcher
from modelyard.runtime.engine_run import EngineRun, Suspend, Wake
from modelyard.runtime.failover import FRESH_FOR_S, Failover
from modelyard.runtime.upstream import Upstream

log = logging.getLogger("modelyard")

PROBE_TIMEOUT_S = 10.0
LOOKS_APART_S = 1.0
"""Least time between two looks at all: an upstream that answers probes and fails requests is not
looked at for every request."""
PROBING = Progress("looking for an upstream")
NOWHERE = Endpoint("0.0.0.0", 0)
"""No address: requests go to the upstreams."""


class RemoteRun:
    """A remote model that is in use. `upstream` counts its leases and leads to the upstreams."""

    def __init__(
        self,
        start: StartEngine,
        engine: Remote,
        before: Run | None,
        *,
        on_news: Callable[[RemoteRun, EngineEvent], None],
        on_suspicion: Callable[[RemoteRun, bool], None],
        on_progress: Callable[[RemoteRun], None],
    ) -> None:
        """`before` is the model's run before this one, from which it takes what it knew."""
        self.spec = start.spec
        self.run = start.run
        self.key = start.key
        self.placement = start.placement
        self.progress: Progress | None = Progress("starting")
        self.endpoint = NOWHERE
        self.upstream = Upstream(start.spec.id, start.run, NOWHERE, _unheard)
        self.targets: tuple[Target, ...] = ()
        """Where the upstreams are; known once the run lives."""
        remote = start.spec.remote
        self.circuits = _inherited(before, start.spec) or tuple(
            Circuit(remote.circuit) for _ in remote.upstreams
        )
        self._engine = engine
        self._on_news = on_news
        self._on_suspicion = on_suspicion
        self._on_progress = on_progress
        self._opened = asyncio.Event()
        self._looked_at = -math.inf
        self._stop_asked = asyncio.Event()
        self._hastened = asyncio.Event()
        self._drain_until: float | None = None
        self._now = asyncio.get_running_loop().time

    @property
    def pid(self) -> int | None:
        return None

    @property
    def log(self) -> EngineLog | None:
        return None

    def reported_mib(self) -> Need:
        return {}

    def pids(self) -> set[int]:
        return set()

    def order(self, order: Suspend | Wake) -> None:
        """A remote has no levels of sleep, so nobody orders one."""
        raise AssertionError(f"model {self.spec.id} cannot {order}")

    def ask_stop(self, drain_s: float | None, grace_s: float) -> None:  # noqa: ARG002 - no process
        """End the run once it is drained, or after `drain_s`. Asking again can only hasten it."""
        if drain_s is not None:
            until = self._now() + drain_s
            self._drain_until = min(until, self._drain_until or until)
        self._stop_asked.set()
        self._hastened.set()

    async def live(self, launcher: Launcher) -> EngineExited:  # noqa: ARG002 - nothing is launched
        """Serve until a stop, or until no upstream answers; say how it ended."""
        try:
            failover = self.upstream.failover = await self._reach()
        except (OSError, ssl.SSLError) as error:
            reason = f"its certificates cannot be read: {error}"
            return EngineExited(self.run, reason, permanent=True)
        except ModelyardError as error:
            return EngineExited(self.run, f"a key cannot be read: {error}", permanent=True)
        try:
            reason = await self._until_end(failover)
            if not reason:
                await self._drain()
                failover.close()
        finally:
            failover.retire()
            self.upstream.gone.set()
        return EngineExited(self.run, reason, permanent=bool(reason))

    async def is_back(self) -> bool:
        """Look once more, when it is due, whether the upstreams of a run that failed are back."""
        failover = self.upstream.failover
        assert failover is not None, "a run that never reached out does not fail later"
        if failover.choice.is_dark:
            self._opened.clear()
            await self._until_due()
            await self._look(failover, all_of_them=False)
        return not failover.choice.is_dark

    # --------------------------------------------------------------------------------------- phases

    async def _reach(self) -> Failover:
        """The upstreams, each with its own connections."""
        self.targets = await asyncio.to_thread(self._engine.targets, self.spec)
        files = {target.ca_file for target in self.targets if target.is_tls}
        contexts = {file: await asyncio.to_thread(trusting, file) for file in files}
        upstreams = []
        for target in self.targets:
            upstream = Upstream(self.spec.id, self.run, target.endpoint, _unheard)
            upstream.is_remote = True
            upstream.own_headers = target.headers
            upstream.quirks = target.quirks
            upstream.speaks = target.speaks
            upstream.tls = contexts[target.ca_file] if target.is_tls else None
            upstream.fresh_for_s = FRESH_FOR_S
            upstream.connect_timeout_s = target.connect_timeout_s
            upstreams.append(upstream)
        return Failover(self.spec.id, upstreams, self.targets, self.circuits, self._opened.set)

    async def _until_end(self, failover: Failover) -> str:
        """Why no upstream is left; empty if the run was asked to stop."""
        stopped = asyncio.ensure_future(self._stop_asked.wait())
        watching = asyncio.ensure_future(self._watch(failover))
        try:
            await asyncio.wait((stopped, watching), return_when=asyncio.FIRST_COMPLETED)
            return "" if stopped.done() else watching.result()
        finally:
            for task in (stopped, watching):
                task.cancel()
            await asyncio.gather(stopped, watching, return_exceptions=True)

    async def _watch(self, failover: Failover) -> str:
        """Look at upstreams that failed, until none is left; return why."""
        if failover.choice.is_dark:
            self.progress = PROBING
            self._on_progress(self)
            if not await self._look(failover, all_of_them=True):
                return self._reasons()
        self.progress = None
        self.upstream.is_loaded()
        self._on_news(self, EngineReady(self.run))
        while True:
            await self._until_due()
            self._opened.clear()
            if not failover.choice.is_dark:
                await self._look(failover, all_of_them=False)
                continue
            self._on_suspicion(self, True)
            if not await self._look(failover, all_of_them=True):
                return self._reasons()
            self._on_suspicion(self, False)

    async def _until_due(self) -> None:
        """Return when an upstream is to be looked at, or when one more has failed."""
        opens = [each.probe_at for each in self.circuits if each.gate is Gate.OPEN]
        left_s = min(opens, default=math.inf) - self._now()
        try:
            async with asyncio.timeout(None if left_s == math.inf else max(0.0, left_s)):
                await self._opened.wait()
        except TimeoutError:
            pass  # one is due

    async def _look(self, failover: Failover, *, all_of_them: bool) -> bool:
        """Look at the upstreams that are due; whether any takes requests afterwards.

        Looking at all ends with the first that is well, since requests wait for it; looking at
        some ends when another one fails.
        """
        if all_of_them:
            await asyncio.sleep(self._looked_at + LOOKS_APART_S - self._now())
        self._looked_at = now = self._now()
        looks: dict[asyncio.Task[Any], tuple[Target, Circuit]] = {
            asyncio.ensure_future(_trouble(upstream, target.models_path)): (target, circuit)
            for upstream, target, circuit in zip(
                failover.upstreams, self.targets, self.circuits, strict=True
            )
            if circuit.gate is Gate.OPEN and (all_of_them or circuit.probe_at <= now)
        }
        opened = asyncio.ensure_future(self._opened.wait())
        try:
            while looks and (failover.choice.is_dark if all_of_them else not opened.done()):
                watched: set[asyncio.Task[Any]] = {*looks} if all_of_them else {*looks, opened}
                done, _ = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
                for look in done & looks.keys():
                    target, circuit = looks.pop(look)
                    circuit.probed(self._now(), look.result())
                    if not look.result():
                        log.info("model %s: %s is back", self.spec.id, target.name)
        finally:
            for task in (*looks, opened):
                task.cancel()
            await asyncio.gather(*looks, opened, return_exceptions=True)
        return not failover.choice.is_dark

    async def _drain(self) -> None:
        """Wait until no request is in flight, or the drain's time is over."""
        drained = asyncio.ensure_future(self.upstream.drained())
        try:
            while not drained.done():
                left = None if self._drain_until is None else self._drain_until - self._now()
                if left is not None and left <= 0:
                    return
                self._hastened = asyncio.Event()
                hastened: asyncio.Future[Any] = asyncio.ensure_future(self._hastened.wait())
                await asyncio.wait(
                    (drained, hastened), timeout=left, return_when=asyncio.FIRST_COMPLETED
                )
                hastened.cancel()
        finally:
            drained.cancel()

    def _reasons(self) -> str:
        said = (f"{t.name}: {c.reason}" for t, c in zip(self.targets, self.circuits, strict=True))
        return f"no upstream answers: {'; '.join(said)}"


Run: TypeAlias = EngineRun | RemoteRun
"""What the loop has of a model in use."""


def _unheard() -> None:
    """What a remote's connections say when they break: the exchange tells it with more detail."""


def _inherited(before: Run | None, spec: ModelSpec) -> tuple[Circuit, ...]:
    """What the last run knew of the same upstreams."""
    if isinstance(before, RemoteRun) and before.spec.remote == spec.remote:
        return before.circuits
    return ()


def trusting(ca_file: str | None) -> ssl.SSLContext:
    """Checks certificates and host names, against the system's authorities or those of a file."""
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


async def _trouble(upstream: Upstream, path: str) -> str:
    """What is wrong with an upstream: nothing, if it answers a request that costs nothing.

    A refused key or an unknown route is an answer too: clients are told of those themselves.
    """
    host = upstream.endpoint.host
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(
                host,
                upstream.endpoint.port,
                ssl=upstream.tls,
                server_hostname=None if upstream.tls is None else host,
            )
            try:
                request = b"GET %b HTTP/1.1\r\n%bconnection: close\r\n\r\n"
                writer.write(request % (path.encode(), upstream.own_headers))
                first = (await reader.readline()).split(maxsplit=2)
            finally:
                writer.transport.abort()
    except TimeoutError:
        return f"no answer within {PROBE_TIMEOUT_S:g} s"
    except (OSError, ValueError) as error:
        return str(error) or type(error).__name__
    if len(first) < 2 or not first[0].startswith(b"HTTP/") or not first[1].isdigit():
        return "its answer is not HTTP"
    return f"status {int(first[1])}" if int(first[1]) >= 500 else ""
