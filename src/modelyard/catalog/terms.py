"""The parts of an estimate: what, how much, how it was reckoned, and where the numbers come from.

Laws of this file:
- A part without a formula that a person can check is not shown.
- Estimates stand until a run was measured; nothing here claims to be a measurement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

MIB: Final = 2**20

HEADERS: Final = "the headers of the model's files"


@dataclass(frozen=True, slots=True)
class Term:
    """One part of the memory: what it is, how much, how that was reckoned, and from what.

    `source` says where the numbers in the formula come from: the model's files, an engine's own
    code or documentation, or a measurement.
    """

    name: str
    mib: float
    formula: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Estimate:
    """The memory of one engine on one device, part by part.

    `context` is the tokens it makes room for in all its sequences together.
    """

    terms: tuple[Term, ...]
    context: int

    @property
    def total_mib(self) -> int:
        """MiB, rounded up."""
        return math.ceil(sum(term.mib for term in self.terms))

    def term(self, name: str) -> float:
        """MiB of the part with this name; 0 where there is none."""
        return sum(term.mib for term in self.terms if term.name == name)
