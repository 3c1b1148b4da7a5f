"""`modelyard serve`: what it prints, what its flags do, how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.cli.serve import curl
from modelyard.client import Client
from modelyard.core.specs import ModelSpec, Task
from modelyard.testing.server import DEMO_MODELS

if TYPE_CHECKING:
    from tests.cli.conftest import Run, ServerProcess

SERVE = [sys.executable, "-m", "modelyard.cli", "serve", "--port", "0"]


@contextmanager
def serving(tmp_path: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A server and the lines it printed up to the one with its curl line, or its advice."""
    state_dir = str(tmp_path / "state")
    with subprocess.Popen(
        [*SERVE, *flags],
        env={**os.environ, "MODELYARD_SERVER__STATE_DIR": state_dir},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line.rstrip())
            if line.startswith(("  curl", "configuration file;")):
                break
        try:
            yield process, lines
        finally:
            process.terminate()
            process.communicate(timeout=60)


def test_serve_says_where_it_is_what_it_serves_and_how_to_ask(tmp_path: Path) -> None:
    flags = ("--models-dir", str(DEMO_MODELS), "--memory-budget", "300MiB")
    with serving(tmp_path, *flags) as (process, lines):
        url = lines[0].split()[3]
        asked = subprocess.run(
            lines[-1].strip(), shell=True, capture_output=True, text=True, check=True
        )
        with Client(url) as client:
            capacity = client.devices()[0].capacity_mib
        found = json.loads((tmp_path / "state" / "server.json").read_text())
        process.send_signal(signal.SIGINT)
        code = process.wait(60)

    assert lines[1] == "3 models: yard-chat, yard-embed, yard-rerank"
    assert json.loads(asked.stdout)["choices"][0]["message"]["content"]
    assert capacity == 300
    assert found["url"] == url
    assert code == 0


def test_the_server_of_this_user_is_found_by_its_state_file(alone: Run, tmp_path: Path) -> None:
    # The fixtures have pointed XDG_STATE_HOME at a folder of this test.
    with subprocess.Popen([*SERVE, "--json"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        announced = "".join(iter(process.stdout.readline, "}\n")) + "}"
        ran = alone("info", "--json")
        process.terminate()

    assert ran.json["server"]["url"] == json.loads(announced)["url"]
    assert list(tmp_path.rglob("server.json")) == []


def test_without_models_it_says_what_to_do(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with serving(tmp_path, "--models-dir", str(empty)) as (_, lines):
        pass

    assert lines[1] == f"No models yet (looked in: {empty})."
    assert "--models-dir" in lines[2]


def test_a_taken_port_is_told_with_a_way_out(alone: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ran = alone("serve", "--port", str(taken.getsockname()[1]))

    assert ran.code == 1
    assert "cannot listen on 127.0.0.1" in ran.err
    assert "--port" in ran.err


def test_wrong_flags_are_problems_of_the_configuration(alone: Run) -> None:
    ran = alone("serve", "--host", "0.0.0.0", "--memory-budget", "lots")

    assert (ran.code, ran.out) == (2, "")
    assert "devices.budget" in ran.err


def test_an_open_host_is_refused_unless_it_is_insisted_on(alone: Run) -> None:
    ran = alone("serve", "--host", "0.0.0.0")

    assert ran.code == 2
    assert "insecure" in ran.err


def test_serve_as_json_announces_itself_in_one_document(server: ServerProcess) -> None:
    assert server.announced["url"] == server.url
    assert "yard-chat" in server.announced["models"]


def test_the_curl_line_fits_the_models_task_and_survives_a_quote() -> None:
    embedding = ModelSpec("it's", "llamacpp", frozenset({Task.EMBEDDING}))
    rerank = ModelSpec("r", "llamacpp", frozenset({Task.RERANK}))
    base = ModelSpec("b", "llamacpp", frozenset({Task.COMPLETION}))

    echoed = subprocess.run(
        curl("http://x", embedding).replace("curl", "printf '%s\\n'", 1),
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert echoed[0] == "http://x/v1/embeddings"
    assert json.loads(echoed[-1]) == {"model": "it's", "input": "Hello!"}
    assert "/v1/rerank" in curl("http://x", rerank)
    assert "/v1/completions" in curl("http://x", base)
