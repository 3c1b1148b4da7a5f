"""How much later the first byte of an answer comes through the gateway than from the engine itself.

Requests are sent at a fixed rate, at random moments, over connections that are kept: half of what
Modelyard can carry of them, measured first. The engine itself, nginx before it and Modelyard before
it take turns at that rate, several rounds each. A request's time runs from the moment at which it
was due, so that an answer that delays the next one is not hidden. What is added is a percentile of
a proxy less the same percentile of the engine itself: no request goes both ways. `ratio` is what
Modelyard adds to what nginx adds.

The proxies have one core to themselves; this program and the engine share the other, and whoever
else runs on the machine is in the figures: compare with nginx in the same run.

    .venv/bin/python -m bench.latency [--json] [--seconds 3] [--rounds 3] [--rate 1000]

Needs nginx and wrk on the PATH (Debian: apt-get install nginx wrk) and two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import selectors
import shutil
import statistics
import sys
import tempfile
from collections import deque
from contextlib import ExitStack
from pathlib import Path
from typing import cast

from bench.gateway import (
    PROMPT,
    Proxy,
    Workload,
    free_port,
    load,
    script_for,
    start_gateway,
    start_nginx,
)

from modelyard.core.keys import SECRET_BYTES, key_text

CONNECTIONS = 64
ANSWER_WITHIN_S = 10.0
HALF_LOAD_S = 2.0
"""How long the most that Modelyard can carry is measured."""
WORKLOADS = (Workload("json", "JSON request"), Workload("stream", "stream of 8 chunks", chunks=8))
LAST_CHUNK = b"0\r\n\r\n"
PERCENTILES = {"p50": 0.50, "p99": 0.99}

Figures = dict[str, dict[str, float]]


class Asker(asyncio.Protocol):
    """One kept connection: asks when it is told to, and notes when the first byte came."""

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd
        self.due = 0.0
        self.answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def ask(self, due: float) -> None:
        self.due = due
        self.transport.write(self.crowd.request)

    def data_received(self, data: bytes) -> None:
        if not self.answer:
            self.crowd.heard(self.due)
        self.answer += data
        if self._is_whole():
            if not self.answer.startswith(b"HTTP/1.1 200"):
                self.crowd.failed(self.answer[:200].decode("latin-1"))
            self.answer = b""
            self.crowd.is_free(self)

    def _is_whole(self) -> bool:
        head, end, body = self.answer.partition(b"\r\n\r\n")
        if not end:
            return False
        _, sized, rest = head.lower().partition(b"content-length:")
        if sized:
            return len(body) >= int(rest.split(b"\r\n", 1)[0])
        return body.endswith(LAST_CHUNK)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.crowd.over.done():
            self.crowd.failed(f"a connection was closed: {exc}")


class Crowd:
    """Those who ask one server, at a rate."""

    def __init__(self, port: int, request: bytes, rate: float, seconds: float) -> None:
        self.request = request
        self.times: list[float] = []
        self._port = port
        self._gaps = random.Random(7)
        self._rate = rate
        self._left = round(rate * seconds)
        self._waited_for = self._left
        self._free: deque[Asker] = deque()
        self._waiting: deque[float] = deque()
        """When requests were due for which no connection was free."""
        self._loop = asyncio.get_running_loop()
        self.over: asyncio.Future[None] = self._loop.create_future()

    async def ask(self) -> list[float]:
        """Seconds to the first byte of each answer. Raises RuntimeError if one is no answer."""
        made = []
        for _ in range(CONNECTIONS):
            _, asker = await self._loop.create_connection(
                lambda: Asker(self), "127.0.0.1", self._port
            )
            made.append(asker)
        self._free.extend(made)
        self._ask(self._loop.time())
        patience = self._left / self._rate + ANSWER_WITHIN_S
        try:
            await asyncio.wait_for(asyncio.shield(self.over), patience)
        finally:
            self.over.cancel()
            for asker in made:
                asker.transport.abort()
        return self.times

    def _ask(self, due: float) -> None:
        if self._free:
            self._free.popleft().ask(due)
        else:
            self._waiting.append(due)
        self._left -= 1
        if self._left and not self.over.done():
            next_due = due + self._gaps.expovariate(self._rate)
            self._loop.call_at(next_due, self._ask, next_due)

    def heard(self, due: float) -> None:
        self.times.append(self._loop.time() - due)

    def is_free(self, asker: Asker) -> None:
        self._waited_for -= 1
        if not self._waited_for and not self.over.done():
            self.over.set_result(None)
        elif self._waiting:
            asker.ask(self._waiting.popleft())
        else:
            self._free.append(asker)

    def failed(self, why: str) -> None:
        if not self.over.done():
            self.over.set_exception(RuntimeError(why))


def first_bytes(port: int, request: bytes, rate: float, seconds: float) -> list[float]:
    """A crowd in an event loop whose timers are exact: epoll's go by whole milliseconds."""

    async def ask() -> list[float]:
        return await Crowd(port, request, rate, seconds).ask()

    with asyncio.Runner(
        loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())
    ) as runner:
        return runner.run(ask())


