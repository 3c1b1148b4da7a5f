"""`modelyard import` as people run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.importers.conftest import SAMPLES

from modelyard.cli import main

CONFIG = str(SAMPLES / "llm-manager-v0.1" / "config.json")
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_it_writes_modelyard_yaml_and_says_what_is_next(tmp_path: Path, capfd: Captured) -> None:
    assert main(["import", CONFIG]) == 0

    out, _ = capfd.readouterr()
    assert "LLM-Manager: 2 models, " in out
    assert "next: modelyard config check modelyard.yaml" in out
    assert "modelyard serve --config modelyard.yaml" in out
    assert main(["config", "check", str(tmp_path / "modelyard.yaml")]) == 0


def test_the_table_names_every_setting_that_was_not_converted(capfd: Captured) -> None:
    main(["import", CONFIG])

    out, _ = capfd.readouterr()
    lines = [line for line in out.splitlines() if line.startswith("program.openai_host")]
    assert len(lines) == 1
    assert "has no equal here" in lines[0]
    assert "server.insecure" in lines[0]


def test_a_file_is_replaced_only_if_told_so(tmp_path: Path, capfd: Captured) -> None:
    target = tmp_path / "modelyard.yaml"
    target.write_text("mine")

    assert main(["import", CONFIG]) == 2
    assert target.read_text() == "mine"
    assert "--force" in capfd.readouterr().err
    assert main(["import", CONFIG, "--force"]) == 0
    assert target.read_text().startswith("# Made by `modelyard import`")
    assert [path.name for path in tmp_path.iterdir()] == ["modelyard.yaml"]


def test_the_source_itself_is_never_replaced(tmp_path: Path, capfd: Captured) -> None:
    source = tmp_path / "modelyard.yaml"
    source.write_text("Qwen/Q: {gpu_memory_utilization: 0.5}\n")

    assert main(["import", "modelyard.yaml", "--force"]) == 2
    assert "is the file to import" in capfd.readouterr().err
    assert source.read_text().startswith("Qwen/Q")


def test_with_a_dash_stdout_is_the_configuration_alone(tmp_path: Path, capfd: Captured) -> None:
    assert main(["import", CONFIG, "--output", "-"]) == 0

    out, err = capfd.readouterr()
    (tmp_path / "printed.yaml").write_text(out)
    assert "2 models" in err
    assert main(["config", "check", "printed.yaml"]) == 0


def test_as_json_every_setting_is_there(capfd: Captured) -> None:
    assert main(["import", CONFIG, "--json"]) == 0

    told = json.loads(capfd.readouterr().out)
    assert told["kind"] == "llm-manager"
    assert told["models"] == ["Qwen3-Coder-30B-A3B-Instruct-64K", "Qwen3-8B-AWQ"]
    fates = {each["setting"]: each["fate"] for each in told["settings"]}
    assert fates["program.openai_port"] == "converted"
    assert fates["program.openai_host"] == "no_equal"
    assert fates["program.webui_port"] == "not_needed"


def test_as_json_to_stdout_the_text_is_a_part(capfd: Captured) -> None:
    main(["import", CONFIG, "--output", "-", "--json"])

    told = json.loads(capfd.readouterr().out)
    assert told["output"] is None
    assert told["text"].startswith("# Made by")


def test_a_kind_can_be_named(tmp_path: Path, capfd: Captured) -> None:
    (tmp_path / "start").write_text("srv --port 80\n")

    assert main(["import", "start"]) == 2
    assert main(["import", "start", "--from", "script"]) == 0
    assert main(["import", "start", "--from", "nonsense", "--force"]) == 2
    assert "there is no kind 'nonsense'" in capfd.readouterr().err


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path, capfd: Captured) -> None:
    assert main(["import", CONFIG, "--output", "no/such/folder.yaml"]) == 1
    assert "cannot be written" in capfd.readouterr().err
