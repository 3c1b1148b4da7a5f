"""What a device probe is.

Laws of this file:
- A probe only looks: it takes no memory and changes nothing.
- Its calls block (drivers, files), so they are made off the event loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from modelyard.core.specs import Device


class Probe(Protocol):
    """Finds devices of one kind."""

    @property
    def name(self) -> str:
        """The kind of devices it finds, for messages."""
        ...

    def devices(self) -> Sequence[Device]:
        """The devices present now and what models may hold on each; empty where there are none."""
        ...
