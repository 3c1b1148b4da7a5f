"""What the scheduler learned from running models, in the database.

Laws of this file:
- A row is replaced as a whole; a row that makes no sense is left out with a warning.
- Averages are made by the scheduler: here is only the latest of each.
- This module imports SQLAlchemy; only `database` imports it, and only when a store is opened.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, fields
from typing import Any

from sqlalchemy import Connection, Table, and_, delete, insert, select

from modelyard.store.demands import RememberedDemand
from modelyard.store.footprints import FootprintKey
from modelyard.store.tables import DEMANDS, DURATIONS

_log = logging.getLogger(__name__)

_KEY = tuple(field.name for field in fields(FootprintKey))


class ExperienceTable:
    """Reads and writes durations and demands. Every method raises StoreError on failure."""

    def __init__(self, transaction: Callable[[], AbstractContextManager[Connection]]) -> None:
        self._transaction = transaction

    def durations(self) -> Mapping[FootprintKey, float]:
        """The seconds that each step of each key is expected to take; `state` names the step."""
        found = {}
        for row in self._rows(DURATIONS, ("seconds",)):
            found[FootprintKey(*(row[name] for name in _KEY))] = float(row["seconds"])
        return found

    def demands(self) -> list[RememberedDemand]:
        """What is known of each model."""
        names = [field.name for field in fields(RememberedDemand)]
        rows = self._rows(DEMANDS, ("rate", "service_s", "ended", "updated_at"))
        return [RememberedDemand(**{name: row[name] for name in names}) for row in rows]

    def record_duration(self, key: FootprintKey, seconds: float, now: float) -> None:
        """Keep what a step is expected to take, told at `now` (seconds since the epoch)."""
        same = and_(*(DURATIONS.c[name] == getattr(key, name) for name in _KEY))
        with self._transaction() as connection:
            connection.execute(delete(DURATIONS).where(same))
            row = {**asdict(key), "seconds": seconds, "updated_at": now}
            connection.execute(insert(DURATIONS), [row])

    def record_demand(self, demand: RememberedDemand) -> None:
        """Keep what is known of how a model is asked."""
        with self._transaction() as connection:
            connection.execute(delete(DEMANDS).where(DEMANDS.c.model == demand.model))
            connection.execute(insert(DEMANDS), [asdict(demand)])

    def _rows(self, table: Table, numbers: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
        with self._transaction() as connection:
            rows = connection.execute(select(table)).mappings().all()
        for row in rows:
            sound = all(_is_amount(row[name]) for name in numbers)
            if sound and all(isinstance(row[column.name], str) for column in table.primary_key):
                yield dict(row)
            else:
                _log.warning("the store holds a damaged row, which is left out: %r", dict(row))


def _is_amount(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value >= 0
