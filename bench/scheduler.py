"""What the scheduler makes of real traces, next to what others do at the same costs.

Every cell is a workload, a number of 76 GiB devices and a kind of costs; sizes of the models, and
what the trace leaves open, are drawn by several seeds. `mean_vs_fifo` of a cell is our mean wait
over llama-swap's (with an ideal matrix), each summed over the seeds; below 1 is better. The figures
of a group are geometric means over its cells. The policy and its parameters were chosen on the
cells `tuned`; those `held_out` were run when nothing was left to choose (docs/performance.md).
`more` holds what the others have no word for: engines with several levels of sleep, sleepers bound
to their device, scarce host memory, models over two devices; it is not part of the headline.

    python bench/scheduler.py [--json] [--quick] [--only WORD] [--seeds N] [--set KEY=VALUE]
                              [--no-bound] [--chart docs/scheduler.svg]

`/LP` is the seconds we spent on swaps over the least that any schedule with our p99 must spend on
bringing models up (fractions of models allowed); it needs scipy.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from modelyard.core.errors import ModelyardError
from modelyard.core.policy import Policy
from modelyard.simulation.books import LawBroken
from modelyard.simulation.bound import NoBound, lower_bound_s
from modelyard.simulation.costs import costs_of
from modelyard.simulation.parameters import parameters
from modelyard.simulation.run import simulate
from modelyard.simulation.trace import read_trace
from modelyard.simulation.values import Cut, Job, Model, Setup, default_memory_gib, mib

TRACES = Path(__file__).parent / "traces"
SIZES = (1.5, 4, 8, 8, 15, 16, 16, 28, 30, 40, 48, 61)
"""GiB of weights that models are drawn from."""
WIDE_GIB = 100
"""Weights of a model over two devices."""
DEVICE_GIB = 76
PLENTY_GIB = 65_536
WHOLE = Cut()
LEAST_S = 0.001
"""Added to both sides of a ratio, since a cell may have no waits at all."""
HOUR = 3600.0
DAY = 24 * HOUR
OURS, OTHERS = "modelyard", ("fifo", "ollama")
FIGURES = ("mean_vs_fifo", "mean_vs_ollama", "p99_vs_fifo", "max_vs_fifo", "swaps_vs_fifo")
GAP = "swap_seconds_vs_bound"
HEADLINE = ("tuned", "held_out")
GROUPS = (*HEADLINE, "more")


@dataclass(frozen=True)
class Cell:
    """One comparison. `models` is 0 where the trace names them."""

    trace: str
    kind: str
    devices: int
    group: str
    models: int = 0
    cut: Cut = WHOLE
    wake: str = "anywhere"
    host_gib: int = PLENTY_GIB
    wide: int = 0
    """So many of the models need two devices."""
    seeds: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        part = f"/{self.models}" if self.models else f"*{self.cut.stretch:g}"
        more = "-home" if self.wake == "home" else ""
        more += "-wide" if self.wide else "-host" if self.host_gib < PLENTY_GIB else ""
        start = f"@{self.cut.start_s / HOUR:.3g}h" if self.cut.start_s else ""
        return f"{self.trace}{part}{start} {self.kind}{more} {self.devices}"

    def setup(self, jobs: Iterable[Job], seed: int) -> Setup:
        rng = random.Random(seed)
        names = sorted({job.model for job in jobs})
        sizes = [rng.choice(SIZES) for _ in names]
        wide = set(rng.sample(names, self.wide))
        models = {
            name: self._model(name, WIDE_GIB if name in wide else size, 2 if name in wide else 1)
            for name, size in zip(names, sizes, strict=True)
        }
        return Setup(models, [DEVICE_GIB * 1024] * self.devices, host_mib=self.host_gib * 1024)

    def _model(self, name: str, size: float, parallel: int) -> Model:
        memory = mib(default_memory_gib(size, parallel, DEVICE_GIB) / parallel)
        return Model(name, size, memory, costs_of(self.kind, size, self.wake), parallel)


FILES = {
    "arena": "vtc_arena_requests.csv.gz",
    "servegen": "servegen_client_rates.csv.gz",
    "azure": "azure_llm_2023_conv.csv.gz",
    "azure-code": "azure_llm_2023_code.csv.gz",
    "mooncake": "mooncake_conversation.csv.gz",
}


def arena(stretch: float, kind: str, devices: int, group: str) -> Cell:
    return Cell("arena", kind, devices, group, cut=Cut(stretch=stretch))


def servegen(
    models: int, start_s: float, length_s: float, rate: float, kind: str, devices: int, group: str
) -> Cell:
    cut = Cut(start_s, length_s, rate_rps=rate)
    return Cell("servegen", kind, devices, group, models, cut)


def zipf(
    trace: str,
    models: int,
    length_s: float,
    stretch: float,
    kind: str,
    devices: int,
    group: str,
    *,
    start_s: float = 0,
) -> Cell:
    return Cell(trace, kind, devices, group, models, Cut(start_s, length_s, stretch))


CELLS = (
    arena(6, "L1", 1, "tuned"),
    arena(12, "L1", 2, "tuned"),
    arena(8, "L1", 4, "tuned"),
    arena(12, "L2", 2, "tuned"),
    arena(40, "cold", 2, "tuned"),
    arena(12, "gguf", 1, "tuned"),
    servegen(20, 2 * DAY, 2 * HOUR, 0.25, "L1", 1, "tuned"),
    servegen(40, 3 * DAY, 2 * HOUR, 0.25, "L2", 2, "tuned"),
    servegen(30, 8 * DAY, 6 * HOUR, 0.08, "cold", 4, "tuned"),
    zipf("azure", 12, 300, 15, "L1", 1, "tuned"),
    zipf("azure", 40, 300, 8, "L2", 4, "tuned"),
    zipf("azure", 16, 300, 20, "gguf", 2, "tuned"),
    arena(20, "L2", 1, "tuned"),
    arena(60, "cold", 1, "tuned"),
    arena(9, "gguf", 2, "tuned"),
    arena(20, "cold", 4, "tuned"),
    servegen(24, 9.5 * DAY, 3 * HOUR, 0.2, "gguf", 1, "tuned"),
    servegen(50, 5.4 * DAY, 2 * HOUR, 0.3, "L1", 2, "tuned"),
    servegen(16, 11 * DAY, 8 * HOUR, 0.06, "cold", 2, "tuned"),
    servegen(60, 12.6 * DAY, 2 * HOUR, 0.3, "L2", 4, "tuned"),
    zipf("azure-code", 30, 600, 12, "L2", 2, "tuned"),
    zipf("azure-code", 20, 600, 60, "cold", 4, "tuned"),
    zipf("mooncake", 24, 600, 8, "L1", 2, "tuned"),
    zipf("mooncake", 10, 600, 30, "gguf", 1, "tuned"),
    arena(10, "L1", 1, "tuned"),
    arena(16, "L2", 4, "tuned"),
    arena(30, "cold", 2, "tuned"),
    arena(24, "gguf", 1, "tuned"),
    servegen(22, 4.5 * DAY, 2 * HOUR, 0.25, "L1", 4, "tuned"),
    servegen(28, 6.2 * DAY, 3 * HOUR, 0.2, "L2", 1, "tuned"),
    servegen(36, 7.3 * DAY, 6 * HOUR, 0.05, "cold", 1, "tuned"),
    servegen(18, 10.4 * DAY, 3 * HOUR, 0.25, "gguf", 2, "tuned"),
    zipf("azure", 20, 300, 10, "gguf", 1, "tuned", start_s=1200),
    zipf("azure-code", 24, 600, 25, "L1", 2, "tuned", start_s=1500),
    zipf("mooncake", 16, 600, 20, "L2", 2, "tuned", start_s=1200),
    zipf("mooncake", 30, 600, 40, "cold", 4, "tuned", start_s=1800),
    arena(15, "L1", 1, "held_out"),
    arena(7, "L2", 2, "held_out"),
    arena(18, "gguf", 2, "held_out"),
    arena(50, "cold", 4, "held_out"),
    servegen(44, 6.8 * DAY, 2 * HOUR, 0.35, "L1", 2, "held_out"),
    servegen(32, 13 * DAY, 3 * HOUR, 0.15, "L2", 1, "held_out"),
    servegen(26, 1.2 * DAY, 2 * HOUR, 0.3, "gguf", 4, "held_out"),
    servegen(20, 9 * DAY, 5 * HOUR, 0.07, "cold", 2, "held_out"),
    zipf("azure", 24, 400, 12, "L2", 1, "held_out", start_s=2400),
    zipf("azure-code", 16, 600, 40, "cold", 2, "held_out", start_s=2700),
    zipf("mooncake", 20, 600, 15, "L1", 4, "held_out", start_s=900),
    zipf("mooncake", 12, 600, 25, "gguf", 2, "held_out", start_s=2700),
    replace(arena(12, "tiers", 2, "more"), wake="home"),
    replace(arena(12, "L1", 2, "more"), wake="home"),
    replace(arena(30, "tiers", 4, "more"), wake="home", host_gib=200),
    replace(arena(16, "L1", 4, "more"), wide=6),
)
SEEDS = {"tuned": (1, 2, 3), "held_out": (51, 52, 53, 54, 55), "more": (31, 32, 33)}


@cache
def requests(trace: str, models: int, cut: Cut, seed: int) -> list[Job]:
    """Read once in each process."""
    names = [f"m{number:02}" for number in range(models)]
    return read_trace(TRACES / FILES[trace], names, seed=seed, cut=cut)


Numbers = dict[str, float]
Task = tuple[Cell, int, Policy, bool]


def one(task: Task) -> dict[str, Numbers]:
    """What every policy makes of a cell with one seed."""
    cell, seed, scheduling, bound = task
    jobs = requests(cell.trace, cell.models, cell.cut, seed if cell.models else 0)
    setup = cell.setup(jobs, seed)
    found = {}
    for policy in (OURS, *OTHERS):
        began = time.process_time()
        try:
            result = simulate(policy, setup, jobs, parameters=scheduling)
        except LawBroken as error:
            raise LawBroken(f"{cell.name}, seed {seed}, {policy}: {error}") from error
        waits = result.waits
        found[policy] = {
            "mean": waits.mean,
            "p50": waits.p50,
            "p95": waits.p95,
            "p99": waits.p99,
            "max": waits.max,
            "swaps": float(result.swaps),
            "swap_seconds": result.swap_seconds,
            "requests": float(len(jobs)),
            "cpu_s": time.process_time() - began,
        }
        if bound and policy == OURS:
            with suppress(NoBound):  # without scipy the other figures are still worth having
                found[policy]["lower_bound_s"] = lower_bound_s(setup, jobs, waits.p99)
    return found


def run(cells: Sequence[Cell], scheduling: Policy, bound: bool, workers: int) -> dict[str, object]:
    """All cells, as the document that `--json` prints."""
    tasks = [(cell, seed, scheduling, bound) for cell in cells for seed in cell.seeds]
    done: dict[Cell, list[dict[str, Numbers]]] = {cell: [] for cell in cells}
    for (cell, *_), found in zip(tasks, _each(tasks, workers), strict=True):
        done[cell].append(found)
        if sys.stderr.isatty():
            count = sum(map(len, done.values()))
            print(f"\r{count} of {len(tasks)} ", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r\x1b[2K", end="", file=sys.stderr)
    rows = [_row(cell, found) for cell, found in done.items()]
    groups = {group: _figures(row for row in rows if row["group"] == group) for group in GROUPS}
    headline = _figures(row for row in rows if row["group"] in HEADLINE)
    return {**headline, "groups": groups, "cells": rows}


def _each(tasks: Sequence[Task], workers: int) -> Iterator[dict[str, Numbers]]:
    if workers == 1:
        yield from map(one, tasks)
        return
    with ProcessPoolExecutor(workers, initializer=_obey) as pool:
        yield from pool.map(one, tasks)


def _obey() -> None:
    """Ctrl-C ends the workers without a word: the first process says what there is to say."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _row(cell: Cell, found: Sequence[dict[str, Numbers]]) -> dict[str, object]:
    means = {
        policy: {
            key: math.fsum(each[policy][key] for each in found) / len(found) for key in numbers
        }
        for policy, numbers in found[0].items()
    }
    ratios = {}
    for figure in FIGURES:
        key, _, other = figure.partition("_vs_")
        ratios[figure] = (means[OURS][key] + LEAST_S) / (means[other][key] + LEAST_S)
    gap = means[OURS].get("lower_bound_s")
    ratios |= {GAP: means[OURS]["swap_seconds"] / gap} if gap else {}
    about = {"cell": cell.name, "group": cell.group, "costs": cell.kind, "devices": cell.devices}
    return {**about, "seeds": list(cell.seeds), **ratios, "policies": means}


