"""Damaged files: the seed set, and every input that was once a finding."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.catalog.fuzzing import PARSERS, Findings, attempt, seeds

HERE = Path(__file__).parent
FINDINGS = sorted((HERE / "fuzz").iterdir())
ROOT = HERE.parent.parent


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: str(path.name))
def test_what_was_once_wrong_is_right(tmp_path: Path, path: Path) -> None:
    found = Findings()

    attempt(path.name.partition("-")[0], path.read_bytes(), tmp_path, found)

    assert found.wrong == []


def test_every_whole_seed_is_answered_or_refused(tmp_path: Path) -> None:
    table = json.loads((HERE / "real_models.json").read_text(encoding="utf-8"))
    found = Findings()

    for parser, contents in seeds(table).items():
        for content in contents:
            attempt(parser, content, tmp_path, found)

    assert found.wrong == []
    assert set(seeds(table)) == set(PARSERS)
    assert found.inputs - found.refused > 100


def test_two_thousand_damaged_inputs_do_no_harm() -> None:
    # In a process of its own, because its memory is bounded.
    argv = [sys.executable, "-m", "bench.fuzz_catalog", "--inputs", "2000", "--seed", "3"]

    ended = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.startswith("2000 inputs: ")
    assert ", 0 wrong;" in ended.stdout
