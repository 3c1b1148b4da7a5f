"""Machines of any size, and models that lie on the disk, for tests of plans."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from modelyard.catalog.found import FoundModel
from modelyard.core.specs import Device
from modelyard.planner.locate import models_at
from modelyard.planner.machine import Machine, machine_of

CARD = "NVIDIA GeForce RTX 4090"
PLENTY_MIB = 1 << 20


def machine(*cards: int, host: int = PLENTY_MIB, name: str = CARD) -> Machine:
    """Cards of these sizes and a host, of which everything may be used."""
    gpus = [
        Device(f"GPU-{number}", name, mib, mib, "nvidia", number)
        for number, mib in enumerate(cards)
    ]
    return machine_of([Device("cpu", "a processor", host, host), *gpus])


def found_at(path: Path) -> FoundModel:
    return models_at(path)[0]


def smallest(fits: Callable[[int], bool], most: int = PLENTY_MIB) -> int:
    """The least number of MiB with which something fits."""
    low, high = 0, most
    assert fits(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
