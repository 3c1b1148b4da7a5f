"""How many threads an engine of our own may start."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path


def usable_processors(cgroup: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Processors this process may use: by its affinity and its control group (cgroups(7), v2).

    Engines count those of the whole machine; in a container that has two of 64, their threads
    would spend their time waiting for each other.
    """
    total = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    try:
        quota, period = cgroup.read_text().split()
        return max(1, min(total, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no control group, or "max": no limit
        return total
