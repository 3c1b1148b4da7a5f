"""What engines print: lines, rings, files, and nobody who has to wait."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.core.specs import Command
from modelyard.launchers.base import Exit, LogLine
from modelyard.launchers.local import LocalLauncher
from modelyard.launchers.logfile import LogFile, log_name
from modelyard.launchers.output import LINE_BYTES, LineSplitter

if TYPE_CHECKING:
    from tests.launchers.conftest import Lines

Python = Callable[[str], Command]


def _split(*chunks: bytes) -> list[str]:
    splitter = LineSplitter()
    return [line for chunk in chunks for line in splitter.feed(chunk)] + splitter.finish()


@pytest.mark.parametrize(
    ("printed", "lines"),
    [
        (b"", []),
        (b"a\nb\n", ["a", "b"]),
        (b"a\n\nb", ["a", "", "b"]),
        (b"a\r\nb\r\n\r\n", ["a", "b", ""]),
        (b"\r 10%\r 20%\r 30%\ndone\n", [" 10%", " 20%", " 30%", "done"]),
        (b"10%\r20%\r\r\n", ["10%", "20%", ""]),
        (b"\n\r\n", ["", ""]),
        (b"caf\xc3\xa9 \xff\n", ["café \ufffd"]),
        (b"x" * LINE_BYTES + b"\n", ["x" * LINE_BYTES]),
        (b"x" * LINE_BYTES + b"y\n", ["x" * LINE_BYTES, "y"]),
        (b"x" * (LINE_BYTES - 1) + "é!\n".encode(), ["x" * (LINE_BYTES - 1), "é!"]),
    ],
)
def test_output_is_split_into_lines(printed: bytes, lines: list[str]) -> None:
    assert _split(printed) == lines


@given(
    st.lists(st.sampled_from([b"a", b"\r", b"\n", b"\r\n", "é".encode(), b"\xff", b"x" * 9000])),
    st.data(),
)
def test_lines_do_not_depend_on_how_the_bytes_arrive(
    parts: list[bytes], data: st.DataObject
) -> None:
    printed = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(printed)))))
    chunks = [printed[a:b] for a, b in zip([0, *cuts], [*cuts, len(printed)], strict=True)]

    assert _split(*chunks) == _split(printed)


@pytest.mark.parametrize(
    "label", ["qwen3", "Qwen/Qwen3-0.6B", "../../etc/x", "模型", "a b", "", ".", "\ud800"]
)
def test_a_log_s_name_is_one_plain_file_name(label: str) -> None:
    name = log_name(label)

    assert re.fullmatch(r"[\w@+=-][\w.@+=-]*\.log", name)


def test_labels_that_look_alike_have_logs_of_their_own() -> None:
    labels = ["a/b", "a_b", "a b", ".a_b", "x" * 300, "x" * 301]

    assert len({log_name(label) for label in labels}) == len(labels)
    assert all(len(log_name(label)) < 128 for label in labels)


def test_a_log_is_rotated_between_lines_and_old_parts_go(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "m.log", max_bytes=100, files=3)
    file.acquire()
    for start in range(0, 90, 9):
        file.write(f"line {n:04}" for n in range(start, start + 9))
    file.release()
    parts = [tmp_path / "m.log.2", tmp_path / "m.log.1", tmp_path / "m.log"]
    kept = "".join(part.read_text() for part in parts).splitlines()

    assert sorted(tmp_path.iterdir()) == sorted(parts)
    assert all(part.stat().st_size <= 100 for part in parts)
    assert kept == [f"line {n:04}" for n in range(90 - len(kept), 90)]


def test_a_log_of_one_file_begins_anew(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "m.log", max_bytes=15, files=1)
    file.acquire()
    complaints = [file.write([f"line {n:04}"]) for n in range(3)]
    file.release()

    assert complaints == [None] * 3
    assert file.path.read_text() == "line 0002\n"
    assert list(tmp_path.iterdir()) == [file.path]


def test_a_full_disk_is_reported_once() -> None:
    file = LogFile(Path("/dev/full"), max_bytes=100, files=3)
    file.acquire()
    said = [file.write(["line"]) for _ in range(3)]
    file.release()

    assert said == ["the log file /dev/full cannot be written: No space left on device", None, None]


async def test_a_log_begins_with_the_run_and_its_command_and_never_its_variables(
    launcher: LocalLauncher, python: Python, lines: Lines
) -> None:
    argv = (*python("print(1)\nprint(2)").argv, "a b")
    command = Command(argv, env={"HF_TOKEN": "secret"})
    process = await launcher.start(command, label="Qwen/x", on_line=lines)
    await process.wait()
    head, *rest = process.log.path.read_text().splitlines()

    assert rest == ["1", "2"]
    assert re.match(r"=== 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00 run [0-9a-f]{32} ", head)
    assert head.endswith(rf"{sys.executable} -c 'print(1)\nprint(2)' 'a b'")
    assert "secret" not in head


async def test_a_flood_of_lines_is_whole_in_the_file_and_bounded_in_the_ring(
    launcher: LocalLauncher, python: Python, lines: Lines
) -> None:
    process = await launcher.start(
        python("for n in range(1, 100_001): print('line', n)"), label="m", on_line=lines
    )
    ended = await process.wait()
    numbers = [line.number for line in lines.heard]

    assert ended == Exit(code=0)
    assert process.log.path.read_text().splitlines()[1:] == [f"line {n}" for n in range(1, 100_001)]
    assert process.log.tail(1000) == [LogLine(n, f"line {n}") for n in range(99_901, 100_001)]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 100_000
    assert all(line.text == f"line {line.number}" for line in lines.heard)


async def test_an_engine_never_waits_for_a_busy_event_loop(
    launcher: LocalLauncher, python: Python, lines: Lines, tmp_path: Path
) -> None:
    done = tmp_path / "done"
    await launcher.start(
        python(f"print('x' * 4_000_000, flush=True); open({str(done)!r}, 'w')"),
        label="m",
        on_line=lines,
    )
    deadline = time.monotonic() + 60
    while not done.exists() and time.monotonic() < deadline:
        time.sleep(0.01)  # noqa: ASYNC251 (blocking the loop is the point)

    assert done.exists()


async def test_a_line_without_an_end_is_shown_and_told_when_it_is_complete(
    launcher: LocalLauncher, python: Python, lines: Lines
) -> None:
    process = await launcher.start(
        python("import time; print('a\\nContinue? [y/N] ', end='', flush=True); time.sleep(600)"),
        label="m",
        on_line=lines,
    )
    await asyncio.wait_for(_until(lambda: len(process.log.tail(9)) == 2), 60)
    before = list(lines.texts)
    shown = process.log.tail(1)
    await process.stop(5)

    assert before == ["a"]
    assert shown == [LogLine(2, "Continue? [y/N] ")]
    assert lines.texts == ["a", "Continue? [y/N] "]
    assert process.log.tail(0) == []


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


async def test_a_log_that_cannot_be_written_is_said_once_and_hurts_nobody(
    python: Python, lines: Lines, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    launcher = LocalLauncher(tmp_path / "file" / "logs")
    process = await launcher.start(python("print('a'); print('b')"), label="m", on_line=lines)
    ended = await process.wait()
    await launcher.close()
    complaint, *printed = lines.texts

    assert ended == Exit(code=0)
    assert printed == ["a", "b"]
    assert complaint.startswith("modelyard: the log file ")
    assert complaint.endswith("m.log cannot be written: Not a directory")


async def test_two_runs_of_one_model_share_a_log(
    launcher: LocalLauncher, python: Python, lines: Lines
) -> None:
    runs = [
        await launcher.start(python(f"print('from', {n})"), label="m", on_line=lines)
        for n in range(2)
    ]
    await asyncio.gather(*(run.wait() for run in runs))
    text = runs[0].log.path.read_text()

    assert runs[0].log.path == runs[1].log.path
    assert text.count("=== ") == 2
    assert "from 0\n" in text
    assert "from 1\n" in text


async def test_a_listener_that_fails_is_reported_and_hears_the_rest(
    launcher: LocalLauncher, python: Python
) -> None:
    heard: list[str] = []
    reports: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, report: reports.append(report))

    def listen(line: LogLine) -> None:
        heard.append(line.text)
        if line.number == 1:
            raise ValueError("broken listener")

    process = await launcher.start(python("print('a'); print('b')"), label="m", on_line=listen)
    await process.wait()

    assert heard == ["a", "b"]
    assert [str(report["exception"]) for report in reports] == ["broken listener"]