def _figures(rows: Iterable[Mapping[str, object]]) -> dict[str, object]:
    rows = list(rows)
    keys = [key for key in (*FIGURES, GAP) if rows and all(key in row for row in rows)]
    figures: dict[str, object] = {
        key: _geometric([_number(row[key]) for row in rows]) for key in keys
    }
    return {**figures, "count": len(rows)}


def _geometric(values: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def _number(value: object) -> float:
    assert isinstance(value, int | float)
    return value


# ------------------------------------------------------------------------------------------ showing


def table(found: Mapping[str, object]) -> Iterator[str]:
    """The document for a person."""
    head = f"{'mean':>7}{'p99':>7}{'max':>7}{'ollama':>8}{'swaps':>7}{'/LP':>6}"
    yield f"{'cell':30}{'group':10}{head}"
    rows, groups = found["cells"], found["groups"]
    assert isinstance(rows, list)
    assert isinstance(groups, dict)
    for row in rows:
        ours, fifo = row["policies"][OURS], row["policies"]["fifo"]
        means = f"  {ours['mean']:.2f} s, fifo {fifo['mean']:.2f} s"
        yield f"{row['cell']:30}{row['group']:10}{_ratios(row)}{means}"
    for group, figures in groups.items():
        if figures["count"]:
            yield f"{group:30}{figures['count']:3} cells {_ratios(figures)}"
    if "mean_vs_fifo" in found:
        yield f"{'tuned and held_out':40}{_ratios(found)}"


def _ratios(row: Mapping[str, object]) -> str:
    order = ("mean_vs_fifo", "p99_vs_fifo", "max_vs_fifo", "mean_vs_ollama", "swaps_vs_fifo")
    cells = "".join(f"{_number(row[key]):{8 if 'ollama' in key else 7}.3f}" for key in order)
    return cells + (f"{_number(row[GAP]):6.1f}" if GAP in row else "")


STYLE = """
text { font: 12px system-ui, sans-serif; fill: #57606a }
.head { font-weight: 600; fill: #24292f }
.grid { stroke: #8c959f; stroke-opacity: .3 }
.one { stroke: #8c959f; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) { text { fill: #9da7b1 } .head { fill: #e6edf3 } }
"""
MARKS = (("mean_vs_fifo", "mean", "#2f81f7"), ("p99_vs_fifo", "p99", "#d29922"))
LEFT, RIGHT, STEP, TOP = 230, 620, 20, 64
TICKS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)


