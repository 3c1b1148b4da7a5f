"""The store: one database, opened once, brought up to date, and closed in order.

Laws of this file:
- One writer. Every call blocks, and is made in one thread that does nothing else; a lock makes
  calls from others wait instead of mixing their transactions.
- What a database or a disk raises leaves as `StoreError`, and nothing of that call has happened.
- A database that is damaged, newer, or of another program is refused and left as it is.
- SQLAlchemy is imported when a store is opened, not before.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.store.errors import StoreError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from modelyard.store.experience import ExperienceTable
    from modelyard.store.footprint_table import FootprintTable

_log = logging.getLogger(__name__)

MEMORY = "in memory"
BUSY_S = 5.0
"""How long to wait for another process that is writing to the same database."""

CHECKED_TABLES = ("footprints", "durations", "demands")
"""Read as a whole at every start, and small: looked through when the store is opened."""


class Store:
    """The durable memory of a server. Made by `open` or `in_memory`, closed by `close`."""

    footprints: FootprintTable
    """What models really took."""
    experience: ExperienceTable
    """What changes of their replicas take, and how much they are asked."""

    def __init__(self, engine: Engine, name: str) -> None:
        from modelyard.store.experience import ExperienceTable
        from modelyard.store.footprint_table import FootprintTable

        self._engine = engine
        self._name = name
        self._lock = threading.Lock()
        self._closed = False
        self.footprints = FootprintTable(self._transaction)
        self.experience = ExperienceTable(self._transaction)

    def __repr__(self) -> str:
        return f"<Store {self._name}{', closed' if self._closed else ''}>"

    @classmethod
    def open(cls, where: str | Path, *, busy_s: float = BUSY_S) -> Store:
        """Open the database at `where`, a path or a URL (`sqlite:////absolute/path`), or make it.

        Folders and the file are made for their owner alone, and the tables brought up to date. A
        call waits `busy_s` for another process that is writing before it fails.
        Raises StoreError if the database cannot be opened or written, is damaged, was written by
        a newer version, or is of a kind that is not supported (today all but SQLite).
        """
        from modelyard.store import sqlite

        path = _path(where)
        with _told(f"cannot open the store {path}"):
            sqlite.prepare(path)
            store = cls(sqlite.engine(path, busy_s), str(path))
            try:
                store._bring_up_to_date()
                sqlite.make_private(path)
            except BaseException:
                store.close()
                raise
        return store

    @classmethod
    def in_memory(cls) -> Store:
        """A store that forgets everything when it is closed."""
        from modelyard.store import sqlite

        store = cls(sqlite.engine(None), MEMORY)
        store._bring_up_to_date()
        return store

    def close(self) -> None:
        """Give back the file. May be called again; every other call raises StoreError then."""
        with self._lock:
            self._closed = True
            self._engine.dispose()

    def _bring_up_to_date(self) -> None:
        from modelyard.store import migrate, sqlite

        with self._engine.begin() as connection:
            migrate.check(connection, self._name)
        mode = sqlite.write_ahead(self._engine)
        if mode not in ("wal", "memory"):
            _log.warning("%s: no write-ahead log is possible there, using %r", self._name, mode)
        with self._engine.begin() as connection:
            migrate.upgrade(connection, self._name)
            for table in CHECKED_TABLES:
                if found := sqlite.damage(connection, table):
                    raise StoreError(f"{self._name} is damaged: {found}", hint=_HINT)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """One transaction: committed at the end of the block, undone if the block raises."""
        with self._lock, _told(f"the store {self._name} failed"):
            if self._closed:
                raise StoreError(f"the store {self._name} is closed")
            with self._engine.begin() as connection:
                yield connection


_HINT = "put a copy back, or move the file away to begin with an empty store"
_DAMAGE = ("SQLITE_CORRUPT", "SQLITE_NOTADB")


@contextlib.contextmanager
def _told(failure: str) -> Iterator[None]:
    """Turn what a database, a disk or a name that cannot be written raises into StoreError."""
    import sqlite3

    from sqlalchemy.exc import DBAPIError, SQLAlchemyError

    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        damaged = getattr(cause, "sqlite_errorname", "").startswith(_DAMAGE)
        raise StoreError(f"{failure}: {cause}", hint=_HINT if damaged else None) from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise StoreError(f"{failure}: {where}{error.strerror or error}") from error
    except (SQLAlchemyError, UnicodeError) as error:
        raise StoreError(f"{failure}: {error}") from error


def _path(where: str | Path) -> Path:
    """The file that a path or a URL means. Raises StoreError for a URL that means none."""
    if "\0" in str(where):
        raise StoreError(f"{str(where)!r} cannot be the path of a store")
    if isinstance(where, Path) or "://" not in where:
        return Path(where).absolute()
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    scheme = where.partition("://")[0]
    try:
        url = make_url(where)
    except (ArgumentError, ValueError):
        # The URL itself may hold a password.
        raise StoreError(f"the store's URL ({scheme}://…) cannot be understood") from None
    if url.drivername != "sqlite":
        raise StoreError(f"stores of kind {scheme!r} are not supported", hint="use a path")
    if not url.database or url.query or url.host:
        raise StoreError("a store's URL is sqlite:////absolute/path and nothing more")
    return Path(url.database).absolute()
