"""What the tests of the store share."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelyard.store import FootprintKey, Store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "modelyard.db"


@pytest.fixture
def key() -> FootprintKey:
    return FootprintKey(
        model="qwen",
        profile="default",
        engine="vllm",
        engine_version="0.11.0",
        options_digest="9f2c",
        device_kind="nvidia rtx 4060",
        state="ready",
    )


@pytest.fixture
def opened() -> Iterator[Callable[[Path], Store]]:
    """Open a store that is closed after the test."""
    with contextlib.ExitStack() as stack:

        def open_(path: Path) -> Store:
            return stack.enter_context(contextlib.closing(Store.open(path)))

        yield open_


@pytest.fixture
def sql() -> Callable[[Path, str], list[tuple[object, ...]]]:
    """Run one statement on a database file, as another program would."""

    def run(path: Path, statement: str) -> list[tuple[object, ...]]:
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            return connection.execute(statement).fetchall()

    return run


@pytest.fixture
def descriptors_given_back() -> Iterator[None]:
    """Fails a test that leaves a descriptor open."""
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208  # no Path objects: they are counted
    yield
    assert set(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208