def chart(found: Mapping[str, object]) -> str:
    """An SVG that is readable on light and on dark pages: our waits over those of llama-swap."""
    rows = found["cells"]
    assert isinstance(rows, list)
    lines: list[str] = []
    y = TOP
    for group in HEADLINE:
        lines.append(f'<text class="head" x="12" y="{y + 4}">{group.replace("_", " ")}</text>')
        y += STEP
        for row in (row for row in rows if row["group"] == group):
            lines.append(f'<text x="24" y="{y + 4}">{row["cell"].replace("*", " ×")}</text>')
            lines.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y}" y2="{y}"/>')
            for key, _, colour in reversed(MARKS):
                x = _x(_number(row[key]))
                lines.append(f'<circle cx="{x:.1f}" cy="{y}" r="5" fill="{colour}"/>')
            y += STEP
        y += STEP // 2
    axis = [
        f'<line class="{"one" if tick == 1 else "grid"}" x1="{_x(tick):.1f}" x2="{_x(tick):.1f}" '
        f'y1="{TOP - 14}" y2="{y - STEP}"/>'
        f'<text x="{_x(tick):.1f}" y="{TOP - 20}" text-anchor="middle">{tick:g}</text>'
        for tick in TICKS
    ]
    legend = [
        f'<circle cx="{LEFT + 8 + 70 * at}" cy="16" r="5" fill="{colour}"/>'
        f'<text x="{LEFT + 18 + 70 * at}" y="20">{name}</text>'
        for at, (_, name, colour) in enumerate(MARKS)
    ]
    title = '<text class="head" x="12" y="20">Wait, modelyard ÷ llama-swap</text>'
    body = "\n".join([title, *legend, *axis, *lines])
    size = f'width="{RIGHT + 30}" height="{y}" viewBox="0 0 {RIGHT + 30} {y}"'
    alt = (
        "<title>Waits of modelyard over those of llama-swap, by workload; below 1 is better</title>"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size}>{alt}\n'
        f"<style>{STYLE}</style>\n{body}\n</svg>\n"
    )


def _x(ratio: float) -> float:
    share = math.log(min(max(ratio, TICKS[0]), TICKS[-1]) / TICKS[0]) / math.log(
        TICKS[-1] / TICKS[0]
    )
    return LEFT + share * (RIGHT - LEFT)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--only", default="", metavar="WORD", help="cells with this in name or group"
    )
    parser.add_argument("--seeds", type=int, help="at most so many for each cell")
    parser.add_argument("--quick", action="store_true", help="one seed, and no bound")
    parser.add_argument("--no-bound", action="store_true", help="leave the lower bound out")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--chart", type=Path, metavar="FILE", help="also draw an SVG")
    args = parser.parse_args()
    cells = [
        replace(cell, seeds=SEEDS[cell.group][: 1 if args.quick else args.seeds])
        for cell in CELLS
        if args.only in f"{cell.name} {cell.group}"
    ]
    if not cells:
        parser.error(f"no cell has {args.only!r} in its name or group")
    found = run(cells, parameters(args.set), not (args.quick or args.no_bound), args.workers)
    if args.chart:
        args.chart.write_text(chart(found))
    print(json.dumps(found, indent=2) if args.json else "\n".join(table(found)))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ModelyardError as error:
        sys.exit(f"scheduler.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
