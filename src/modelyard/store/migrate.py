"""From the tables a database has to the tables this program needs.

Laws of this file:
- Versions are four digits and follow one another; the newest script is what this program needs.
- A database of a newer version, or of another program, is refused before anything is changed.
- All steps are one transaction: a step that fails leaves the database as it was.
- An empty database gets the tables as they are now; a test holds them to what the steps make.
- Alembic costs a tenth of a second and ten MiB to import, so it is imported only when there is a
  step to take from an older version.
"""

from __future__ import annotations

import logging
import re
import threading
from pathlib import Path

from sqlalchemy import (
    Column,
    Connection,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    inspect,
    select,
    update,
)

from modelyard.store import tables
from modelyard.store.errors import StoreError

_log = logging.getLogger(__name__)

SCRIPTS = Path(__file__).parent / "migrations"
_VERSIONS = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
"""Alembic's own table, as it makes it."""

_alembic = threading.Lock()
"""Alembic hands its context to scripts through a global of its own (`alembic.context`)."""


def versions(scripts: Path = SCRIPTS) -> list[str]:
    """The versions there are scripts for, oldest first."""
    return sorted(file.name[1:5] for file in (scripts / "versions").glob("v????_*.py"))


def check(connection: Connection, name: str, scripts: Path = SCRIPTS) -> str | None:
    """The version of the database called `name`, None if it is empty.

    Raises StoreError if it is not for this program to change.
    """
    names = set(inspect(connection).get_table_names())
    written: list[object] = []
    if _VERSIONS.name in names:
        written = list(connection.execute(select(_VERSIONS.c.version_num)).scalars())
    if not names - {_VERSIONS.name} and not written:
        return None
    version, known = str(written[0]) if len(written) == 1 else "", versions(scripts)
    if version in known:
        return version
    if re.fullmatch("[0-9]{4}", version) and version > known[-1]:
        raise StoreError(
            f"{name} was written by a newer Modelyard: its version is {version}, and this one"
            f" knows those up to {known[-1]}",
            hint="start the newer Modelyard again, or choose another server.state_dir",
        )
    raise StoreError(
        f"{name} is a database of another program",
        hint="move it away, or choose another server.state_dir",
    )


def upgrade(connection: Connection, name: str, scripts: Path = SCRIPTS) -> None:
    """Take the steps that are missing, within the transaction of `connection`.

    Also proves that the database can be written: SQLite opens a file that cannot without a word.
    Raises StoreError as `check` does, and what the database raises.
    """
    version, needed = check(connection, name, scripts), versions(scripts)[-1]
    if version == needed:
        connection.execute(update(_VERSIONS).values(version_num=needed))
        return
    if version is None and scripts == SCRIPTS:
        tables.METADATA.create_all(connection)
        _VERSIONS.create(connection, checkfirst=True)
        connection.execute(_VERSIONS.insert().values(version_num=needed))
        return
    # Not at the top of the file: see its laws.
    from alembic import command
    from alembic.config import Config

    logging.getLogger("alembic").setLevel(logging.WARNING)  # our own log tells its news
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    with _alembic:
        command.upgrade(config, needed)
    _log.info("%s: brought from version %s to %s", name, version or "none", needed)
