"""What processes really take: real processes that hold known memory, alone and together."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from modelyard.core.specs import Command
from modelyard.launchers import guard
from modelyard.launchers.local import LocalLauncher
from modelyard.launchers.memory import host_mib

if TYPE_CHECKING:
    from tests.launchers.conftest import Lines

MIB = 2**20
HELD = 96
MARGIN = 12
"""What the interpreters themselves take, and then some, in MiB."""

WAIT = "print('held all', flush=True); import sys; sys.stdin.read()\n"
NOTHING = WAIT
PRIVATE = f"held = b'x' * ({HELD} << 20)\n" + WAIT

# Three processes that have the same pages, because nobody has written to them since the fork.
FORKED = f"""
import os
held = b'x' * ({HELD} << 20)
for _ in range(2):
    if os.fork() == 0:
        sum(held[::4096])
        os.read(0, 1)
        os._exit(0)
{WAIT}
"""

MAPPED = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
for place in range(0, len(held), 4096):
    held[place]
print('held all', flush=True); sys.stdin.read()
"""

READ = """
import sys
with open(sys.argv[1], "rb") as file:
    while file.read(1 << 20):
        pass
print('held all', flush=True); sys.stdin.read()
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start Python code in a session of its own; returns when it says that it holds its memory."""
    processes: list[subprocess.Popen[str]] = []

    def begin(code: str, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held all\n"
        return process

    yield begin
    for process in processes:
        process.communicate()


@pytest.fixture
def weights(tmp_path: Path) -> str:
    file = tmp_path / "weights.gguf"
    file.write_bytes(b"w" * (HELD * MIB))
    return str(file)


def test_memory_of_a_process_counts(start: Start) -> None:
    idle, holding = start(NOTHING), start(PRIVATE)

    assert HELD <= host_mib([holding.pid]) <= HELD + MARGIN
    assert host_mib([idle.pid]) <= MARGIN


def test_a_process_that_is_named_twice_counts_once(start: Start) -> None:
    holding = start(PRIVATE).pid

    assert host_mib([holding, holding, -holding]) <= HELD + MARGIN


def test_pages_that_the_processes_of_a_run_share_count_once(start: Start) -> None:
    group = start(FORKED).pid
    members = {entry.pid for entry in guard.table() if entry.group == group}

    assert len(members) == 3
    assert HELD <= host_mib(members) <= HELD + 2 * MARGIN


def test_a_group_is_all_its_processes(start: Start) -> None:
    group = start(FORKED).pid

    assert HELD <= host_mib([-group]) <= HELD + 2 * MARGIN
    assert host_mib([group]) < HELD


def test_a_mapped_file_counts_as_far_as_it_is_resident(start: Start, weights: str) -> None:
    mapping, reading = start(MAPPED, weights), start(READ, weights)

    assert HELD <= host_mib([mapping.pid]) <= HELD + MARGIN
    assert host_mib([reading.pid]) <= MARGIN


def test_runs_that_map_the_same_file_share_what_it_takes(start: Start, weights: str) -> None:
    one, other = start(MAPPED, weights), start(MAPPED, weights)

    assert HELD <= host_mib([one.pid, other.pid]) <= HELD + 2 * MARGIN
    assert HELD // 2 <= host_mib([one.pid]) <= HELD // 2 + MARGIN


def test_a_process_that_is_gone_holds_nothing(start: Start) -> None:
    idle, ended = start(NOTHING), start(PRIVATE)
    ended.communicate()

    assert host_mib([ended.pid]) == 0
    assert host_mib([-ended.pid]) == 0
    assert host_mib([ended.pid, idle.pid]) == host_mib([idle.pid])
    assert host_mib([]) == 0


def test_a_process_that_waits_to_be_collected_holds_nothing(start: Start) -> None:
    zombie = start(PRIVATE)
    zombie.kill()
    while not any(entry.pid == zombie.pid and entry.ended for entry in guard.table()):
        time.sleep(0.01)

    assert host_mib([zombie.pid]) == 0


def test_where_there_is_no_proportional_size_the_resident_size_counts(
    start: Start, tmp_path: Path
) -> None:
    holding = start(PRIVATE)

    assert HELD <= host_mib([holding.pid], proc=tmp_path) <= HELD + MARGIN


@pytest.mark.parametrize("text", ["", "Rss: 1 kB\n", "Pss: many kB\n", "\0\0\0"])
def test_a_size_that_cannot_be_read_is_replaced_by_the_resident_size(
    start: Start, tmp_path: Path, text: str
) -> None:
    holding = start(PRIVATE)
    _rollup(tmp_path, holding.pid, text)

    assert HELD <= host_mib([holding.pid], proc=tmp_path) <= HELD + MARGIN


def test_swapped_memory_counts_and_sums_are_rounded_up_once(tmp_path: Path) -> None:
    text = "0-1 ---p 0 00:00 0  [rollup]\nPss:  {} kB\nPss_Anon:  9 kB\nSwapPss:   {} kB\n"
    _rollup(tmp_path, 4_000_001, text.format(1000, 2072))
    _rollup(tmp_path, 4_000_002, text.format(100, 0))
    _rollup(tmp_path, 4_000_003, text.format(100, 0))

    assert host_mib([4_000_001], proc=tmp_path) == 3
    assert host_mib([4_000_001, 4_000_002, 4_000_003], proc=tmp_path) == 4


def _rollup(proc: Path, pid: int, text: str) -> None:
    (proc / str(pid)).mkdir()
    (proc / str(pid) / "smaps_rollup").write_text(text)


async def test_a_run_is_measured_by_its_marker(launcher: LocalLauncher, lines: Lines) -> None:
    code = FORKED.replace("os.read(0, 1)", "import time; time.sleep(600)")
    command = Command((sys.executable, "-c", code.replace("sys.stdin.read()", "os.wait()")))
    process = await launcher.start(command, label="held", on_line=lines)
    await lines.value("held")
    members = guard.members({process.run: process.pid})
    held = host_mib(members)
    await process.stop(0.1)

    assert len(members) == 3
    assert HELD <= held <= HELD + 2 * MARGIN
    assert host_mib(members) == 0
