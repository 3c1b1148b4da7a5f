"""A run from its start to its end, with real processes on both event loops."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from modelyard.core.errors import LaunchError
from modelyard.core.specs import Command
from modelyard.launchers import guard
from modelyard.launchers.base import Exit, Launcher
from modelyard.launchers.local import LocalLauncher

if TYPE_CHECKING:
    from tests.launchers.conftest import Lines

Python = Callable[[str], Command]
Gone = Callable[..., bool]

SLEEP = "import time; time.sleep(600)"
FREE = f"print('free', 'now', flush=True); {SLEEP}"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
SAY_PID = "import os; print('pid', os.getpid(), flush=True)\n"

IN_GROUP = f"""
import os, subprocess, sys
print('child', subprocess.Popen([sys.executable, '-c', {SLEEP!r}]).pid, flush=True)
"""

# Forks twice and leaves the session, as a daemon does; ignores SIGTERM.
DAEMON = """
import os, signal, time
settled, said = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print('child', os.getpid(), flush=True)
        os.write(said, b'.')
        time.sleep(600)
    os._exit(0)
os.read(settled, 1)
"""


def set_child_subreaper(on: bool) -> None:
    """PR_SET_CHILD_SUBREAPER (2const): orphans among our descendants become our children."""
    assert ctypes.CDLL(None).prctl(36, int(on), 0, 0, 0) == 0


async def test_it_is_what_the_contract_asks_for(launcher: LocalLauncher) -> None:
    any_launcher: Launcher = launcher

    assert repr(any_launcher).startswith("<LocalLauncher ")


async def test_a_process_is_started_heard_and_its_exit_code_told(
    launcher: LocalLauncher, python: Python, lines: Lines
) -> None:
    process = await launcher.start(
        python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"),
        label="m",
        on_line=lines,
    )
    ended = await process.wait()

    assert ended == Exit(code=3)
    assert sorted(lines.texts) == ["err", "out"]
    assert [line.number for line in lines.heard] == [1, 2]
    assert list(process.log.tail(5)) == lines.heard


async def test_a_process_that_dies_of_a_signal_is_told_as_that(
    launcher: LocalLauncher, python: Python, lines: Lines
) -> None:
    process = await launcher.start(
        python("import os; os.kill(os.getpid(), 9)"), label="m", on_line=lines
    )

    assert await process.wait() == Exit(signal="SIGKILL")


async def test_an_engine_may_end_in_its_own_way_when_it_is_asked_to(
    launcher: LocalLauncher, python: Python, lines: Lines
) -> None:
    process = await launcher.start(
        python(
            "import signal, sys, time\n"
            "signal.signal(signal.SIGTERM, lambda *_: (print('bye'), sys.exit(7)))\n"
            "print('ready now', flush=True); time.sleep(600)"
        ),
        label="m",
        on_line=lines,
    )
    await lines.value("ready")

    assert await process.stop(60) == Exit(code=7)
    assert lines.texts == ["ready now", "bye"]


async def test_an_engine_that_ignores_the_request_to_end_is_killed(
    launcher: LocalLauncher, python: Python, lines: Lines
) -> None:
    process = await launcher.start(python(STUBBORN + SAY_PID + SLEEP), label="m", on_line=lines)
    await lines.pid("pid")

    assert await process.stop(0.05) == Exit(signal="SIGKILL")


@pytest.mark.parametrize("code", [IN_GROUP, DAEMON], ids=["same group", "daemon"])
async def test_stopping_ends_the_descendants_too(
    launcher: LocalLauncher,
    python: Python,
    lines: Lines,
    running: Callable[[int], bool],
    code: str,
) -> None:
    process = await launcher.start(python(code + SLEEP), label="m", on_line=lines)
    child = await lines.pid("child")
    before = running(child)
    await process.stop(0.2)

    assert before
    assert not running(child)


async def test_orphans_that_are_handed_to_us_are_collected(
    launcher: LocalLauncher, python: Python, lines: Lines
) -> None:
    # The fixture sees a zombie as a child. Process 1 of a container is in this position.
    set_child_subreaper(True)
    try:
        process = await launcher.start(
            python(f"{IN_GROUP}\nos.kill(os.getpid(), 11)"), label="m", on_line=lines
        )
        ended = await process.wait()
    finally:
        set_child_subreaper(False)

    assert ended == Exit(signal="SIGSEGV")


@pytest.mark.parametrize("code", [IN_GROUP, DAEMON], ids=["same group", "daemon"])
async def test_what_a_crashed_engine_leaves_behind_is_ended_before_its_exit_is_told(
    launcher: LocalLauncher,
    python: Python,
    lines: Lines,
    running: Callable[[int], bool],
    code: str,
) -> None:
    process = await launcher.start(
        python(f"{code}\nimport os; os.kill(os.getpid(), 11)"), label="m", on_line=lines
    )
    ended = await process.wait()

    assert ended == Exit(signal="SIGSEGV")
    assert not running(await lines.pid("child"))


async def test_no_chain_of_forks_outruns_a_stop(
    launcher: LocalLauncher, python: Python, lines: Lines
) -> None:
    # Thirty generations, each of which ends as soon as the next is born; some leave the session.
    chain = (
        f"{STUBBORN}import os\n"
        "for n in range(30):\n"
        "    if os.fork(): os._exit(0)\n"
        "    if n % 3 == 0: os.setsid()\n"
        f"{SLEEP}"
    )
    runs = [await launcher.start(python(chain), label="m", on_line=lines) for _ in range(12)]
    await asyncio.gather(*(run.stop(0) for run in runs))
    marked = [
        entry
        for entry in guard.table()
        if entry.run in {run.run for run in runs} and not entry.ended
    ]

    assert marked == []


async def test_everybody_who_waits_or_stops_is_told_the_same_exit(
    launcher: LocalLauncher, python: Python, lines: Lines
) -> None:
    process = await launcher.start(python(SAY_PID + SLEEP), label="m", on_line=lines)
    await lines.pid("pid")
    told = await asyncio.gather(
        process.wait(), process.stop(5), process.stop(5), process.wait(), process.stop(5)
    )
    later = await process.stop(5)

    assert [*told, later] == [Exit(signal="SIGTERM")] * 6


async def test_a_later_stop_can_bring_the_deadline_forward_but_not_put_it_off(
    launcher: LocalLauncher, python: Python, lines: Lines
) -> None:
    process = await launcher.start(python(STUBBORN + SAY_PID + SLEEP), label="m", on_line=lines)
    await lines.pid("pid")
    patient = asyncio.create_task(process.stop(600))
    await asyncio.sleep(0)
    impatient = asyncio.create_task(process.stop(0.01))
    await asyncio.sleep(0)
    too_late = asyncio.create_task(process.stop(600))
    told = await asyncio.gather(patient, impatient, too_late)

    assert list(told) == [Exit(signal="SIGKILL")] * 3


async def test_giving_up_a_stop_does_not_undo_it(
    launcher: LocalLauncher, python: Python, lines: Lines
) -> None:
    process = await launcher.start(python(STUBBORN + SAY_PID + SLEEP), label="m", on_line=lines)
    await lines.pid("pid")
    stopping = asyncio.create_task(process.stop(0.05))
    await asyncio.sleep(0)
    stopping.cancel()

    assert await process.wait() == Exit(signal="SIGKILL")


async def test_a_cancelled_start_leaves_no_process(
    launcher: LocalLauncher, python: Python, lines: Lines, tmp_path: Path
) -> None:
    starting = asyncio.create_task(
        launcher.start(python(STUBBORN + SLEEP), label="m", on_line=lines)
    )
    await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait([starting])

    assert starting.cancelled()  # and the fixture sees no process left


async def test_closing_ends_what_runs_and_refuses_to_start_more(
    launcher: LocalLauncher, python: Python, lines: Lines
) -> None:
    processes = [
        await launcher.start(python(SAY_PID + SLEEP), label=str(n), on_line=lines) for n in range(3)
    ]
    await lines.pid("pid")
    await launcher.close()

    assert [await process.wait() for process in processes] == [Exit(signal="SIGTERM")] * 3
    with pytest.raises(LaunchError, match="closed"):
        await launcher.start(python("pass"), label="m", on_line=lines)


async def test_an_output_that_a_stranger_holds_open_does_not_hold_up_the_exit(
    launcher: LocalLauncher, python: Python, lines: Lines, gone: Gone
) -> None:
    # Leaves the session, drops our marker and is adopted by process 1: nothing ties it to the run.
    process = await launcher.start(
        python(
            "import os, sys\n"
            "if os.fork() == 0:\n"
            "    os.setsid()\n"
            "    if os.fork() == 0:\n"
            "        print('stranger', os.getpid(), flush=True)\n"
            f"        os.execve(sys.executable, ['python', '-c', {FREE!r}], {{}})\n"
            "    os._exit(0)\n"
            "os.wait()\n"
            f"{SLEEP}"
        ),
        label="m",
        on_line=lines,
    )
    stranger = await lines.pid("stranger")
    await lines.value("free")
    ended = await process.stop(5)
    os.kill(stranger, signal.SIGKILL)

    assert ended == Exit(signal="SIGTERM")
    assert gone(stranger)


async def test_an_engine_that_closes_its_output_goes_on(
    launcher: LocalLauncher, python: Python, lines: Lines
) -> None:
    process = await launcher.start(
        python(f"{SAY_PID}os.close(1); os.close(2)\n{SLEEP}"), label="m", on_line=lines
    )
    await lines.pid("pid")

    assert await process.stop(5) == Exit(signal="SIGTERM")


async def test_an_engine_leads_a_session_of_its_own_and_inherits_only_the_standard_streams(
    launcher: LocalLauncher, python: Python, lines: Lines
) -> None:
    inherited = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(inherited, True)
    process = await launcher.start(
        python(
            "import os\n"
            "print('session', os.getsid(0), flush=True)\n"
            "print('open', sorted(map(int, os.listdir('/proc/self/fd')))[:-1], flush=True)"
        ),
        label="m",
        on_line=lines,
    )
    await process.wait()
    os.close(inherited)

    assert await lines.pid("session") == process.pid
    assert await lines.value("open") == "[0, 1, 2]"


async def test_the_standard_input_of_an_engine_ends_only_with_the_server(
    launcher: LocalLauncher, python: Python, lines: Lines
) -> None:
    process = await launcher.start(
        python(
            "import select, sys\n"
            "print('ended', bool(select.select([sys.stdin], [], [], 0.2)[0]), flush=True)"
        ),
        label="m",
        on_line=lines,
    )
    await process.wait()

    assert await lines.value("ended") == "False"


async def test_a_program_is_found_by_its_path_from_the_command_s_folder(
    launcher: LocalLauncher, lines: Lines, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "engine").symlink_to(sys.executable)
    command = Command(
        ("bin/engine", "-c", "import os; print('in', os.getcwd())"), cwd=str(tmp_path)
    )
    process = await launcher.start(command, label="m", on_line=lines)
    await process.wait()

    assert lines.texts == [f"in {tmp_path}"]


@pytest.mark.parametrize("first_line", ["", "#!/bin/sh\n", "#! /usr/bin/env sh\n"])
@pytest.mark.parametrize("mode", [0o644, 0o755])
async def test_a_shell_script_runs_with_or_without_permission_and_first_line(
    launcher: LocalLauncher, lines: Lines, tmp_path: Path, first_line: str, mode: int
) -> None:
    script = tmp_path / "start.sh"
    script.write_text(f'{first_line}echo "said $1"\n')
    script.chmod(mode)
    process = await launcher.start(Command((str(script), "a b")), label="m", on_line=lines)

    assert await process.wait() == Exit(code=0)
    assert lines.texts == ["said a b"]


def _program(folder: Path, name: str, content: bytes, mode: int) -> str:
    (folder / name).write_bytes(content)
    (folder / name).chmod(mode)
    return str(folder / name)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (lambda _: Command(()), "the command is empty"),
        (lambda _: Command(("no-such-engine",)), "no program 'no-such-engine' on the PATH"),
        (lambda d: Command((f"{d}/none",)), "/none does not exist"),
        (lambda d: Command((str(d),)), "is a folder"),
        (lambda d: Command(("true",), cwd=f"{d}/none"), "/none' does not exist"),
        (lambda d: Command((_program(d, "x", b"text", 0o644),)), "chmod"),
        (lambda d: Command((_program(d, "x", b"text", 0o755),)), "exec format error"),
        (
            lambda d: Command((_program(d, "x", b"\x7fELF" + bytes(60), 0o755),)),
            "exec format error",
        ),
        (
            lambda d: Command((_program(d, "x", b"#!/no/such/sh -e\n", 0o755),)),
            "interpreter that does not exist: /no/such/sh -e",
        ),
        (lambda _: Command(("true", "a\0b")), "null byte"),
        (lambda _: Command(("true", "x" * 10_000_000)), "too long"),
    ],
)
async def test_a_command_that_cannot_be_started_says_what_is_wrong_with_it(
    launcher: LocalLauncher,
    lines: Lines,
    tmp_path: Path,
    command: Callable[[Path], Command],
    said: str,
) -> None:
    with pytest.raises(LaunchError) as caught:
        await launcher.start(command(tmp_path), label="m", on_line=lines)

    assert said in str(caught.value)


async def test_a_run_can_follow_one_that_could_not_be_started(
    launcher: LocalLauncher, python: Python, lines: Lines
) -> None:
    with pytest.raises(LaunchError):
        await launcher.start(Command(("no-such-engine",)), label="m", on_line=lines)
    process = await launcher.start(python("print('fine')"), label="m", on_line=lines)
    await process.wait()

    assert lines.texts == ["fine"]
