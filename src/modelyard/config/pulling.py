"""What the admin API says of downloads: orders for them, how they go, and what a removal frees.

Laws of this file:
- Plain data, as in `core.views`: moments are seconds since the epoch (`_at`), spans seconds (`_s`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

# They are in core because live news carries them.
from modelyard.core.views import PullTrouble as PullTrouble
from modelyard.core.views import PullView as PullView

PULLS = "pulls"
"""The topic of live news that carries a `PullView`."""

ENDED = frozenset({"done", "failed", "cancelled"})
"""States that a download does not leave."""


@dataclass(frozen=True, slots=True)
class PullWanted:
    """An order for a download."""

    model: str
    """`ORG/NAME`, `ORG/NAME:QUANTISATION`, or the address of a repository's page."""
    revision: str | None = None
    """Branch, tag or commit; None is the hub's main branch."""
    files: list[str] = field(default_factory=list)
    """Names or globs of the files to fetch; empty chooses what engines need."""
    hub: str | None = None
    """`hf` or `modelscope`; None is what `model` says, else `hf`."""
    to: str | None = None
    """Models folder to put the model into, as `ORG/NAME`; None is the usual one."""
    pickle: bool = False
    """Fetch pickled weights where there are no others."""


@dataclass(frozen=True, slots=True)
class Removal:
    """The files of a model that were removed, or would be."""

    model: str
    files: list[str]
    freed_bytes: int
    """Bytes that the disk gets back; links and files that others share count nothing."""
    removed: bool
    notes: list[str] = field(default_factory=list)
