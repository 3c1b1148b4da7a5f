"""What a device probe tells. A probe reads; it never changes a device and never decides.

Laws of this file:
- A reading is of one moment. What a driver does not tell is None, never a guess.
- `read` may block, for as long as a hung driver likes: it is called in a thread of its own.
- A probe whose driver or hardware is absent finds no devices; a driver that fails raises
  `ProbeFailed` with its reason, and the devices it told of before are not forgotten.
- A device that is there but cannot be used is told with its `failure` and no memory. It never
  hides the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from modelyard.core.errors import ModelyardError


class ProbeFailed(ModelyardError):
    """A driver that is there does not answer as it should."""

    code = "probe_failed"


@dataclass(frozen=True, slots=True)
class Reading:
    """One device at one moment. Memory is in MiB."""

    id: str
    """Stable and unique: UUID, else PCI address; `cpu` for the host."""
    kind: str
    """`nvidia`, `amd`, `intel`, `apple` or `cpu`."""
    index: int
    """Its place among the devices of its kind, in the order of their PCI addresses."""
    name: str
    total_mib: int
    used_mib: int | None = None
    by_process_mib: Mapping[int, int] | None = None
    """What each process holds there; None where the driver does not tell."""
    utilisation: float | None = None
    """Share of time in which it worked, 0 to 1."""
    temperature_c: float | None = None
    power_w: float | None = None
    clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    pci: str | None = None
    notes: tuple[str, ...] = ()
    """What a user should know: a MIG instance, a vGPU, memory shared with the host."""
    failure: str | None = None
    """Why it cannot be used now, such as a GPU that fell off its bus; then `total_mib` is 0 and
    what ran there is lost as if the device had vanished. None while it works."""


class Probe(Protocol):
    """Finds the devices of one kind."""

    @property
    def kind(self) -> str: ...

    def read(self) -> Sequence[Reading]:
        """Every device of this kind as it is now. Raises ProbeFailed."""
        ...
