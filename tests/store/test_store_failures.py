"""Stores that cannot be opened, read or written: what is said, and what is left alone."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from modelyard.store import FootprintKey, Store, StoreError

Open = Callable[[Path], Store]
Sql = Callable[[Path, str], list[tuple[object, ...]]]

pytestmark = pytest.mark.usefixtures("descriptors_given_back")


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("postgresql://user:secret@host/db", "kind 'postgresql' are not supported"),
        ("sqlite://", "nothing more"),
        ("sqlite:///:memory:?cache=shared", "nothing more"),
        ("://", "cannot be understood"),
        ("a\0b", "cannot be the path"),
        ("/proc/modelyard/modelyard.db", "No such file or directory"),
        ("/dev/null", "not a file"),
        ("/dev/null/modelyard.db", "/dev/null: File exists"),
        ("/", "not a file"),
    ],
)
def test_a_place_where_no_store_can_be_is_a_clear_error(where: str, reason: str) -> None:
    with pytest.raises(StoreError, match=reason) as raised:
        Store.open(where)

    assert "secret" not in str(raised.value)


def test_a_file_that_may_not_be_written_is_a_clear_error(
    unprivileged: Path, key: FootprintKey
) -> None:
    store = Store.open(unprivileged)
    store.footprints.record(key, {"0": 5}, 1.0)
    store.close()
    unprivileged.chmod(0o400)
    with pytest.raises(StoreError, match="readonly"):
        Store.open(unprivileged)


def test_a_folder_that_may_not_be_written_is_a_clear_error(unprivileged: Path) -> None:
    Store.open(unprivileged).close()
    unprivileged.parent.chmod(0o500)
    with pytest.raises(StoreError, match=r"unable to open|readonly"):
        Store.open(unprivileged)


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A place for a store of a user whom file modes bind: they do not bind root."""
    folder = Path(tempfile.mkdtemp())
    user = os.geteuid()
    if user == 0:
        os.chown(folder, 65534, -1)
        os.seteuid(65534)
    try:
        (folder / "state").mkdir()
        yield folder / "state" / "modelyard.db"
    finally:
        os.seteuid(user)
        shutil.rmtree(folder)


def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database\n" * 1000)
    with pytest.raises(StoreError, match=r"not a database.*put a copy back"):
        Store.open(path)

    assert path.read_bytes() == b"not a database\n" * 1000
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("page", range(5))
def test_a_database_with_a_damaged_page_is_refused(
    path: Path, key: FootprintKey, page: int, sql: Sql
) -> None:
    store = Store.open(path)
    for number in range(30):
        store.footprints.record(replace(key, model=f"{number}" * 100), {"0": 5}, 1.0)
    store.close()
    size = int(str(sql(path, "PRAGMA page_size")[0][0]))
    content = bytearray(path.read_bytes())
    content[page * size + (100 if page == 0 else 0) : page * size + size] = b"\xff" * (
        size - (100 if page == 0 else 0)
    )
    path.write_bytes(content)
    with pytest.raises(StoreError) as raised:
        Store.open(path)

    assert str(path) in str(raised.value)
    assert path.read_bytes() == bytes(content)


def test_a_database_of_another_program_is_refused_and_left_as_it_is(path: Path, sql: Sql) -> None:
    path.parent.mkdir()
    sql(path, "CREATE TABLE bookmarks (url)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program"):
        Store.open(path)

    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        "recent_mib = ''",
        "recent_mib = '5 -5'",
        "recent_mib = '5 ²'",
        "recent_mib = '6'",
        "recent_mib = '" + "9" * 5000 + "'",
        "recent_mib = x'3500'",
        "max_mib = 'much'",
        "max_mib = 99999999999",
        "seen = 1.5",
        "average_mib = 9e999",
        "updated_at = 'yesterday'",
        "model = x'ff00'",
        "position = x'30'",
    ],
)
def test_a_row_that_cannot_be_true_is_left_out_and_costs_no_other(
    path: Path,
    key: FootprintKey,
    opened: Open,
    sql: Sql,
    change: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = replace(key, model="other")
    store = Store.open(path)
    store.footprints.record(key, {"0": 5}, 1.0)
    kept = store.footprints.record(other, {"0": 5}, 1.0)
    store.close()
    sql(path, f"UPDATE footprints SET {change} WHERE model = 'qwen'")
    store = opened(path)
    loaded = store.footprints.load_all()
    again = store.footprints.record(key, {"0": 8}, 2.0)

    assert loaded == {other: kept}
    assert "damaged row" in caplog.text
    assert again.devices["0"].recent_mib == (8,)
    assert store.footprints.load_all() == {other: kept, key: again}


def test_a_database_that_somebody_else_keeps_locked_is_an_error_and_works_again_after(
    path: Path, key: FootprintKey
) -> None:
    store = Store.open(path, busy_s=0.05)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked") as raised:
        store.footprints.record(key, {"0": 5}, 1.0)
    with pytest.raises(StoreError, match="locked"):
        Store.open(path, busy_s=0.05)
    other.close()
    footprint = store.footprints.record(key, {"0": 6}, 2.0)
    store.close()

    assert raised.value.hint is None
    assert footprint.devices["0"].recent_mib == (6,)
