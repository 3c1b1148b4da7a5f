"""Engines whose server is dead are found and ended; all others are left alone."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from modelyard.launchers.environment import OWNER_VARIABLE
from modelyard.launchers.leftovers import end_leftovers, this_server

if TYPE_CHECKING:
    from tests.launchers.conftest import Server

Serve = Callable[..., "Server"]
Gone = Callable[..., bool]

STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('engine', os.getpid(), flush=True)
time.sleep(600)
"""


def _owned_by(owner: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["sleep", "600"],
        env={**os.environ, OWNER_VARIABLE: owner, "MODELYARD_RUN": "some-run"},
        start_new_session=True,
    )


def test_an_engine_that_survived_both_server_and_guard_is_ended(
    other_server: Serve, gone: Gone
) -> None:
    server = other_server(STUBBORN)
    pids = server.read_pids()
    os.kill(pids["guard"], signal.SIGSTOP)
    server.process.kill()
    server.process.wait()
    os.kill(pids["guard"], signal.SIGKILL)
    ended = [one for one in end_leftovers(0.1) if one.pid == pids["engine"]]

    assert gone(pids["engine"])
    assert [one.cmdline[1:] for one in ended] == [("-c", STUBBORN)]
    assert [len(one.run) for one in ended] == [32]


def test_the_engines_of_another_living_server_are_left_alone(
    other_server: Serve, gone: Gone, running: Callable[[int], bool]
) -> None:
    server = other_server(STUBBORN)
    pids = server.read_pids()
    ended = end_leftovers(0.1)
    alive = running(pids["engine"])
    server.process.kill()

    assert alive
    assert pids["engine"] not in [one.pid for one in ended]
    assert gone(*pids.values())


def test_a_server_s_pid_that_was_used_again_does_not_hide_its_engines() -> None:
    pid = os.getpid()
    engine = _owned_by(f"{pid}:1")
    ended = end_leftovers(10)

    assert engine.wait(timeout=60) == -signal.SIGTERM
    assert engine.pid in [one.pid for one in ended]


@pytest.mark.parametrize("owner", [this_server(), "", "nobody", "12:", "-1:5", "1" * 30])
def test_a_process_whose_owner_lives_or_cannot_be_read_is_left_alone(owner: str) -> None:
    engine = _owned_by(owner)
    ended = end_leftovers(0.1)
    left = engine.poll()
    engine.kill()
    engine.wait()

    assert left is None
    assert engine.pid not in [one.pid for one in ended]