def request_for(workload: Workload, key: str) -> bytes:
    body = json.dumps(
        {
            "model": "bench",
            "stream": bool(workload.chunks),
            "chunks": workload.chunks,
            "pause_ms": workload.pause_ms,
            "messages": [{"role": "user", "content": PROMPT}],
        },
        separators=(",", ":"),
    ).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def measure(
    servers: dict[str, int], workload: Workload, key: str, rate: float, args: argparse.Namespace
) -> Figures:
    """Medians of the rounds' percentiles, in ms, by server."""
    request = request_for(workload, key)
    seen: dict[str, dict[str, list[float]]] = {
        name: {percentile: [] for percentile in PERCENTILES} for name in servers
    }
    for port in servers.values():
        first_bytes(port, request, rate, 0.5)
    for _ in range(args.rounds):
        for name, port in servers.items():
            times = sorted(first_bytes(port, request, rate, args.seconds))
            for percentile, share in PERCENTILES.items():
                seen[name][percentile].append(times[int(len(times) * share)] * 1e3)
    figures = {
        name: {key: round(statistics.median(values), 3) for key, values in by.items()}
        for name, by in seen.items()
    }
    for name in figures:
        if name != "engine":
            for percentile in PERCENTILES:
                added = figures[name][percentile] - figures["engine"][percentile]
                figures[name][f"added_{percentile}"] = round(added, 3)
    return figures


def reported(workload: Workload, rate: float, figures: Figures, *, show: bool) -> dict[str, object]:
    report: dict[str, object] = {f"{workload.key}_rate": round(rate), f"{workload.key}_ms": figures}
    for percentile in PERCENTILES:
        ours, theirs = (figures[name][f"added_{percentile}"] for name in ("modelyard", "nginx"))
        report[f"{workload.key}_added_{percentile}_ms"] = ours
        ratio = round(ours / theirs, 2) if theirs > 0 else None
        report[f"{workload.key}_added_{percentile}_ratio"] = ratio
        if show:
            print(
                f"{workload.title:<20}{percentile}"
                f"{figures['engine'][percentile]:>12.3f}{theirs:>+12.3f}{ours:>+12.3f}"
                f"{'-' if ratio is None else ratio:>8}   at {rate:.0f}/s",
                flush=True,
            )
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seconds", type=float, default=3, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, help="requests a second in place of half the load")
    parser.add_argument("--proxy-core", type=int, default=1)
    parser.add_argument("--load-core", type=int, default=0)
    args = parser.parse_args()
    for tool in ("nginx", "wrk"):
        if shutil.which(tool) is None:
            print(f"{tool} is not on the PATH: apt-get install nginx wrk", file=sys.stderr)
            return 1
    os.sched_setaffinity(0, {args.load_core})
    key = key_text("bench", os.urandom(SECRET_BYTES))
    report: dict[str, object] = {}
    if not args.json:
        print(f"{'first byte, ms':<22}{'engine':>12}{'+ nginx':>12}{'+ modelyard':>12}{'ratio':>8}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        engine = free_port()
        gateway = start_gateway(stack, folder, engine, args, key)
        nginx = start_nginx(stack, folder, engine, args.proxy_core)
        servers = {"engine": engine, "nginx": nginx.port, "modelyard": gateway.port}
        for workload in WORKLOADS:
            rate = args.rate or half_load(gateway, folder, workload, key, args.load_core)
            figures = measure(servers, workload, key, rate, args)
            report |= reported(workload, rate, figures, show=not args.json)
    if args.json:
        print(json.dumps(report))
    return 0


def half_load(gateway: Proxy, folder: Path, workload: Workload, key: str, core: int) -> float:
    """Half of the requests a second that it carries at most."""
    requests, _ = load(gateway, script_for(folder, workload, key), workload, HALF_LOAD_S, core)
    return requests / HALF_LOAD_S / 2


if __name__ == "__main__":
    sys.exit(main())
