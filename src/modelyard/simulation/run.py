"""A policy by its name, over a trace.

Laws of this file:
- A run leaves its input as it was: jobs are copied.
- What can never work is refused before the clock starts, with all reasons at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from modelyard.config.wording import shorten
from modelyard.core.errors import ConfigError
from modelyard.core.policy import Policy
from modelyard.simulation.baselines import Fifo, HeadOfLine, Single
from modelyard.simulation.results import Result, summed_up
from modelyard.simulation.values import Job, Setup
from modelyard.simulation.world import World
from modelyard.simulation.yard import Rules, Yard

MODELYARD = "modelyard"
BASELINES: dict[str, Callable[[], Rules]] = {
    "fifo": Fifo,
    "single": Single,
    "ollama": lambda: HeadOfLine(lru=False),
    "lru": lambda: HeadOfLine(lru=True),
}
POLICIES = (MODELYARD, *BASELINES)
MOST_NAMED = 20


def simulate(
    policy: str,
    setup: Setup,
    jobs: Sequence[Job],
    *,
    parameters: Policy | None = None,
    tick: Callable[[int], None] | None = None,
) -> Result:
    """What the policy makes of the jobs. `tick` hears how many have arrived.

    `parameters` are those of `modelyard`; None means the defaults.
    Raises ConfigError for models that fit nowhere, LawBroken when a policy does the impossible.
    """
    _check(setup, jobs)
    copies = sorted((replace(job) for job in jobs), key=lambda job: job.arrived_s)
    if policy == MODELYARD:
        books = World(setup, parameters or Policy()).run(copies, tick)
    else:
        books = Yard(setup, BASELINES[policy]()).run(copies, tick)
    return summed_up(policy, books)


def _check(setup: Setup, jobs: Sequence[Job]) -> None:
    problems = []
    for model in setup.models.values():
        roomy = sum(size >= model.memory_mib for size in setup.devices_mib)
        if roomy < model.tensor_parallel:
            largest = max(setup.devices_mib, default=0)
            problems.append(
                f"models.{model.name}: needs {model.memory_mib} MiB on each of "
                f"{model.tensor_parallel} devices; {roomy} are that large, the largest has "
                f"{largest} MiB"
            )
    unknown = sorted({job.model for job in jobs} - setup.models.keys())
    for name in unknown[:MOST_NAMED]:
        problems.append(f"models.{shorten(name)}: is asked for in the trace and not defined")
    if len(unknown) > MOST_NAMED:
        problems.append(f"and {len(unknown) - MOST_NAMED} more models that are not defined")
    if not jobs:
        problems.append("the trace holds no requests")
    if problems:
        raise ConfigError("the simulation", problems)
