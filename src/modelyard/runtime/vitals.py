"""What real traffic tells of an engine's health, without a request of our own.

Laws of this file:
- It costs a comparison for each answer, and nothing else: it stands in the hot path.
- An engine whose core has died often still answers its health route; what it answers to real
  requests is 500, again and again. One such answer proves nothing (some engines answer 500 to what
  is the client's mistake), several in a row are worth a look.
"""

from __future__ import annotations

from collections.abc import Callable

SUSPECT_AFTER = 3
"""Answers of the kind below in a row, after which an engine is looked at."""

_SICK = frozenset({500, 502, 504})
"""501 is what an engine cannot do, 503 that it is busy or loading: neither says that it is sick."""


class Vitals:
    """Counts answers of one run; `on_sick` is called when there have been too many bad ones."""

    __slots__ = ("_in_a_row", "_on_sick", "well")

    def __init__(self, on_sick: Callable[[], None]) -> None:
        self.well = 0
        """Answers so far that show that the engine works."""
        self._in_a_row = 0
        self._on_sick = on_sick

    def answered(self, status: int) -> None:
        """The engine has begun an answer to a client's request."""
        if status not in _SICK:
            self.well += 1
            self._in_a_row = 0
            return
        self._in_a_row += 1
        if self._in_a_row >= SUSPECT_AFTER:
            self._in_a_row = 0
            self._on_sick()
