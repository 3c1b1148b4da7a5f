"""How much later the first byte of an answer comes through the gateway than from the engine itself.

Half load: wrk sends requests through the proxy at random moments (gaps of an exponential
distribution, `paced.lua`), at the rate at which the proxy keeps its core half busy. That rate is
found first, for each proxy. Where wrk, the engine and this program, which share the other core,
would need more than `LOAD_CORE_BUSY` of it, the rate stays at that: the figures say how busy each
core was.

Meanwhile this program sends probes, few and at random moments too, through the proxy and to the
engine itself by turns, over kept connections, and times them from sending to the first byte. What
is added is a percentile of the one less the same percentile of the other in the same round: the
load, the engine's queue and whoever disturbs the machine are in both. The proxies take turns; what
is printed is the median of the rounds, with the least and the most of them. `ratio` is what
Modelyard adds to what nginx adds, each at half of its own load.

`others` is what neither the proxy nor the load did, of both cores together, time that the host
stole included. Where it is more than a few percent, or the engine's own 99th percentile is many
times its median, measure again in a quieter minute, or keep others away by `chrt --rr 1` in front
of the command (as root, and for as long as it takes others hardly get on).

    .venv/bin/python -m bench.latency [--json] [--only json] [--interpreted] [--rounds 10]

What runs is what users install, built first, unless `--interpreted`: see `gateway.py`. It
needs nginx and wrk on the PATH (Debian: apt-get install nginx wrk) and two cores.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import psutil
from bench.gateway import (
    Proxy,
    Workload,
    free_port,
    is_compiled,
    run_what_users_install,
    script_for,
    start_gateway,
    start_nginx,
)
from bench.probes import PERCENTILES, percentiles, probed, request_for

from modelyard.core.keys import SECRET_BYTES, key_text

HALF_BUSY = 0.5
LOAD_CORE_BUSY = 0.6
FIRST_RATE = 1500.0
TRIES = 5
CLOSE_ENOUGH = 0.04
SETTLE_S = 0.4
"""Load before the first probe and after the last."""
PACED = (Path(__file__).parent / "paced.lua").read_text()
WORKLOADS = (
    Workload("json", "JSON request"),
    Workload("stream", "stream of 8 chunks", chunks=8, connections=128),
)


@dataclass(frozen=True)
class Busy:
    """Shares of a core during one run of the load."""

    rate: float
    """Requests a second that came through."""
    proxy: float
    load_core: float
    engine: float
    """Of the load core; the rest is wrk and the probes."""
    others: float
    """What neither did, of both cores."""


@dataclass(frozen=True)
class Round:
    """One proxy under half load: what the probes saw, in ms by percentile."""

    busy: Busy
    proxy: dict[str, float]
    engine: dict[str, float]


@dataclass(frozen=True)
class Bench:
    """What stays the same for all measurements of one workload."""

    engine: psutil.Process
    script: Path
    request: bytes
    connections: int
    cores: tuple[int, int]
    """The load's and the proxies'."""


@contextmanager
def loaded(bench: Bench, proxy: Proxy, rate: float, seconds: float) -> Iterator[list[Busy]]:
    """The load while the block runs, which should take `seconds`; what it did, afterwards."""
    paced = bench.script.with_suffix(".paced.lua")
    paced.write_text(f"local RATE = {rate}\n{bench.script.read_text()}\n{PACED}")
    lasts = int(SETTLE_S * 2 + seconds + 0.999)
    argv = ["wrk", "-t1", f"-c{bench.connections}", f"-d{lasts}s", "--timeout", "20s"]
    argv += ["-s", str(paced), f"http://127.0.0.1:{proxy.port}/v1/chat/completions"]
    told: list[Busy] = []
    before, began = _spent(bench, proxy), time.monotonic()
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as wrk:
        try:
            time.sleep(SETTLE_S)
            yield told
            said, _ = wrk.communicate()
        finally:
            wrk.kill()
    wall = time.monotonic() - began
    proxied, engine, ours, all_busy = (
        (after - earlier) / wall
        for earlier, after in zip(before, _spent(bench, proxy), strict=True)
    )
    counted = re.search(r"(\d+) requests in", said)
    if counted is None or "Non-2xx" in said or "Socket errors" in said:
        raise SystemExit(f"{proxy.name} did not answer every request:\n{said}")
    others = max(0.0, all_busy - proxied - engine - ours)
    told.append(Busy(int(counted[1]) / wall, proxied, engine + ours, engine, others))


def _spent(bench: Bench, proxy: Proxy) -> tuple[float, ...]:
    """CPU seconds so far: of the proxy, the engine, this program with its wrks, and all on both
    cores, what the host took from them included."""
    ours = sum(
        sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    times = psutil.cpu_times(percpu=True)
    busy = sum(sum(times[core]) - times[core].idle - times[core].iowait for core in bench.cores)
    return proxy.cpu_s(), sum(bench.engine.cpu_times()[:2]), ours, busy


def half_load(bench: Bench, proxy: Proxy) -> float:
    """The requests a second at which it is half busy, or at which the load core has had enough."""
    rate = FIRST_RATE
    for _ in range(TRIES):
        with loaded(bench, proxy, rate, 0.7) as told:
            time.sleep(0.7)
        factor = min(HALF_BUSY / told[0].proxy, LOAD_CORE_BUSY / told[0].load_core)
        if abs(factor - 1) < CLOSE_ENOUGH:
            break
        rate *= min(factor, 4.0)
    return rate


def measure(
    bench: Bench, proxies: list[Proxy], engine: int, args: argparse.Namespace
) -> dict[str, list[Round]]:
    """The rounds of each proxy, at half of its load."""
    rates = {proxy.name: args.rate or half_load(bench, proxy) for proxy in proxies}
    rounds: dict[str, list[Round]] = {proxy.name: [] for proxy in proxies}
    for _ in range(args.rounds):
        for proxy in proxies:
            with loaded(bench, proxy, rates[proxy.name], args.seconds) as told:
                ports = {"engine": engine, proxy.name: proxy.port}
                times = probed(ports, bench.request, args.seconds)
            rounds[proxy.name].append(
                Round(told[0], percentiles(times[proxy.name]), percentiles(times["engine"]))
            )
    return rounds


def summary(rounds: list[Round]) -> dict[str, float]:
    """Medians of the rounds, milliseconds; `least` and `most` where they are told."""
    figures: dict[str, float] = {}
    for percentile in PERCENTILES:
        added = [each.proxy[percentile] - each.engine[percentile] for each in rounds]
        figures[percentile] = statistics.median(each.proxy[percentile] for each in rounds)
        figures[f"engine_{percentile}"] = statistics.median(
            each.engine[percentile] for each in rounds
        )
        figures[f"added_{percentile}"] = statistics.median(added)
        figures[f"added_{percentile}_least"] = min(added)
        figures[f"added_{percentile}_most"] = max(added)
    return {name: round(value, 3) for name, value in figures.items()}


def load_of(rounds: list[Round]) -> dict[str, float]:
    """Medians of what the load did."""
    names = [each.name for each in fields(Busy)]
    return {n: round(statistics.median(getattr(r.busy, n) for r in rounds), 2) for n in names}


def reported(
    workload: Workload, rounds: dict[str, list[Round]], *, show: bool
) -> dict[str, object]:
    figures = {name: summary(each) for name, each in rounds.items()}
    loads = {name: load_of(each) for name, each in rounds.items()}
    key = workload.key
    report: dict[str, object] = {
        f"{key}_rate": round(loads["modelyard"]["rate"]),
        f"{key}_load": loads,
        f"{key}_ms": figures,
    }
    for percentile in PERCENTILES:
        ours, theirs = (figures[name][f"added_{percentile}"] for name in ("modelyard", "nginx"))
        report[f"{key}_added_{percentile}_ms"] = ours
        ratio = round(ours / theirs, 2) if theirs > 0 else None
        report[f"{key}_added_{percentile}_ratio"] = ratio
        if show:
            print(f"{workload.title}, {percentile}: added {ours:+.3f} ms, ratio to nginx {ratio}")
    if show:
        _print(figures, loads)
    return report


def _print(figures: dict[str, dict[str, float]], loads: dict[str, dict[str, float]]) -> None:
    for name, ms in figures.items():
        load = loads[name]
        print(
            f"  {name} at {load['rate']:.0f}/s; busy: proxy {load['proxy']:.0%}, "
            f"other core {load['load_core']:.0%} (engine {load['engine']:.0%}), "
            f"others {load['others']:.0%}"
        )
        for percentile in PERCENTILES:
            least, most = (ms[f"added_{percentile}_{end}"] for end in ("least", "most"))
            print(
                f"    {percentile}: engine {ms[f'engine_{percentile}']:.3f} ms, "
                f"added {ms[f'added_{percentile}']:+.3f} ms ({least:.3f} to {most:.3f})",
                flush=True,
            )


def engine_of(gateway: Proxy) -> psutil.Process:
    """The benchmark's engine, which the gateway has started."""
    for process in gateway.processes[0].children(recursive=True):
        if any(part.endswith("backend.py") for part in process.cmdline()):
            return process
    raise SystemExit("the gateway has not started the engine")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seconds", type=float, default=2.2, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--rate", type=float, help="requests a second in place of half the load")
    parser.add_argument("--only", metavar="KEY", help="one workload: json or stream")
    parser.add_argument("--interpreted", action="store_true", help="run the sources as they are")
    parser.add_argument("--proxy-core", type=int, default=1)
    parser.add_argument("--load-core", type=int, default=0)
    args = parser.parse_args()
    for tool in ("nginx", "wrk"):
        if shutil.which(tool) is None:
            print(f"{tool} is not on the PATH: apt-get install nginx wrk", file=sys.stderr)
            return 1
    if args.interpreted:
        os.environ.pop("PYTHONPATH", None)
    else:
        run_what_users_install()
    os.sched_setaffinity(0, {args.load_core})
    key = key_text("bench", os.urandom(SECRET_BYTES))
    report: dict[str, object] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        engine = free_port()
        gateway = start_gateway(stack, folder, engine, args, key)
        report["compiled"] = is_compiled(gateway)
        proxies = [start_nginx(stack, folder, engine, args.proxy_core), gateway]
        gc.collect()
        gc.freeze()
        gc.disable()  # no pause of ours shall be theirs
        for workload in WORKLOADS:
            if args.only in (None, workload.key):
                bench = Bench(
                    engine_of(gateway),
                    script_for(folder, workload, key),
                    request_for(workload, key),
                    workload.connections,
                    (args.load_core, args.proxy_core),
                )
                rounds = measure(bench, proxies, engine, args)
                report |= reported(workload, rounds, show=not args.json)
    if args.json:
        print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
