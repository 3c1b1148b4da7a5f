"""The server dies, in every way a server can, and no engine is left. Only real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from modelyard.core.specs import Command
from modelyard.launchers import guard
from modelyard.launchers.local import LocalLauncher

if TYPE_CHECKING:
    from tests.launchers.conftest import Lines, Server

Serve = Callable[..., "Server"]
Gone = Callable[..., bool]

PLAIN = "import os, time; print('plain', os.getpid(), flush=True); time.sleep(600)"

STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('stubborn', os.getpid(), flush=True)
time.sleep(600)
"""

# Forks twice, leaves session and group, ignores SIGTERM, and its parents end.
DAEMON = """
import os, signal, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print('daemon', os.getpid(), flush=True)
        time.sleep(600)
    os._exit(0)
time.sleep(600)
"""


def test_killing_the_server_leaves_no_engine_however_stubborn(
    other_server: Serve, gone: Gone
) -> None:
    server = other_server(PLAIN, STUBBORN, DAEMON)
    pids = server.read_pids()
    server.process.kill()

    assert gone(*pids.values())
    assert sorted(pids) == ["daemon", "guard", "plain", "stubborn"]


def test_a_server_that_leaves_without_closing_its_launcher_leaves_no_engine(
    other_server: Serve, gone: Gone, tmp_path: Path
) -> None:
    server = other_server(STUBBORN, DAEMON)
    pids = server.read_pids()
    (tmp_path / "logs" / "leave").touch()
    server.process.wait()

    assert gone(*pids.values())


def test_a_guard_that_dies_is_replaced_by_one_that_knows_everything(
    other_server: Serve, gone: Gone
) -> None:
    server = other_server(STUBBORN, DAEMON)
    before = server.read_pids()
    os.kill(before["guard"], signal.SIGKILL)
    after = server.read_pids()
    server.process.kill()

    assert after["guard"] != before["guard"]
    assert gone(*after.values())


def _ignores_sigterm(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
    return bool(ignored >> (signal.SIGTERM - 1) & 1)


def test_the_guard_outlives_the_signals_that_end_everybody_else(
    other_server: Serve, gone: Gone, running: Callable[[int], bool]
) -> None:
    server = other_server(STUBBORN)
    pids = server.read_pids()
    while not _ignores_sigterm(pids["guard"]):
        time.sleep(0.01)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        os.kill(pids["guard"], number)
    alive = running(pids["guard"])
    session = os.getsid(pids["guard"])
    server.process.kill()

    assert alive
    assert session == pids["guard"]
    assert gone(*pids.values())


def test_the_kernel_ends_an_engine_when_the_guard_cannot(other_server: Serve, gone: Gone) -> None:
    server = other_server(PLAIN)
    pids = server.read_pids()
    os.kill(pids["guard"], signal.SIGSTOP)
    server.process.kill()

    assert gone(pids["plain"])
    os.kill(pids["guard"], signal.SIGKILL)
    assert gone(pids["guard"])


async def test_the_guard_comes_with_the_first_engine_and_goes_with_the_launcher(
    launcher: LocalLauncher,
    python: Callable[[str], Command],
    lines: Lines,
    running: Callable[[int], bool],
) -> None:
    before = launcher.guard_pid
    await launcher.start(python("pass"), label="m", on_line=lines)
    pid = launcher.guard_pid
    await launcher.close()

    assert before is None
    assert pid is not None
    assert not running(pid)
    assert launcher.guard_pid is None


def _guard() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", guard.__file__, str(os.getpid())],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def _engine(run: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["sleep", "600"], env={**os.environ, guard.RUN_VARIABLE: run}, start_new_session=True
    )


def test_the_guard_finds_a_run_by_its_marker_before_its_group_is_known() -> None:
    engine = _engine("early")
    with _guard() as process:
        process.communicate(b"+early 0\n")

    assert engine.wait(timeout=60) == -signal.SIGTERM


@pytest.mark.parametrize("words", [b"+over 0\n-over\n", b"-over\n", b"", b"+over 0"])
def test_the_guard_touches_nothing_that_is_not_registered(words: bytes) -> None:
    engine = _engine("over")
    with _guard() as process:
        process.communicate(words)
    left = engine.poll()
    engine.kill()
    engine.wait()

    assert left is None
    assert process.returncode == 0


def test_the_guard_notices_a_dead_server_whose_pipe_somebody_else_holds(gone: Gone) -> None:
    code = f"""
import os, subprocess, sys, time
reading, writing = os.pipe()
guard = [sys.executable, '-I', '-S', {guard.__file__!r}, str(os.getpid())]
pids = [
    subprocess.Popen(guard, stdin=reading).pid,
    subprocess.Popen(
        ['sleep', '600'],
        env={{**os.environ, {guard.RUN_VARIABLE!r}: 'held'}},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    ).pid,
    subprocess.Popen(['sleep', '600'], pass_fds=[writing], stdout=subprocess.DEVNULL).pid,
]
os.write(writing, b'+held 0\\n')
print(*pids, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        guarding, engine, stranger = map(int, server.stdout.readline().split())
        server.kill()
    ended = gone(guarding, engine)
    os.kill(stranger, signal.SIGKILL)

    assert ended
    assert gone(stranger)


def test_members_are_the_group_the_session_the_marked_and_their_descendants() -> None:
    code = (
        "import os, subprocess, sys\n"
        "sleep = ['sleep', '600']\n"
        "children = [\n"
        "    subprocess.Popen(sleep),\n"
        "    subprocess.Popen(sleep, process_group=0, env={}),\n"
        "    subprocess.Popen(sleep, start_new_session=True),\n"
        "    subprocess.Popen(sleep, start_new_session=True, env={}),\n"
        "]\n"
        "print(*(child.pid for child in children), flush=True)\n"
        "sys.stdin.read()\n"
        "for child in children: child.kill(); child.wait()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, guard.RUN_VARIABLE: "some-run"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as leader:
        assert leader.stdout is not None
        children = set(map(int, leader.stdout.readline().split()))
        found = guard.members({"some-run": leader.pid})
        unmarked = guard.members({"another-run": leader.pid})
        leader.communicate()

    assert found == {leader.pid, *children}
    assert unmarked == {leader.pid, *children}
    assert guard.members({"some-run": leader.pid}) == set()
    assert guard.members({}) == set()
