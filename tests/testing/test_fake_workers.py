"""The fake vLLM over several devices: a worker for each, which speaks for itself."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from modelyard.core.specs import Placement
from modelyard.engines import reports
from modelyard.testing.fake_books import FOLDER_VARIABLE, Book
from modelyard.testing.fake_page import DeviceLost

PATIENCE_S = 60.0
CONTEXT_MIB = 300
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book.create(tmp_path / "gpus", ["8GiB", "12GiB"])


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "engine.log"


@pytest.fixture
def start(book: Book, output: Path) -> Iterator[Start]:
    """Starts the engine over both devices."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(port: int, *flags: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "modelyard.testing.fake_vllm", "some/model", "-tp", "2"]
        command += ["--port", str(port), "--gpu-memory-utilization", "0.5", *flags]
        environment = {
            **os.environ,
            FOLDER_VARIABLE: str(book.folder),
            "VLLM_SERVER_DEV_MODE": "1",
        }
        with output.open("wb") as file:
            started.append(
                subprocess.Popen(
                    command, env=environment, stdout=file, stderr=file, start_new_session=True
                )
            )
        return started[-1]

    yield begin
    for each in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(each.pid, signal.SIGKILL)
        each.wait()


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def post(port: int, path: str) -> None:
    url = f"http://127.0.0.1:{port}{path}"
    with urllib.request.urlopen(urllib.request.Request(url, method="POST")) as answer:
        assert answer.status == 200


def workers(engine: subprocess.Popen[bytes]) -> list[psutil.Process]:
    family = psutil.Process(engine.pid).children(recursive=True)
    found: list[tuple[str, psutil.Process]] = []
    for each in family:
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
            found += [(title, each) for title in each.cmdline()[:1] if "Worker_TP" in title]
    return [each for _, each in sorted(found, key=lambda one: one[0])]


def test_each_worker_tells_what_it_takes_and_what_its_sleep_leaves_of_its_own_device(
    start: Start, book: Book, output: Path, unused_tcp_port: int
) -> None:
    engine = start(unused_tcp_port, "--enable-sleep-mode", "--fake-leak", "512MiB")
    until(lambda: "startup complete" in output.read_text())
    pids = [each.pid for each in workers(engine)]
    first, second = (account.id for account in book.accounts())
    placement = Placement("gpu", {first: 4000, second: 6000})
    awake = {account.id: account.used_mib for account in book.accounts()}
    told_awake = reports.vllm(output.read_text().splitlines(), placement)
    post(unused_tcp_port, "/sleep?level=2")
    said = output.read_text()
    left = r"\((Worker_TP\d) pid=(\d+)\) .* Sleep mode freed (\S+) GiB memory, (\S+) GiB memory is"

    assert re.findall(left, said) == [
        ("Worker_TP0", str(pids[0]), "3.45", "0.84"),
        ("Worker_TP1", str(pids[1]), "5.45", "0.84"),
    ]
    assert [account.used_mib for account in book.accounts()] == [862, 862]
    # What an engine reports leaves out the context of each process.
    assert {device: awake[device] - mib for device, mib in told_awake.items()} == {
        first: CONTEXT_MIB,
        second: CONTEXT_MIB,
    }


def test_a_worker_that_dies_while_it_starts_takes_the_engine_along(
    start: Start, book: Book, unused_tcp_port: int
) -> None:
    engine = start(unused_tcp_port)
    until(lambda: workers(engine))
    workers(engine)[0].kill()

    assert engine.wait(PATIENCE_S) == 1
    until(lambda: not any(account.by_process_mib for account in book.accounts()))


def test_nothing_is_held_in_the_name_of_a_dead_process(book: Book) -> None:
    (first, _) = book.accounts()
    dead = subprocess.Popen([sys.executable, "-S", "-c", ""])
    dead.wait()
    with pytest.raises(DeviceLost, match=f"process {dead.pid} has ended"):
        book.allocate(first.id, 100, pid=dead.pid)

    assert book.account(first.id).used_mib == 0
