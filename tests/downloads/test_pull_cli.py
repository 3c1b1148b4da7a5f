"""`pull`, `rm` and `list --available` as a person uses them, with a server and without."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.downloads.conftest import CHAT, below
from tests.downloads.fake_hub import Hub

from modelyard.cli import main

MODELYARD = [sys.executable, "-m", "modelyard.cli"]


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def config(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration with the fake hub, which commands and servers read."""
    (tmp_path / "models").mkdir()
    settings = {
        "server": {"port": 0, "state_dir": "state", "shutdown_timeout": "2s"},
        "models_dirs": ["models"],
        "devices": {"budget": {"cpu": "2000MiB"}},
        "downloads": {"endpoint": hub.url},
    }
    path = tmp_path / "modelyard.yaml"
    path.write_text(json.dumps(settings))
    monkeypatch.setenv("MODELYARD_CONFIG", str(path))
    monkeypatch.setenv("MODELYARD_SERVER__STATE_DIR", str(tmp_path / "state"))
    return path


@pytest.fixture
def run(config: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    def command(*arguments: str) -> Ran:
        code = main(arguments)
        out, err = capfd.readouterr()
        return Ran(code, out, err)

    return command


@contextmanager
def serving(config: Path) -> Iterator[dict[str, Any]]:
    """`modelyard serve` for as long as the block lasts."""
    with (config.parent / "log").open("wb") as log:
        process = subprocess.Popen(
            [*MODELYARD, "serve", "--json"],
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    with process:
        assert process.stdout is not None
        told = b""
        while not told.endswith(b"\n}\n"):
            line = process.stdout.readline()
            assert line, (config.parent / "log").read_text()
            told += line
        try:
            yield json.loads(told)
        finally:
            process.terminate()
            process.wait(60)


def arrived(folder: Path) -> int:
    """Bytes of the largest unfinished download below a folder."""
    sizes = [0]
    for part in folder.rglob("*.part"):
        with suppress(FileNotFoundError):  # it is whole by now
            sizes.append(part.stat().st_size)
    return max(sizes)


def workers(hub: Hub) -> list[int]:
    """Download processes that were told of our hub."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if "modelyard.downloads.worker" in (process.info["cmdline"] or ()):
            with suppress(psutil.Error):
                if process.environ().get("HF_ENDPOINT") == hub.url:
                    found.append(process.pid)
    return found


def test_without_a_server_the_command_fetches_lists_and_removes_by_itself(
    run: Run, hub: Hub, tmp_path: Path
) -> None:
    pulled = run("pull", "yard/chat-GGUF")
    listed = run("list", "--available", "--json")
    declined = run("rm", "chat-Q4_K_M")
    removed = run("rm", "chat-Q4_K_M", "--yes", "--json")

    assert pulled.code == 0, pulled.err
    assert "yard/chat-GGUF: 1 file, 2.2 MiB" in pulled.out
    assert "calls it chat-Q4_K_M" in pulled.out
    assert "the usual quantisation, Q4_K_M" in pulled.err
    assert "[############] 100 %  checking  2.2 MiB of 2.2 MiB" in pulled.err
    assert json.loads(listed.out)["models"][0]["id"] == "chat-Q4_K_M"
    assert declined.code == 2
    assert "say --yes" in declined.err
    assert json.loads(removed.out)["freed_bytes"] == len(CHAT)
    assert below(tmp_path / "models") == set()


def test_with_a_server_the_model_is_pulled_into_it_and_answers(
    run: Run, hub: Hub, config: Path
) -> None:
    with serving(config):
        pulled = run("pull", "yard/chat-GGUF", "--json")
        answered = run("run", "chat-Q4_K_M", "Hello", "--max-tokens", "4", "--json")
        in_use = run("rm", "chat-Q4_K_M", "--yes")
        run("stop", "chat-Q4_K_M")
        removed = run("rm", "chat-Q4_K_M", "--yes")

    assert pulled.code == 0, pulled.err
    assert json.loads(pulled.out)["models"] == ["chat-Q4_K_M"]
    assert answered.code == 0, answered.err
    assert json.loads(answered.out)["usage"]["completion_tokens"] > 0
    assert (in_use.code, "its files are in use" in in_use.err) == (5, True)
    assert "2.2 MiB freed" in removed.out


@pytest.mark.parametrize("with_server", [False, True], ids=["alone", "with a server"])
def test_ctrl_c_leaves_a_partial_file_that_the_next_attempt_goes_on_from(
    run: Run, hub: Hub, config: Path, with_server: bool
) -> None:
    def interrupted() -> int:
        process = subprocess.Popen([*MODELYARD, "pull", "yard/chat-GGUF"], stderr=subprocess.PIPE)
        with process:
            until(lambda: arrived(config.parent / "models") > 600_000)
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            process.stderr.read()
            return process.wait(60)

    hub.pause_s = 0.1
    if with_server:
        with serving(config):
            code = interrupted()
            until(lambda: not workers(hub))
    else:
        code = interrupted()
    left = not workers(hub)
    listed = run("list", "--available")
    hub.pause_s, hub.sent = 0.0, 0
    again = run("pull", "yard/chat-GGUF")

    assert (code, left) == (130, True)
    assert "modelyard pull yard/chat-GGUF" in listed.out
    assert "unfinished" in listed.out
    assert again.code == 0, again.err
    assert hub.sent < len(CHAT) - 500_000


def test_a_killed_command_leaves_no_download_process(run: Run, hub: Hub) -> None:
    hub.pause_s = 0.1
    with subprocess.Popen([*MODELYARD, "pull", "yard/chat-GGUF"], stderr=subprocess.DEVNULL) as it:
        until(lambda: hub.sent > 300_000)
        assert workers(hub)
        it.kill()

    until(lambda: not workers(hub))


def test_a_folder_of_ones_own_is_filled_by_the_command_itself(
    run: Run, hub: Hub, tmp_path: Path
) -> None:
    pulled = run("pull", "yard/chat-GGUF:Q8_0", "--to", str(tmp_path / "other"), "--json")

    assert pulled.code == 0, pulled.err
    assert json.loads(pulled.out)["folder"] == str(tmp_path / "other/yard/chat-GGUF")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["llama3"], 2, "ollama pull llama3"),
        (["yrd/chat-GGUF"], 4, "did you mean yard/chat-GGUF?"),
        (["yard/chat-GGUF", "--revision", "v9"], 4, "has no revision 'v9'"),
        (["yard/chat-GGUF", "--file", "*.bin"], 4, "--file *.bin names no file"),
        (["yard/chat-GGUF:Q5_0"], 4, "Q4_K_M (2.2 MiB)"),
        (["yard/chat-GGUF", "--from", "github"], 2, "there are hf and modelscope"),
        (["yard/chat-GGUF", "--url", "http://127.0.0.1:1"], 3, "no Modelyard server"),
    ],
)
def test_what_cannot_be_pulled_has_a_code_and_a_sentence(
    run: Run, arguments: list[str], code: int, told: str
) -> None:
    ran = run("pull", *arguments)

    assert (ran.code, ran.out) == (code, "")
    assert told in ran.err
    assert "Traceback" not in ran.err


def test_a_gated_model_is_refused_with_its_page(run: Run, hub: Hub) -> None:
    hub.repositories["yard/chat-GGUF"].gated = True

    ran = run("pull", "yard/chat-GGUF")

    assert ran.code == 5
    assert f"accept its terms at {hub.url}/yard/chat-GGUF" in ran.err


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_secrets_are_not_shown(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_DOWNLOADS__TOKEN", "hf_top_secret")
    shown = run("config", "show", "--json")

    assert json.loads(shown.out)["downloads"]["token"] == "<hidden>"
    assert "hf_top_secret" not in shown.out + os.linesep
