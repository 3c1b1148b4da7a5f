"""What a model takes of its cards where the source does not say.

Laws of this file:
- vLLM takes the share that it is told to take. Of anything else it is only known who may run
  together: a model that had its cards to itself claims most of them.
- These are claims for the first run alone: what was measured then counts afterwards. Without them
  a second model would be started beside the first one, and both would run out of memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from modelyard.core.defaults import VLLM_CONTEXT_MIB
from modelyard.importers import programs
from modelyard.importers.surroundings import Surroundings
from modelyard.importers.values import as_number

MOST_OF_A_CARD = 0.85
"""Leaves room for the reserve and for what a desktop shows."""
VLLM_SHARE = 0.9


def claims(
    devices: Sequence[str], argv: Sequence[str], here: Surroundings, together: int = 1
) -> dict[str, int]:
    """MiB by device for a command that shares its cards with `together - 1` others; {} if the
    cards are not known here.
    """
    share = _share_of_vllm(argv)
    found: dict[str, int] = {}
    for name in devices:
        size = _size(name, here)
        if size is None:
            continue
        if share is None:
            found[name] = math.floor(size * MOST_OF_A_CARD / max(1, together))
        else:
            outside = VLLM_CONTEXT_MIB
            found[name] = min(math.ceil(size * share) + outside, size - outside)
    return found


def _size(name: str, here: Surroundings) -> int | None:
    if not here.cards_mib:
        return None
    if name == "gpu":
        return min(here.cards_mib)  # any of them may be taken
    kind, _, index = name.partition(":")
    if kind == "nvidia" and index.isdecimal() and int(index) < len(here.cards_mib):
        return here.cards_mib[int(index)]
    return None


def _share_of_vllm(argv: Sequence[str]) -> float | None:
    program = programs.known(argv)
    if program is None or program.name != "vLLM":
        return None
    told = programs.find_option(argv, ("--gpu-memory-utilization", "--gpu_memory_utilization"))
    share = as_number(told[1]) if told else None
    return share if share is not None and 0 < share <= 1 else VLLM_SHARE
