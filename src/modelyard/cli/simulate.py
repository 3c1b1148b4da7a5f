"""`simulate`: what the scheduler, or somebody else's, would make of a trace.

Laws of this file:
- Nothing is started and no server is asked: it runs on a virtual clock, and the same flags print
  the same numbers.
- A bar on stderr says how far it has come, where a person looks.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelyard.cli.exits import BadUsage
from modelyard.cli.options import Json
from modelyard.cli.output import is_terminal, note, print_json, print_table, say
from modelyard.cli.words import counted, memory, span

if TYPE_CHECKING:
    from modelyard.simulation.results import Result, Waits
    from modelyard.simulation.values import Job, Setup

SHOWN_MODELS = 30
"""Models in the table for people; `--json` has all."""
COLUMNS = ("POLICY", "MEAN", "P50", "P95", "P99", "MAX", "SWAPS", "SWAPPING", "BUSY")
MODEL_COLUMNS = ("MODEL", "REQUESTS", "MEAN", "P50", "P95", "P99", "MAX", "SWAPS")

Trace = Annotated[
    Path,
    typer.Option(
        "--trace",
        metavar="FILE",
        help="Requests: CSV with t_s,model,input_tokens,output_tokens, or one of the known traces "
        "(Azure, BurstGPT, Mooncake, rates of ServeGen); may be packed with gzip.",
    ),
]
Models = Annotated[
    Path,
    typer.Option(
        "--models",
        metavar="FILE",
        help="YAML, `name: {weights_gib: 8}`; also memory_gib, tensor_parallel, priority, pinned, "
        "costs.",
    ),
]
DeviceList = Annotated[
    str, typer.Option("--devices", metavar="SIZES", help="Like 2x76GiB, or 2x80GiB,24GiB.")
]
CostKind = Annotated[
    str,
    typer.Option(
        "--costs",
        metavar="KIND|FILE",
        help="Seconds of coming and going: L1, L2 (sleep), cold, gguf, tiers (cold starts and both "
        "sleeps), or a YAML file of seconds.",
    ),
]
Wake = Annotated[
    str,
    typer.Option(
        "--wake",
        metavar="WHERE",
        help="With L1 and L2: `anywhere`, as if every device held a sleeper of every model, or "
        "`home`, where it fell asleep.",
    ),
]
PolicyName = Annotated[
    str,
    typer.Option(
        "--policy",
        metavar="NAME",
        help="modelyard; fifo (llama-swap, ideal matrix), single (llama-swap's default), ollama "
        "(head of line), lru (first come, least recently used leaves).",
    ),
]
Compare = Annotated[bool, typer.Option("--compare", help="Run all policies.")]
Seed = Annotated[
    int, typer.Option("--seed", help="For what is drawn: models and arrivals not in the trace.")
]
Concurrency = Annotated[
    int, typer.Option("--concurrency", min=1, max=100_000, help="Requests a model serves at once.")
]
HostMemory = Annotated[
    str, typer.Option("--host-memory", metavar="SIZE", help="For the weights of sleepers (L1).")
]
Residue = Annotated[
    str, typer.Option("--residue", metavar="SIZE", help="What a sleeper keeps on each device.")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="A parameter of modelyard, like scheduling.fair_after=9s"
    ),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Take `scheduling` from this configuration."),
]
Start = Annotated[str, typer.Option("--start", metavar="TIME", help="Skip so much of the trace.")]
Length = Annotated[
    str | None, typer.Option("--length", metavar="TIME", help="Play so much of the trace.")
]
Stretch = Annotated[
    float, typer.Option("--stretch", help="2 plays the trace at half speed, 0.5 at double speed.")
]
Rate = Annotated[
    float | None, typer.Option("--rate", help="Requests per second of a trace of rates.")
]
Bound = Annotated[
    bool,
    typer.Option("--bound", help="Also the least seconds of coming up (linear program; scipy)."),
]
Moves = Annotated[bool, typer.Option("--moves", help="Also every coming and going, in order.")]


def simulate(
    trace: Trace,
    models: Models,
    devices: DeviceList,
    costs: CostKind,
    policy: PolicyName = "modelyard",
    compare: Compare = False,
    seed: Seed = 0,
    concurrency: Concurrency = 16,
    host_memory: HostMemory = "512GiB",
    residue: Residue = "0MiB",
    wake: Wake = "anywhere",
    assignments: Set = None,
    config: Config = None,
    start: Start = "0s",
    length: Length = None,
    stretch: Stretch = 1.0,
    rate: Rate = None,
    bound: Bound = False,
    moves: Moves = False,
    as_json: Json = False,
) -> None:
    """Play a trace against the scheduler on a virtual clock, and say who waited for how long."""
    from modelyard.simulation.costs import WAKES
    from modelyard.simulation.files import read_costs, read_devices, read_models
    from modelyard.simulation.parameters import parameters
    from modelyard.simulation.run import POLICIES
    from modelyard.simulation.run import simulate as run
    from modelyard.simulation.trace import read_trace
    from modelyard.simulation.values import Cut, Setup

    _one_of("--policy", policy, POLICIES)
    _one_of("--wake", wake, WAKES)
    scheduling = parameters(assignments or (), config)
    sizes = read_devices(devices)
    known = read_models(models, sizes, read_costs(costs, wake))
    setup = Setup(
        known,
        sizes,
        concurrency,
        _size("--host-memory", host_memory),
        _size("--residue", residue),
    )
    cut = Cut(
        _time("--start", start),
        math.inf if length is None else _time("--length", length),
        _positive("--stretch", stretch),
        None if rate is None else _positive("--rate", rate),
    )
    with _saying("reading the trace", None):
        jobs = read_trace(trace, list(known), seed=seed, cut=cut)
    _describe(setup, jobs)
    results = []
    for name in POLICIES if compare else (policy,):
        with _saying(name, len(jobs)) as tick:
            results.append(run(name, setup, jobs, parameters=scheduling, tick=tick))
        if bound:
            results[-1] = _bounded(results[-1], setup, jobs)
    if as_json:
        documents = [_document(result, moves) for result in results]
        print_json({"results": documents} if compare else documents[0])
    else:
        _print(results, moves)


def _describe(setup: Setup, jobs: Sequence[Job]) -> None:
    asked = len({job.model for job in jobs})
    sizes = ", ".join(memory(size) for size in setup.devices_mib)
    last = span(max(job.arrived_s for job in jobs))
    note(f"{counted(len(jobs), 'request')} for {counted(asked, 'model')} in {last}, on {sizes}")


def _print(results: Sequence[Result], moves: bool) -> None:
    print_table(COLUMNS, [_row(result) for result in results])
    for result in results:
        if result.bound_p99_s is not None and result.bound_max_s is not None:
            say(
                f"{result.policy}: {result.swap_seconds:.0f} s of swapping; no schedule with this "
                f"p99 spends less than {result.bound_p99_s:.0f} s on coming up, none with this "
                f"max less than {result.bound_max_s:.0f} s"
            )
    if len(results) == 1:
        say()
        _print_models(results[0])
    if moves:
        for result in results:
            say(f"\n{result.policy}:")
            for move in result.moves:
                where = ",".join(map(str, move.devices))
                say(f"{move.begin_s:10.2f} s  {move.what:5}  {move.model}  on {where}")


def _row(result: Result) -> tuple[str, ...]:
    busy = " ".join(f"{share:.0%}" for share in result.utilisation)
    swapping = f"{result.swap_seconds:.0f} s"
    return (result.policy, *_cells(result.waits), str(result.swaps), swapping, busy)


def _cells(waits: Waits) -> list[str]:
    shown = (waits.mean, waits.p50, waits.p95, waits.p99, waits.max)
    return [f"{seconds:.2f} s" for seconds in shown]


def _print_models(result: Result) -> None:
    """Models whose requests waited longest together come first."""
    ordered = sorted(result.models.items(), key=lambda m: -m[1].mean * m[1].requests)
    print_table(
        MODEL_COLUMNS,
        [
            (name, str(waits.requests), *_cells(waits), str(result.model_swaps[name]))
            for name, waits in ordered[:SHOWN_MODELS]
        ],
    )
    if len(ordered) > SHOWN_MODELS:
        note(f"and {len(ordered) - SHOWN_MODELS} more; --json shows all")


def _document(result: Result, moves: bool) -> dict[str, object]:
    document: dict[str, object] = {
        "policy": result.policy,
        **_numbers(result.waits),
        "swaps": result.swaps,
        "swap_seconds": result.swap_seconds,
        "makespan_s": result.makespan_s,
        "utilisation": list(result.utilisation),
        "models": {
            name: {**_numbers(waits), "swaps": result.model_swaps[name]}
            for name, waits in result.models.items()
        },
    }
    if result.keys:
        document["keys"] = {key: _numbers(waits) for key, waits in result.keys.items()}
    if result.bound_p99_s is not None:
        document["lower_bound_s"] = {"p99": result.bound_p99_s, "max": result.bound_max_s}
    if moves:
        document["moves"] = result.moves
    return document


def _numbers(waits: Waits) -> dict[str, float]:
    return {
        "requests": waits.requests,
        "mean": waits.mean,
        "p50": waits.p50,
        "p95": waits.p95,
        "p99": waits.p99,
        "max": waits.max,
    }


def _bounded(result: Result, setup: Setup, jobs: Sequence[Job]) -> Result:
    from modelyard.simulation.bound import lower_bound_s

    with _saying(f"{result.policy}: lower bounds", None):
        p99 = lower_bound_s(setup, jobs, result.waits.p99)
        most = lower_bound_s(setup, jobs, result.waits.max)
    return replace(result, bound_p99_s=p99, bound_max_s=most)


@contextmanager
def _saying(what: str, total: int | None) -> Iterator[Callable[[int], None] | None]:
    """A bar for what is going on; gives how to move it, or None where nobody looks."""
    if not is_terminal(sys.stderr):
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)


def _one_of(flag: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise BadUsage(f"{flag}: {value!r} is none of {', '.join(known)}")


def _size(flag: str, text: str) -> int:
    from modelyard.config.units import parse_mib

    try:
        return parse_mib(int(text) if text == "0" else text)
    except ValueError as error:
        raise BadUsage(f"{flag}: {error}") from None


def _time(flag: str, text: str) -> float:
    from modelyard.config.units import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise BadUsage(f"{flag}: {error}") from None


def _positive(flag: str, value: float) -> float:
    if not 0 < value < 1e6:
        raise BadUsage(f"{flag}: {value:g} is not more than 0 and less than a million")
    return value
