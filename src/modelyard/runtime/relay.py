"""Sends the chunks of a stream on as they came, while nothing in them concerns anybody here.

Laws of this file:
- A chunk is sent on unseen only if it is framed to the byte as ours are, holds whole events, and
  none that tells of usage.
- All that a chunk needs on its way stands in one small object: with thousands of streams nearly
  everything that is looked at has to come from memory first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from modelyard.runtime.framing import whole_events

LOOK: Final = whole_events
"""A constant, which compiled code has at hand; it would look for a global by its name."""


class Relay:
    """Between one answer of an engine and its client."""

    __slots__ = ("_write", "events", "is_held", "size")

    def __init__(self, write: Callable[[bytes], None]) -> None:
        """`write` is the client's."""
        self._write = write
        self.is_held = False
        """Whether chunks go the usual way for now, since one before them has not gone yet."""
        self.events = 0
        """Events that were sent on."""
        self.size = 0
        """Bytes of them."""

    def takes(self, chunk: bytes) -> bool:
        """Send the chunk on, or several, if that may be; whether it was."""
        if self.is_held:
            return False
        events, size = LOOK(chunk)
        if not events:
            return False
        self.events += events
        self.size += size
        self._write(chunk)
        return True
