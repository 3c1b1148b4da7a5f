"""From an empty file, and from every version there was, to the tables of now."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import OperationalError

from modelyard.store import FootprintKey, Measured, Store, StoreError, migrate, sqlite
from modelyard.store.tables import METADATA

Open = Callable[[Path], Store]
Sql = Callable[[Path, str], list[tuple[object, ...]]]

VERSION_1 = Path(__file__).with_name("version1.sql")

NEXT = '''
"""A later version, as one might look."""
import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

def upgrade():
    with op.batch_alter_table("footprints") as batch:
        batch.add_column(sa.Column("note", sa.String, nullable=False, server_default="none"))
        batch.drop_column("average_mib")
    op.create_table("ledger", sa.Column("id", sa.Integer, primary_key=True))
'''


@pytest.fixture
def version_1(path: Path) -> Path:
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(VERSION_1.read_text())
    return path


@pytest.fixture
def later_scripts(tmp_path: Path) -> Path:
    scripts = tmp_path / "a folder, 100% of it" / "migrations"
    shutil.copytree(migrate.SCRIPTS, scripts)
    (scripts / "versions" / "v0003_ledger.py").write_text(NEXT)
    return scripts


def upgrade(path: Path, scripts: Path) -> None:
    engine = sqlite.engine(path)
    try:
        with engine.begin() as connection:
            migrate.upgrade(connection, str(path), scripts)
    finally:
        engine.dispose()


def test_the_scripts_follow_one_another_and_the_last_is_what_the_program_needs() -> None:
    scripts = ScriptDirectory(str(migrate.SCRIPTS))
    chain = [script.revision for script in scripts.walk_revisions()]

    assert chain[::-1] == migrate.versions() == [f"{n:04}" for n in range(1, len(chain) + 1)]


def test_tables_made_at_once_are_those_that_the_steps_make(path: Path, tmp_path: Path) -> None:
    scripts = tmp_path / "steps"
    shutil.copytree(migrate.SCRIPTS, scripts)
    stepped = tmp_path / "stepped.db"
    upgrade(stepped, scripts)
    Store.open(path).close()

    assert _made(stepped) == _made(path)


def _made(database: Path) -> dict[str, str]:
    """The statement that made each table, without white space, which is a matter of taste."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("select name, sql from sqlite_master where type = 'table'")
        return {name: "".join(sql.split()).lower() for name, sql in rows}


@pytest.mark.parametrize("start", ["nothing", "an empty file", "version 1"])
def test_every_start_leads_to_the_tables_of_now(
    path: Path, start: str, request: pytest.FixtureRequest
) -> None:
    if start == "version 1":
        request.getfixturevalue("version_1")
    elif start == "an empty file":
        path.parent.mkdir()
        path.touch()
    Store.open(path).close()
    engine = sqlite.engine(path)
    with engine.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = compare_metadata(context, METADATA)
        version = migrate.check(connection, str(path))
    engine.dispose()

    assert differences == []
    assert version == migrate.versions()[-1]


def test_what_version_1_knew_is_still_known(
    version_1: Path, opened: Open, key: FootprintKey
) -> None:
    store = opened(version_1)
    loaded = store.footprints.load_all()
    later = store.footprints.record(key, {"0": 5200}, 3000.0)

    assert loaded[key].devices == {
        "0": Measured((5120, 5136), 5136, 5124.0, 2, 2000.5),
        "cpu": Measured((700, 690), 700, 697.5, 2, 2000.5),
    }
    assert later.devices["0"].recent_mib == (5120, 5136, 5200)


def test_opening_again_changes_nothing(path: Path, sql: Sql) -> None:
    Store.open(path).close()
    before = sql(path, "SELECT sql FROM sqlite_master")
    Store.open(path).close()

    assert sql(path, "SELECT sql FROM sqlite_master") == before


def test_a_later_version_keeps_what_was_known(
    version_1: Path, later_scripts: Path, sql: Sql
) -> None:
    upgrade(version_1, later_scripts)
    upgrade(version_1, later_scripts)
    rows = sql(version_1, "SELECT position, recent_mib, note FROM footprints ORDER BY position")

    assert sql(version_1, "SELECT version_num FROM alembic_version") == [("0003",)]
    assert rows == [("0", "5120 5136", "none"), ("cpu", "700 690", "none")]


def test_a_step_that_fails_leaves_the_database_as_it_was(
    version_1: Path, later_scripts: Path, sql: Sql, opened: Open, key: FootprintKey
) -> None:
    script = later_scripts / "versions" / "v0003_ledger.py"
    script.write_text(NEXT + '    op.execute("SELECT * FROM nowhere")\n')
    before = sql(version_1, "SELECT sql FROM sqlite_master")
    with pytest.raises(OperationalError, match="nowhere"):
        upgrade(version_1, later_scripts)

    assert sql(version_1, "SELECT sql FROM sqlite_master") == before
    assert key in opened(version_1).footprints.load_all()


def test_a_database_of_a_newer_version_is_refused_and_left_as_it_is(
    path: Path, later_scripts: Path, opened: Open
) -> None:
    Store.open(path).close()
    upgrade(path, later_scripts)
    path.chmod(0o640)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"newer Modelyard: its version is 0003.*up to 0002"):
        Store.open(path)

    assert path.read_bytes() == before
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("version", ["", "0000", "ae1027a6acf", "9999999", "²²²²", "0001\n"])
def test_a_version_of_another_program_is_refused(path: Path, sql: Sql, version: str) -> None:
    Store.open(path).close()
    sql(path, f"UPDATE alembic_version SET version_num = '{version}'")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program"):
        Store.open(path)

    assert path.read_bytes() == before


def test_stores_that_are_made_at_the_same_moment_do_not_mix(tmp_path: Path, sql: Sql) -> None:
    paths = [tmp_path / f"{number}.db" for number in range(4)]
    together = threading.Barrier(len(paths))

    def make(path: Path) -> None:
        together.wait()
        Store.open(path).close()

    threads = [threading.Thread(target=make, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [sql(path, "SELECT count(*) FROM footprints") for path in paths] == [[(0,)]] * 4


def test_one_file_that_several_servers_make_at_the_same_moment_is_made_once(
    path: Path, sql: Sql
) -> None:
    code = (
        "import sys; from modelyard.store import Store; sys.stdin.readline();"
        " Store.open(sys.argv[1]).close(); print('made')"
    )
    servers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for server in servers:
        assert server.stdin is not None
        server.stdin.write("now\n")
        server.stdin.flush()

    assert [server.communicate()[0] for server in servers] == ["made\n"] * 3
    assert sql(path, "SELECT version_num FROM alembic_version") == [("0002",)]
