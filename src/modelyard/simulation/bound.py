"""The least that any schedule must spend on bringing models up, as a linear program.

Laws of this file:
- The bound holds for every schedule in which nobody waits longer than `longest_wait_s`, and counts
  only the seconds of coming up. It gives models for fractions and memory of all devices together,
  so no schedule need reach it.
- After Berger, Beckmann and Harchol-Balter's flow bounds for caches with sizes (FOO): a gap between
  two requests of one model may be bridged by keeping it; that takes its memory from the latest
  begin of the first to the arrival of the second.
- scipy solves it. It is no dependency: who asks for bounds installs it.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from modelyard.core.errors import ModelyardError
from modelyard.simulation.values import Costs, Job, Setup

MOST_ENTRIES = 8_000_000
"""Entries of the program's matrix; beyond it, hours and gigabytes."""


class NoBound(ModelyardError):
    """The bound cannot be computed here."""

    code = "no_bound"


class _Gap(NamedTuple):
    """Between two requests of one model: bridging it saves `saved_s` and holds `mib`."""

    begin_s: float
    end_s: float
    mib: int
    saved_s: float


def lower_bound_s(setup: Setup, jobs: Sequence[Job], longest_wait_s: float) -> float:
    """Seconds of bringing models up that no schedule with such waits can undercut.

    Raises NoBound without scipy, or when the trace is too long for it.
    """
    times: dict[str, list[float]] = {}
    for job in sorted(jobs, key=lambda job: job.arrived_s):
        times.setdefault(job.model, []).append(job.arrived_s)
    total_s, gaps = 0.0, list[_Gap]()
    for name, at in times.items():
        model = setup.models[name]
        up_s = least_up_s(model.costs)
        total_s += model.costs.start.up_s  # gaps within the longest wait need no other
        for before, after in pairwise(at):
            if after - before > longest_wait_s:
                total_s += up_s
                whole = model.memory_mib * model.tensor_parallel
                gaps.append(_Gap(before + longest_wait_s, after, whole, up_s))
    return total_s - _most_saved_s(gaps, sum(setup.devices_mib))


def least_up_s(costs: Costs) -> float:
    """The cheapest way in which a model can come up."""
    return min([costs.start.up_s, *(switch.up_s for switch in costs.sleep.values())])


def _most_saved_s(gaps: Sequence[_Gap], memory_mib: int) -> float:
    """The most that bridging can save when all gaps bridged at a moment fit into memory."""
    if not gaps:
        return 0.0
    try:
        import numpy as np
        from scipy.optimize import linprog
        from scipy.sparse import csr_matrix
    except ImportError:
        raise NoBound("bounds need scipy", hint="pip install scipy") from None
    moments = sorted({gap.begin_s for gap in gaps})  # use only grows where a gap begins
    spans = [(bisect_left(moments, g.begin_s), bisect_left(moments, g.end_s)) for g in gaps]
    entries = sum(last - first for first, last in spans)
    if entries > MOST_ENTRIES:
        text = f"the bound of {len(gaps)} gaps would need a matrix of {entries} entries"
        raise NoBound(text, hint="play a part of the trace with --length")
    rows = np.concatenate([np.arange(first, last) for first, last in spans])
    columns = np.repeat(np.arange(len(gaps)), [last - first for first, last in spans])
    values = np.repeat([float(gap.mib) for gap in gaps], [b - a for a, b in spans])
    matrix = csr_matrix((values, (rows, columns)), shape=(len(moments), len(gaps)))
    saved = np.array([gap.saved_s for gap in gaps])
    limit = np.full(len(moments), float(memory_mib))
    solved = linprog(-saved, A_ub=matrix, b_ub=limit, bounds=(0, 1), method="highs")
    if solved.status != 0 or not math.isfinite(solved.fun):
        raise NoBound(f"the solver gave up: {solved.message}")
    return -float(solved.fun)
