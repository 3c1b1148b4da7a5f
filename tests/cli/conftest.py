"""One real server for all tests of the commands, and a way to run them as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from modelyard.cli import main
from modelyard.testing.server import DEMO_MODELS

FAKE = [sys.executable, "-m", "modelyard.testing.fake_engine", "--port", "{port}"]
SERVE = [sys.executable, "-m", "modelyard.cli", "serve", "--json"]
UNUSED_URL = "http://127.0.0.1:1"


def clean_environment() -> dict[str, str]:
    """The environment without anything that configures Modelyard."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MODELYARD_")}


def fake(name: str, *arguments: str, tasks: tuple[str, ...] = ("chat",), mib: int = 10) -> Any:
    """A model of the configuration whose engine is the fake one."""
    return {
        "engine": "command",
        "command": [*FAKE, "--model", name, *arguments],
        "tasks": list(tasks),
        "stop_grace": "2s",
        "profiles": [{"name": "default", "memory": {"cpu": f"{mib}MiB"}}],
    }


MODELS = {
    "quick": {**fake("quick", "--tokens", "8"), "aliases": ["fast"]},
    "parrot": fake("parrot", "--tokens", "40"),
    "slow": fake("slow", "--load", "1s"),
    "steady": fake("steady", "--tps", "20", "--tokens", "2000"),
    "broken": fake("broken", "--crash-while-loading"),
    "stuck": fake("stuck", "--hang"),
    "huge": fake("huge", mib=4000),
    "base": fake("base", tasks=("completion",)),
    "vectors": fake("vectors", tasks=("embedding",)),
    "ranks": fake("ranks", tasks=("rerank",)),
}


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ran]


@dataclass(frozen=True)
class ServerProcess:
    """The tests' server."""

    url: str
    state_dir: Path
    announced: dict[str, Any]
    pid: int


@pytest.fixture(autouse=True)
def _nothing_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No configuration and no server of whoever runs the tests is seen."""
    for name in list(os.environ):
        if name.startswith("MODELYARD_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def alone(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command that finds no server."""

    def run(*arguments: str) -> Ran:
        code = main(arguments)
        out, err = capfd.readouterr()
        return Ran(code, out, err)

    return run


@pytest.fixture
def cli(alone: Run, server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command against the tests' server."""
    monkeypatch.setenv("MODELYARD_URL", server.url)
    return alone


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """`modelyard serve` with the demo's models, fake ones, and a broken file."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "models").mkdir()
    (folder / "models" / "truncated.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    config = folder / "modelyard.yaml"
    config.write_text(
        json.dumps(
            {
                "server": {"port": 0, "state_dir": "state", "shutdown_timeout": "2s"},
                "models_dirs": [str(DEMO_MODELS), "models"],
                "devices": {"budget": {"cpu": "1000MiB"}},
                "scheduling": {"max_start_attempts": 1},
                "models": MODELS,
            }
        )
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*SERVE, "--config", str(config)],
            stdout=subprocess.PIPE,
            stderr=log,
            env=clean_environment(),
            start_new_session=True,
        )
    with process:
        assert process.stdout is not None
        announced = b""
        while not announced.endswith(b"\n}\n"):
            line = process.stdout.readline()
            assert line, (folder / "log").read_text()
            announced += line
        told = json.loads(announced)
        yield ServerProcess(told["url"], folder / "state", told, process.pid)
        process.terminate()
        try:
            process.wait(20)
        finally:
            process.kill()
    assert process.returncode == 0
