"""`modelyard demo` keeps its promise: answers of three models in memory for two, and no trace."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from modelyard.cli.demo_server import budget_mib, demo_models
from modelyard.cli.exits import BadUsage
from modelyard.cli.scene import parse_gpus
from modelyard.cli.tour import DOCUMENTS
from modelyard.core.specs import ModelSpec, Task
from modelyard.runtime.readiness import free_port
from modelyard.testing.fake_books import Book

DEMO = [sys.executable, "-m", "modelyard.cli", "demo"]
PATIENCE_S = 60.0


@pytest.fixture
def demo_environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which whatever the demo writes lies below `tmp_path`."""
    inside = {name: str(tmp_path) for name in ("HOME", "TMPDIR", "XDG_STATE_HOME")}
    # A user's own settings must not matter, not even wrong ones.
    wrong = {"MODELYARD_SERVER__PORT": "none", "MODELYARD_URL": "http://127.0.0.1:1"}
    return {**os.environ, **inside, **wrong}


def processes_in(folder: Path) -> list[str]:
    """Processes that were started with the environment of this test."""
    mark = f"TMPDIR={folder}".encode()
    found = []
    for process in psutil.process_iter():
        try:
            environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            if mark in environment:
                found.append(" ".join(process.cmdline()))
        except (OSError, psutil.Error):  # it has ended, or is not ours
            continue
    return found


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_demo_once_as_json_keeps_the_promise(
    demo_environment: dict[str, str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [*DEMO, "--once", "--json", "--keep", "--port", str(free_port())],
        env=demo_environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert "endpoint" in report["chat"]
    assert report["embedding_dim"] == 192
    assert report["similarity"]["related"] > report["similarity"]["unrelated"]
    assert report["rerank_top"] == DOCUMENTS[1]
    assert "模型" in report["chat_zh"]
    assert report["seconds"] > 0
    steps = {step["name"]: step for step in report["steps"]}
    # Which of the two others leaves depends on how long each took to load: what is missed least.
    (left,) = steps["rerank"]["stopped"]
    came_back = left == "yard-chat"
    assert report["swaps"] == (2 if came_back else 1)
    assert [name for name, step in steps.items() if step["load_s"]] == [
        "chat",
        "embedding",
        "rerank",
        *(["chat_zh"] if came_back else []),
    ]
    assert f"stopped {left}" in done.stderr
    assert processes_in(tmp_path) == []
    (kept,) = tmp_path.glob("modelyard-demo-*")
    assert str(kept) in done.stderr
    assert (kept / "state" / "logs" / "yard-chat.log").is_file()


@pytest.mark.parametrize(("gpus", "models"), [("1x8GiB", 3), ("2 x 24GiB", 5)])
def test_one_model_too_many_for_made_up_gpus_makes_another_sleep_and_that_one_wakes_again(
    demo_environment: dict[str, str], tmp_path: Path, gpus: str, models: int
) -> None:
    done = subprocess.run(
        [*DEMO, "--once", "--json", "--keep", "--fake-gpus", gpus, "--port", str(free_port())],
        env=demo_environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report["models"]) == models
    assert [text.partition(":")[0] for text in report["answers"]] == [*report["models"], "fake-a"]
    assert report["answers"][-1] == report["answers"][0]
    assert (report["sleeps"], report["wakes"], report["swaps"]) == (2, 1, 0)
    third, again = report["steps"][-2:]
    assert third["slept"] == ["fake-a"]
    # The demo measures between the news that it hears, which may come both at once.
    assert (again["load_s"], again["wake_s"] is not None) == (None, True)
    assert "fake-a asleep 350 MiB" in done.stderr
    assert processes_in(tmp_path) == []
    (kept,) = tmp_path.glob("modelyard-demo-*")
    books = Book(kept / "gpus")
    assert books.violations() == []
    assert [account.used_mib for account in books.accounts()] == [0] * len(report["gpus"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1x8GiB", (1, 8192)),
        ("2x24GiB", (2, 24576)),
        (" 4 × 80 GB ", (4, 76294)),
        ("8GiB", (1, 8192)),
    ],
)
def test_made_up_gpus_are_written_as_count_and_size(text: str, expected: tuple[int, int]) -> None:
    assert parse_gpus(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0x8GiB", "there can be 1 to 4 GPUs of 4.0 GiB to 1024.0 GiB"),
        ("5x8GiB", "there can be 1 to 4 GPUs"),
        ("1x3GiB", "there can be 1 to 4 GPUs"),
        ("1x2TiB", "there can be 1 to 4 GPUs"),
        ("", "there can be 1 to 4 GPUs"),
        ("1x8", "'8' has no unit"),
        ("many", "'many' is not a size"),
        ("-1x8GiB", "'-1x8GiB' is not a size"),
    ],
)
def test_gpus_that_cannot_be_made_up_are_refused_with_advice(text: str, reason: str) -> None:
    with pytest.raises(BadUsage, match=re.escape(reason)) as refused:
        parse_gpus(text)
    assert "1x8GiB" in str(refused.value)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_of_made_up_gpus_and_their_engines(
    demo_environment: dict[str, str], tmp_path: Path, ending: signal.Signals
) -> None:
    with subprocess.Popen(
        [*DEMO, "--fake-gpus", "1x8GiB", "--port", str(free_port())],
        env=demo_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        for told in demo.stdout:
            if "put fake-a to sleep" in told:
                break
        demo.send_signal(ending)
        try:
            demo.wait(PATIENCE_S)
        finally:
            demo.kill()
        complaints = demo.stderr.read()

    assert complaints == ""
    assert eventually(lambda: processes_in(tmp_path) == [])


@pytest.mark.parametrize(
    ("line", "ending", "expected"),
    [
        ("The server stays at", signal.SIGINT, 0),
        ("Chat with yard-chat", signal.SIGINT, 130),
        ("Chat with yard-chat", signal.SIGTERM, 128 + signal.SIGTERM),
        ("Embeddings by yard-embed", signal.SIGHUP, 128 + signal.SIGHUP),
        ("Embeddings by yard-embed", signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_nothing_is_left_however_and_whenever_the_demo_ends(
    demo_environment: dict[str, str],
    tmp_path: Path,
    line: str,
    ending: signal.Signals,
    expected: int,
) -> None:
    with subprocess.Popen(
        # Not the default port: another demo on this machine may be about to take that.
        [*DEMO, "--port", str(free_port())],
        env=demo_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        for told in demo.stdout:
            if told.startswith(line):
                break
        demo.send_signal(ending)
        try:
            demo.wait(PATIENCE_S)
        finally:
            demo.kill()
        complaints = demo.stderr.read()

    assert (demo.returncode, complaints) == (expected, "")
    assert eventually(lambda: processes_in(tmp_path) == [])
    if ending is not signal.SIGKILL:
        assert list(tmp_path.glob("modelyard-demo-*")) == []


def test_a_taken_port_is_told_with_the_servers_own_words(demo_environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = subprocess.run(
            [*DEMO, "--once", "--port", str(taken.getsockname()[1])],
            env=demo_environment,
            capture_output=True,
            text=True,
            check=False,
        )

    assert done.returncode == 1
    assert "cannot listen on 127.0.0.1" in done.stderr


def test_the_budget_holds_any_two_of_the_models_and_never_three() -> None:
    sizes = sorted(spec.estimate_mib or 0 for spec in demo_models())
    tiny = [ModelSpec(n, "llamacpp", frozenset({Task.CHAT}), estimate_mib=1) for n in "abc"]

    assert sizes[1] + sizes[2] <= budget_mib(demo_models()) < sum(sizes)
    assert 2 <= budget_mib(tiny) < 3
