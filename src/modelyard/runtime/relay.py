"""Sends the chunks of a stream on as they came, while nothing in them concerns anybody here.

Laws of this file:
- A chunk is sent on unseen only if it is framed to the byte as ours are, holds whole events, and
  has no word that somebody watches for.
- All that a chunk needs on its way stands in one small object: with thousands of streams nearly
  everything that is looked at has to come from memory first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from modelyard.runtime.framing import chunk_data_at

END: Final = b"\n\n\r\n"
"""How a chunk ends whose data ends with an event."""


class Relay:
    """Between one answer of an engine and its client."""

    __slots__ = ("_watched", "_write", "events", "is_held", "size")

    def __init__(self, write: Callable[[bytes], None], watched: bytes) -> None:
        """`write` is the client's; `watched` is the word that must not pass unseen."""
        self._write = write
        self._watched = watched
        self.is_held = False
        """Whether chunks go the usual way for now, since one before them has not gone yet."""
        self.events = 0
        """Events that were sent on."""
        self.size = 0
        """Bytes of them."""

    def takes(self, chunk: bytes) -> bool:
        """Send the chunk on, if that may be; whether it was."""
        at = chunk_data_at(chunk)
        if not at or self.is_held or chunk[-4:] != END or len(chunk) < at + len(END):
            return False
        if chunk.find(self._watched) >= 0:
            return False
        is_one = chunk.find(b"\n", at) == len(chunk) - len(END)  # which is quicker than to count
        self.events += 1 if is_one else chunk.count(b"\n\n", at)
        self.size += len(chunk) - at - 2
        self._write(chunk)
        return True
