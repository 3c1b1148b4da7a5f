"""SQLite: the file, and how SQLAlchemy talks to it.

Laws of this file:
- The file is for its owner alone (0600), from the moment it exists; SQLite gives its companions
  (`-wal`, `-shm`) the mode of the file (https://www.sqlite.org/wal.html, and checked by a test).
- A file that exists is never opened here except by SQLite: closing any descriptor of it would
  drop the locks of other connections in this process
  (https://www.sqlite.org/howtocorrupt.html, 2.2).
- One connection for a store's life, and every transaction takes the write lock at its beginning
  (`BEGIN IMMEDIATE`): one that found out later that it has to wait could not go on.
- Tables are made in transactions too. Python's sqlite3 would leave those out, so transactions are
  begun here (SQLAlchemy's documentation of its SQLite dialect, "Transactions").
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.pool import StaticPool

MODE = 0o600
COMPANIONS = ("", "-wal", "-shm")


def prepare(path: Path) -> None:
    """Make the file and its folder if they are not there. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, MODE))
    except FileExistsError:
        if not path.is_file():
            raise OSError("it is not a file") from None


def make_private(path: Path) -> None:
    """Take away what others may do with a file of ours. Raises OSError."""
    for companion in COMPANIONS:
        file = Path(f"{path}{companion}")
        if file.exists() and file.stat().st_uid == os.geteuid() and file.stat().st_mode & 0o077:
            file.chmod(MODE)


def engine(path: Path | None, busy_s: float = 0.0) -> Engine:
    """The way to the database at `path`, or to one in memory. Connects when first used.

    `busy_s` is how long to wait for another process that is writing.
    """

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(
            path or ":memory:", timeout=busy_s, isolation_level=None, check_same_thread=False
        )

    engine = create_engine("sqlite://", creator=connect, poolclass=StaticPool)
    event.listen(engine, "begin", _begin)
    return engine


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def write_ahead(engine: Engine) -> str:
    """Switch to write-ahead logging; returns the journal mode there is then.

    With `synchronous=NORMAL` a power cut may cost the last transactions, never the database.
    Some file systems cannot do it (`delete` is returned), and a database in memory need not.
    """
    connection = engine.raw_connection()
    try:
        cursor = connection.cursor()
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute("PRAGMA journal_mode=WAL")
        return str(cursor.fetchall()[0][0])
    finally:
        connection.close()


def damage(connection: Connection, table: str) -> str | None:
    """What SQLite finds wrong with a table and its indexes, in its words; None if nothing.

    Takes time in proportion to the table, so it is for the small ones.
    """
    found = connection.exec_driver_sql(f"PRAGMA quick_check('{table}')").scalars().first()
    return None if found == "ok" else str(found)
