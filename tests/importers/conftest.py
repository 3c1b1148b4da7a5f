"""What tests of imports share: the samples, and an import as the command makes it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from modelyard.app import engine_problems
from modelyard.importers import Imported, Surroundings, import_path

SAMPLES = Path(__file__).parent / "samples"
FILES = sorted(
    path.relative_to(SAMPLES).as_posix()
    for path in SAMPLES.rglob("*")
    if path.is_file() and "Model_startup_script" not in path.parts
)
"""Every sample. Scripts beside a configuration are a part of that configuration's sample."""

Import = Callable[..., Imported]
SCHEMA = Path(__file__).with_name("llm_manager_v3.sql").read_text(encoding="utf-8")


@pytest.fixture
def imported(tmp_path: Path) -> Import:
    """`imported(path)`, or `imported("text", "name")`, on a machine with two GPUs."""

    def run(source: Path | str | bytes, name: str = "config", kind: str | None = None) -> Imported:
        if not isinstance(source, Path):
            path = tmp_path / name
            content = source.encode() if isinstance(source, str) else source
            path.write_bytes(content)
            source = path
        return import_path(source, surroundings(tmp_path), engine_problems, kind)

    return run


def surroundings(home: Path, cards_mib: tuple[int, ...] = (24564, 24564)) -> Surroundings:
    return Surroundings(cards_mib=cards_mib, env={"HOME": str(home)}, home=home)


def make_database(path: Path) -> Path:
    """A database of LLM-Manager v3 with two models, prices, and usage."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(SCHEMA)
    return path


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return make_database(tmp_path / "llm_manager.db")
