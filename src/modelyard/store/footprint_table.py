"""Footprints in the database.

Laws of this file:
- A measurement is one transaction: it is recorded as a whole or not at all.
- A row that makes no sense is left out with a warning, and replaced by the next measurement; it
  must not cost the others.
- This module imports SQLAlchemy; only `database` imports it, and only when a store is opened.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import astuple, fields
from typing import Any

from sqlalchemy import Connection, RowMapping, and_, delete, insert, select

from modelyard.store.footprints import RECENT, Footprint, FootprintKey, Measured, is_memory, observe
from modelyard.store.tables import FOOTPRINTS

_log = logging.getLogger(__name__)

_KEY = tuple(field.name for field in fields(FootprintKey))


class FootprintTable:
    """Reads and writes footprints. Every method raises StoreError when the database fails."""

    def __init__(self, transaction: Callable[[], AbstractContextManager[Connection]]) -> None:
        self._transaction = transaction

    def load_all(self) -> Mapping[FootprintKey, Footprint]:
        """Everything that was measured and not forgotten."""
        with self._transaction() as connection:
            rows = connection.execute(select(FOOTPRINTS)).mappings().all()
        return _footprints(rows)

    def record(self, key: FootprintKey, mib_by_device: Mapping[str, int], now: float) -> Footprint:
        """Keep one more measurement, in MiB by position, taken at `now` (seconds since the epoch).

        Returns all that is known of `key` then. Raises ValueError as `observe` does.
        """
        same = and_(*(FOOTPRINTS.c[name] == getattr(key, name) for name in _KEY))
        with self._transaction() as connection:
            rows = connection.execute(select(FOOTPRINTS).where(same)).mappings().all()
            footprint = observe(_footprints(rows).get(key), key, mib_by_device, now)
            connection.execute(delete(FOOTPRINTS).where(same))
            connection.execute(insert(FOOTPRINTS), _rows(footprint))
        return footprint

    def forget(self, model: str) -> None:
        """Drop all that was measured for `model`, whose claims are declared or estimated again."""
        with self._transaction() as connection:
            connection.execute(delete(FOOTPRINTS).where(FOOTPRINTS.c.model == model))


def _rows(footprint: Footprint) -> list[dict[str, str | int | float]]:
    key = dict(zip(_KEY, astuple(footprint.key), strict=True))
    return [
        {
            **key,
            "position": position,
            "recent_mib": " ".join(map(str, measured.recent_mib)),
            "max_mib": measured.max_mib,
            "average_mib": measured.average_mib,
            "seen": measured.seen,
            "updated_at": measured.updated_at,
        }
        for position, measured in footprint.devices.items()
    ]


def _footprints(rows: Iterable[RowMapping]) -> dict[FootprintKey, Footprint]:
    found: dict[FootprintKey, dict[str, Measured]] = {}
    for row in rows:
        measured = _measured(row)
        texts = [row[name] for name in (*_KEY, "position")]
        if measured is None or not all(isinstance(text, str) for text in texts):
            _log.warning("the store holds a damaged row, which is left out: %r", dict(row))
            continue
        *key, position = texts
        found.setdefault(FootprintKey(*key), {})[position] = measured
    return {key: Footprint(key, devices) for key, devices in found.items()}


def _measured(row: RowMapping) -> Measured | None:
    """What a row says; None if it cannot be true. SQLite keeps any type in any column."""
    text, largest, seen = row["recent_mib"], row["max_mib"], row["seen"]
    average, updated_at = row["average_mib"], row["updated_at"]
    words = text.split() if isinstance(text, str) and text.isascii() else []
    recent = tuple(int(word) for word in words[-RECENT:] if word.isdigit() and len(word) < 20)
    sound = (
        0 < len(recent) == len(words[-RECENT:])
        and all(is_memory(mib) for mib in (*recent, largest))
        and largest >= max(recent)
        and type(seen) is int
        and seen >= 1
        and _is_finite(average)
        and _is_finite(updated_at)
    )
    return Measured(recent, largest, float(average), seen, float(updated_at)) if sound else None


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
