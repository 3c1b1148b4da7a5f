"""assign and config reload: by the server, and in the file where there is none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.cli.conftest import UNUSED_URL, clean_environment, fake, served

from modelyard.testing.server import DEMO_MODELS

if TYPE_CHECKING:
    from tests.cli.conftest import Ran, Run

COMMENTED = """\
# Ours.
server: {port: 0, state_dir: STATE, shutdown_timeout: 2s}
models_dirs: [DEMO]
devices: {budget: {cpu: 1000MiB}}   # enough for all
models:
  quick: QUICK
  # The preset stands for its program.
  big:
    engine: command
    preset: sglang
    source: /models/big   # on the big disk
    memory: {gpu: 1GiB}
"""


def written(folder: Path) -> Path:
    file = folder / "modelyard.yaml"
    text = COMMENTED.replace("QUICK", json.dumps(fake("quick", "--tokens", "8")))
    file.write_text(text.replace("STATE", str(folder / "state")).replace("DEMO", str(DEMO_MODELS)))
    return file


@dataclass(frozen=True)
class Owner:
    """A server with a file of its own."""

    file: Path
    run: Run

    @property
    def text(self) -> str:
        return self.file.read_text()


@pytest.fixture(scope="module")
def owned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("owner")
    file = written(folder)
    with served(file, folder / "log", clean_environment()) as (_, told):
        yield told["url"], file


@pytest.fixture
def owner(owned: tuple[str, Path], alone: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[Owner]:
    """The server, whose file and models are afterwards as they were before."""
    url, file = owned
    monkeypatch.setenv("MODELYARD_URL", url)
    before = file.read_bytes()
    yield Owner(file, alone)
    file.write_bytes(before)
    alone("config", "reload")


@pytest.fixture
def nobody(tmp_path: Path, alone: Run, monkeypatch: pytest.MonkeyPatch) -> Owner:
    """A file that no server uses."""
    monkeypatch.setenv("MODELYARD_URL", UNUSED_URL)
    file = written(tmp_path)

    def run(*arguments: str) -> Ran:
        return alone(*arguments, "--config", str(file))

    return Owner(file, run)


@pytest.fixture(params=["owner", "nobody"])
def either(request: pytest.FixtureRequest) -> Owner:
    """A file, with and without a server."""
    which: Owner = request.getfixturevalue(request.param)
    return which


def assigned(owner: Owner, model: str) -> Any:
    return owner.run("assign", model, "--show", "--json").json


# ------------------------------------------------------------------------------------- the file


def test_what_is_assigned_is_written_under_the_model_and_nothing_else_changes(
    either: Owner,
) -> None:
    before = either.text

    ran = either.run(
        *("assign", "big", "--devices", "0,rtx 4090", "--gpu-memory", "0.85", "-l", "16384"),
        *("-t", "2", "--dtype", "half", "-o", "schedule_policy=lpm", "-o", "log_level=1"),
    )

    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("big: written to ")
    assert either.text == before + (
        '    assigned:\n      devices: ["0", "rtx 4090"]\n      options:\n'
        "        mem_fraction_static: 0.85\n        context_length: 16384\n        tp_size: 2\n"
        '        dtype: "half"\n        schedule_policy: "lpm"\n        log_level: 1\n'
    )


def test_assignments_add_up_and_are_taken_back(either: Owner) -> None:
    before = either.text
    either.run(
        "assign", "big", "--devices", "0", "-o", "a=[1, x]", "-o", "b=yes it is", "-o", "c=1"
    )
    either.run("assign", "big", "--max-model-len", "8", "-o", "c=")

    assert assigned(either, "big") == {
        "model": "big",
        "devices": ["0"],
        "options": {"a": [1, "x"], "b": "yes it is", "context_length": 8},
        "path": str(either.file),
        "changed": False,
    }
    assert either.run("assign", "big", "--devices", "none", "--json").json["devices"] == []
    assert either.run("assign", "big", "--clear").code == 0
    assert either.text == before
    assert either.run("assign", "big", "--clear").out.startswith("big: nothing to change in ")


def test_a_model_that_was_found_gets_an_entry(either: Owner) -> None:
    either.run("assign", "yard-chat", "--max-model-len", "256")

    source = next(DEMO_MODELS.glob("*chat*.gguf"))
    assert either.text.endswith(
        f'  yard-chat:\n    engine: "llamacpp"\n    source: "{source}"\n'
        "    assigned:\n      options:\n        ctx_size: 256\n"
    )


def test_show_prints_what_is_assigned_for_people(either: Owner) -> None:
    either.run("assign", "big", "--devices", "0", "-o", "b=true", "-o", "c=2")

    shown = either.run("assign", "big", "--show").out.splitlines()

    assert shown[:4] == ["Model    big", "Devices  0", "Options  b: True", "         c: 2"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["big"], 2, "nothing to assign"),
        (["big", "--show", "--clear"], 2, "--show and --clear stand alone"),
        (["big", "--clear", "--dtype", "x"], 2, "--show and --clear stand alone"),
        (["big", "-o", "x"], 2, "--option x: write NAME=VALUE"),
        (["big", "-o", "x=1", "-o", "x=2"], 2, "--option x is given twice"),
        (["big", "-t", "2", "-o", "tp_size=2"], 2, "--option tp_size is given twice, once by its"),
        (["big", "--gpu-memory", "85"], 2, "a share of 85 of a GPU's memory makes no sense"),
        (["big", "-l", "0"], 2, "--max-model-len 0: it must be at least 1"),
        (["big", "-o", "port=1"], 2, "models.big.options.port: Modelyard fills this in"),
        (["big", "-d", " x\ty"], 2, "models.big.assigned.devices[0]: holds control characters"),
        (
            ["quick", "-l", "8"],
            2,
            "the engine command has no --max-model-len; it has none of these",
        ),
        (["quick", "-o", "a=1"], 2, "a command's options are its own arguments"),
        (
            ["yard-chat", "--gpu-memory", "0.5"],
            2,
            "the engine llamacpp has no --gpu-memory; it has",
        ),
        (["yard-chat", "-o", "ctxsize=8"], 2, "ctxsize"),
        (["nobody", "-l", "8"], 4, "there is no model named 'nobody'"),
    ],
)
def test_what_cannot_be_is_refused_and_the_file_stays(
    either: Owner, arguments: list[str], code: int, words: str
) -> None:
    before = either.text

    ran = either.run("assign", *arguments)

    assert (ran.code, ran.out) == (code, "")
    assert words in ran.err
    assert "Traceback" not in ran.err
    assert either.text == before


def test_a_file_with_a_mistake_of_somebody_else_is_not_written(either: Owner) -> None:
    either.file.write_text(either.text.replace("shutdown_timeout: 2s", "shutdown_timeout: soon"))
    before = either.text

    ran = either.run("assign", "big", "--devices", "0")

    assert ran.code == 2
    assert "server.shutdown_timeout: 'soon' is not a duration" in ran.err
    assert either.text == before


# ------------------------------------------------------------------------------------ the server


def test_the_server_follows_an_assignment_at_once_and_renews_the_engine(owner: Owner) -> None:
    run = owner.run("start", "yard-chat", "--json").json["run"]

    ran = owner.run("assign", "yard-chat", "--max-model-len", "128", "--restart")

    assert "; ready again in " in ran.out
    view = owner.run("show", "yard-chat", "--json").json
    assert (view["state"], view["run"] > run) == ("ready", True)
    assert owner.run("run", "yard-chat", "Hello", "--max-tokens", "2").code == 0
    owner.run("stop", "yard-chat")


def test_an_engine_that_is_not_concerned_goes_on(owner: Owner) -> None:
    run = owner.run("start", "quick", "--json").json["run"]
    owner.run("assign", "big", "--devices", "0")

    view = owner.run("show", "quick", "--json").json
    assert (view["state"], view["run"]) == ("ready", run)


def test_reload_tells_what_has_changed(owner: Owner) -> None:
    text = owner.text.replace("/models/big ", "/models/bigger ").replace(
        "cpu: 1000MiB", "cpu: 2GiB"
    )
    owner.file.write_text(f"{text}  new: {json.dumps(fake('new'))}\n")

    ran = owner.run("config", "reload", "--json")

    assert ran.json == {
        "path": str(owner.file),
        "added": ["new"],
        "changed": ["big"],
        "removed": [],
        "needs_restart": ["devices"],
    }
    assert owner.run("start", "new").code == 0
    owner.file.write_text(text)
    assert owner.run("config", "reload").out.splitlines()[1:] == [
        "  removed: new",
        "  only after a restart of the server: devices",
    ]
    assert owner.run("show", "new").code == 4


def test_a_wrong_file_changes_nothing_when_it_is_read_anew(owner: Owner) -> None:
    owner.file.write_text(owner.text.replace("preset: sglang", "preset: sglong"))

    ran = owner.run("config", "reload")

    assert ran.code == 2
    assert (
        "models.big.preset: 'sglong' is no program that Modelyard knows; did you mean sglang?"
        in (ran.err)
    )
    assert owner.run("show", "big", "--json").json["engine"] == "sglang"


def test_another_file_than_the_servers_is_written_directly(owner: Owner, tmp_path: Path) -> None:
    other = written(tmp_path)

    ran = owner.run("assign", "big", "--devices", "0", "--config", str(other))

    assert (ran.code, "assigned" in other.read_text(), "assigned" in owner.text) == (0, True, False)
    assert ran.err == f"the running server uses another file; {other} is written without it\n"


def test_nothing_can_be_restarted_without_a_server(nobody: Owner) -> None:
    ran = nobody.run("assign", "big", "--devices", "0", "--restart")

    assert (ran.code, "assigned" in nobody.text) == (2, False)
    assert "no server is running, so there is nothing to restart" in ran.err


def test_without_any_file_one_is_made_where_the_next_server_looks(
    alone: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELYARD_URL", UNUSED_URL)
    monkeypatch.setenv("MODELYARD_MODELS_DIRS", str(DEMO_MODELS))

    ran = alone("assign", "yard-chat", "--max-model-len", "64", "--json")

    made = tmp_path / "config" / "modelyard" / "modelyard.yaml"
    assert ran.code == 0
    assert "ctx_size: 64" in made.read_text()
    assert alone("assign", "yard-chat", "--show", "--json").json["options"] == {"ctx_size": 64}
