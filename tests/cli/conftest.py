"""One real server for all tests of the commands, and a way to run them as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from modelyard.cli import main
from modelyard.testing.fake_books import FOLDER_VARIABLE, Book
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
    "parrot": {
        **fake("parrot", "--tokens", "40"),
        "variants": {"parrot:short": {"max_output_tokens": 3}},
    },
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
                "virtual": {
                    "either": {"targets": ["parrot:short", "quick"], "choose": "ordered"},
                    "lost": {"targets": ["never-pulled"]},
                },
            }
        )
    )
    with served(config, folder / "log", clean_environment()) as (process, told):
        yield ServerProcess(told["url"], folder / "state", told, process.pid)


@contextmanager
def served(
    config: Path, log: Path, environment: dict[str, str]
) -> Iterator[tuple[subprocess.Popen[bytes], Any]]:
    """`modelyard serve` for as long as the block lasts, with what it announced."""
    with log.open("wb") as written:
        process = subprocess.Popen(
            [*SERVE, "--config", str(config)],
            stdout=subprocess.PIPE,
            stderr=written,
            env=environment,
            start_new_session=True,
        )
    with process:
        assert process.stdout is not None
        announced = b""
        while not announced.endswith(b"\n}\n"):
            line = process.stdout.readline()
            assert line, log.read_text()
            announced += line
        yield process, json.loads(announced)
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()
    assert process.returncode == 0


# ------------------------------------------------------------------------------------ made-up GPUs

FAKE_VLLM = [sys.executable, "-m", "modelyard.testing.fake_vllm", "serve", "{alias}"]


def sleeper(books: Path, *arguments: str, **keys: Any) -> Any:
    """A model of 3000 MiB on a made-up GPU of 8 GiB, whose engine can sleep as vLLM does."""
    command = [*FAKE_VLLM, "--served-model-name", "{alias}", "--port", "{port}"]
    command += ["--enable-sleep-mode", "--gpu-memory-utilization", "0.3295"]
    return {
        "engine": "command",
        "command": [*command, "--fake-weights", "1500MiB", *arguments],
        "env": {FOLDER_VARIABLE: str(books), "VLLM_SERVER_DEV_MODE": "1"},
        "tasks": ["chat"],
        "stop_grace": "2s",
        "sleep": "vllm",
        "profiles": [{"name": "card", "devices": ["gpu"], "memory": {"gpu": "3000MiB"}}],
        **keys,
    }


def sleepers(books: Path) -> dict[str, Any]:
    """The models of the server with made-up GPUs."""
    choosy = [
        {"name": "big", "devices": ["rtx 9999"], "memory": {"rtx 9999": "9GiB"}},
        {"name": "card", "devices": ["gpu"], "memory": {"gpu": "3000MiB"}},
    ]
    return {
        "napper": sleeper(books),
        "slow": sleeper(books, "--fake-sleep-time", "1200ms", "--fake-wake-time", "1200ms"),
        "liar": sleeper(books, "--fake-lie-about-sleep"),
        "grump": sleeper(books, "--fake-wake-fails"),
        "awake": sleeper(books, sleep={}),
        "choosy": sleeper(books, profiles=choosy),
    }


@dataclass(frozen=True)
class GpuServer:
    """A server whose GPU does not exist."""

    url: str
    books: Book
    run: Run


@pytest.fixture(scope="session")
def gpu_server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Book]]:
    """`modelyard serve` with a made-up GPU of 8 GiB."""
    folder = tmp_path_factory.mktemp("gpus")
    books = Book.create(folder / "books", ["8GiB"])
    config = folder / "modelyard.yaml"
    settings = {
        "server": {"port": 0, "state_dir": "state", "shutdown_timeout": "2s"},
        "devices": {"reserve": "192MiB", "sample_every": "100ms"},
        "models": sleepers(books.folder),
    }
    config.write_text(json.dumps(settings))
    environment = {**clean_environment(), FOLDER_VARIABLE: str(books.folder)}
    with served(config, folder / "log", environment) as (_, told):
        yield told["url"], books


@pytest.fixture
def gpus(
    gpu_server_url: tuple[str, Book], alone: Run, monkeypatch: pytest.MonkeyPatch
) -> Iterator[GpuServer]:
    """The server with a made-up GPU, on which nothing runs before and after a test."""
    url, books = gpu_server_url
    monkeypatch.setenv("MODELYARD_URL", url)
    yield GpuServer(url, books, alone)
    for model in alone("ps", "--json").json:
        alone("stop", model["id"])
