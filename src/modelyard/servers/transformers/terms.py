"""Values that pass between the parts of this server.

Laws of this file:
- Nothing heavy is imported: the HTTP side uses it before torch is there.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Final

QUERY: Final = "query"
DOCUMENT: Final = "document"
"""What a text is to the other texts; sentence-transformers' own words (`task`)."""


@dataclass(frozen=True, slots=True)
class Lane:
    """What inputs must have in common to be computed together."""

    task: str | None
    common: tuple[tuple[str, Any], ...]
    """Values that the library gives for a whole batch."""
    is_flat: bool = False
    """Tokens of all inputs one after another, as static embeddings have them."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """One input in tokens: an array for each thing that the model wants to know of them."""

    lane: Lane
    length: int
    row: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """An input as the computing thread hands it back."""

    lane: Hashable
    length: int
    row: object


@dataclass(frozen=True, slots=True)
class Cut:
    """How long an input may be. `tokens` None: as long as the model takes."""

    is_error: bool
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Score:
    raw: float
    """Before the activation: what decides the order."""
    relevance: float
    """After it."""
