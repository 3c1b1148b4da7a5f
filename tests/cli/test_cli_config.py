"""config check, schema and show; what `serve` says of a wrong configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Run

WRONG = """
server: {port: lots}
modelsdirs: [x]
models:
  a: {engine: none, source: a.gguf}
"""


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    file = tmp_path / "wrong.yaml"
    file.write_text(WRONG)
    return file


def test_a_good_file_is_fine(alone: Run, tmp_path: Path) -> None:
    file = tmp_path / "modelyard.yaml"
    file.write_text("models_dirs: [models]\n")

    ran = alone("config", "check", str(file))
    assert ran.code == 0
    assert ran.out == f"{file} is fine: 0 models declared, 1 folder to look for more in\n"
    assert alone("config", "check", str(file), "--json").json["ok"] is True


@pytest.mark.parametrize("command", [["config", "check"], ["serve", "--config"]])
def test_all_problems_are_told_at_once(alone: Run, wrong: Path, command: list[str]) -> None:
    ran = alone(*command, str(wrong))

    assert (ran.code, ran.out) == (2, "")
    assert "3 problems" in ran.err
    assert "server.port" in ran.err
    assert "modelsdirs" in ran.err
    assert "models.a.engine" in ran.err


def test_a_check_as_json_lists_the_problems(alone: Run, wrong: Path) -> None:
    ran = alone("config", "check", str(wrong), "--json")

    assert ran.code == 2
    assert ran.json["ok"] is False
    assert len(ran.json["problems"]) == 3


def test_a_file_that_is_not_there_is_a_problem(alone: Run, tmp_path: Path) -> None:
    ran = alone("serve", "--config", str(tmp_path / "none.yaml"))

    assert ran.code == 2
    assert "none.yaml" in ran.err


def test_what_the_engine_refuses_is_a_problem_of_the_file(alone: Run, tmp_path: Path) -> None:
    file = tmp_path / "modelyard.yaml"
    file.write_text("models:\n  a: {source: a.gguf, tasks: [chat], options: {no_such_option: 1}}\n")

    ran = alone("config", "check", str(file))
    assert ran.code == 2
    assert "no_such_option" in ran.err


def test_the_schema_is_printed_as_json(alone: Run) -> None:
    assert "models_dirs" in alone("config", "schema").json["properties"]


def test_show_prints_what_can_be_read_again(
    alone: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELYARD_SERVER__PORT", "9009")
    first = alone("config", "show").out
    monkeypatch.delenv("MODELYARD_SERVER__PORT")
    file = tmp_path / "shown.yaml"
    file.write_text(first)

    again = alone("config", "show", "--config", str(file))
    assert again.out == first
    assert alone("config", "show", "--config", str(file), "--json").json["server"]["port"] == 9009


def test_the_file_can_be_named_by_a_variable(
    alone: Run, wrong: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELYARD_CONFIG", str(wrong))

    assert alone("config", "show").code == 2
