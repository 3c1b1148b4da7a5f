"""`modelyard run`: one question, piped questions, and a conversation on a real terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Run, ServerProcess

MODELYARD = [sys.executable, "-m", "modelyard.cli"]
PATIENCE_S = 60.0


def test_a_question_is_answered_on_stdout_alone(cli: Run) -> None:
    cli("start", "quick")

    ran = cli("run", "quick", "hello there")
    assert (ran.code, ran.out, ran.err) == (0, "quick: echo of hello there 1 2 3\n", "")


def test_a_model_that_loads_says_so_on_stderr(cli: Run) -> None:
    cli("stop", "slow")

    ran = cli("run", "slow", "hi", "--max-tokens", "3")
    assert ran.out.startswith("slow: echo of")
    assert "slow: starting: loading" in ran.err


def test_json_holds_the_answer_its_usage_and_its_time(cli: Run) -> None:
    told = cli("run", "quick", "hello", "--json").json

    assert told["model"] == "quick"
    assert told["text"].startswith("quick: echo of hello")
    assert told["usage"]["completion_tokens"] == 8
    assert told["seconds"] > 0


def test_a_real_model_answers(cli: Run) -> None:
    ran = cli("run", "yard-chat", "What is Modelyard?", "--temperature", "0")

    assert "OpenAI-compatible endpoint" in ran.out


@pytest.mark.parametrize("dash", [[], ["-"]])
def test_a_question_can_be_piped_in(server: ServerProcess, dash: list[str]) -> None:
    done = subprocess.run(
        [*MODELYARD, "run", "quick", *dash, "--url", server.url],
        input="  from a pipe, 中文 \xff\n".encode(),
        capture_output=True,
        check=True,
    )

    assert done.stdout.decode().startswith("quick: echo of from a pipe, 中文")


def test_an_empty_pipe_is_wrong_usage(server: ServerProcess) -> None:
    done = subprocess.run(
        [*MODELYARD, "run", "quick", "--url", server.url],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert "stdin is empty" in done.stderr


def test_an_argument_that_is_not_utf_8_is_asked_all_the_same(server: ServerProcess) -> None:
    command = [*(part.encode() for part in MODELYARD), b"run", b"quick", b"odd \xff byte"]
    done = subprocess.run(
        [*command, b"--url", server.url.encode()], capture_output=True, text=True, check=True
    )

    assert done.stdout.startswith("quick: echo of odd ? byte")


def test_a_base_model_continues_the_prompt(cli: Run) -> None:
    assert cli("run", "base", "once upon").out.startswith("base: echo of once upon")


def test_a_base_model_takes_no_system_message(cli: Run) -> None:
    ran = cli("run", "base", "once upon", "--system", "Be brief.")

    assert ran.code == 2
    assert "knows no system message" in ran.err


@pytest.mark.parametrize(
    ("model", "route"), [("vectors", "/v1/embeddings"), ("ranks", "/v1/rerank")]
)
def test_a_model_that_does_not_talk_is_refused_with_its_route(
    cli: Run, model: str, route: str
) -> None:
    ran = cli("run", model, "hello")

    assert (ran.code, ran.out) == (5, "")
    assert route in ran.err


def test_a_model_that_fails_to_start_is_told_with_its_reason(cli: Run) -> None:
    ran = cli("run", "broken", "hello")

    assert (ran.code, ran.out) == (1, "")
    assert "out of memory while loading" in ran.err


# ------------------------------------------------------------------------------------- conversation


class Terminal:
    """A person at a terminal."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._seen = ""

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def until(self, expected: str, *, insisting: str = "") -> str:
        """Everything shown up to `expected`, and forget it.

        `insisting` is typed again every second: what is typed in the very moment in which readline
        takes over the terminal gets lost.
        """
        deadline = time.monotonic() + PATIENCE_S
        while expected not in self._seen:
            if select.select([self._descriptor], [], [], 1.0)[0]:
                self._seen += os.read(self._descriptor, 65536).decode()
            else:
                assert time.monotonic() < deadline, f"no {expected!r}, only {self._seen!r}"
                self.type(insisting)
        shown, _, self._seen = self._seen.partition(expected)
        return re.sub(r"\x1b\[[0-9?]*[A-Za-z]|\r", "", shown)

    def drain(self) -> None:
        """Read until the program has closed the terminal."""
        try:
            while os.read(self._descriptor, 65536):
                pass
        except OSError:  # EIO: nobody has it open any more
            return


@contextmanager
def conversation(
    server: ServerProcess, model: str, *options: str
) -> Iterator[tuple[Terminal, int]]:
    """`modelyard run MODEL` on a terminal; the second value is its process."""
    pid, descriptor = pty.fork()
    if pid == 0:
        environment = {**os.environ, "MODELYARD_URL": server.url, "TERM": "xterm"}
        os.execve(sys.executable, [*MODELYARD, "run", model, *options], environment)
    try:
        yield Terminal(descriptor), pid
    finally:
        os.close(descriptor)


def ended(terminal: Terminal, pid: int) -> int:
    terminal.drain()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_conversation_goes_on_until_bye(cli: Run, server: ServerProcess) -> None:
    cli("start", "quick")
    with conversation(server, "quick") as (terminal, pid):
        terminal.until(">>> ")
        terminal.type("first question\n")
        answer = terminal.until(">>> ")
        terminal.type("/clear\n")
        cleared = terminal.until(">>> ")
        terminal.type("/bye\n")
        code = ended(terminal, pid)

    assert "quick: echo of first question" in answer
    assert "(forgotten)" in cleared
    assert code == 0


def test_the_conversation_is_sent_along_until_it_is_cleared(
    cli: Run, server: ServerProcess
) -> None:
    cli("start", "parrot")
    with conversation(server, "parrot", "--system", "Always") as (terminal, pid):
        terminal.until(">>> ")
        terminal.type("Anna\n")
        terminal.until(">>> ")
        terminal.type("who?\n")
        known = terminal.until(">>> ")
        terminal.type("/clear\n")
        terminal.until(">>> ")
        terminal.type("who?\n")
        forgotten = terminal.until(">>> ")
        terminal.type("\x04")
        code = ended(terminal, pid)

    assert "echo of Always Anna parrot: echo of Always Anna 1" in known
    assert "echo of Always who? 1" in forgotten
    assert code == 0


def test_ctrl_c_stops_the_answer_and_nothing_more(cli: Run, server: ServerProcess) -> None:
    cli("start", "steady")
    with conversation(server, "steady") as (terminal, pid):
        terminal.until(">>> ")
        terminal.type("count for me\n")
        terminal.until("steady: echo of count")
        terminal.type("\x03")
        stopped = terminal.until(">>> ")
        terminal.type("\x03")
        reminded = terminal.until(">>> ", insisting="\x03")
        terminal.type("/bye\n")
        code = ended(terminal, pid)

    assert "(stopped)" in stopped
    assert "/bye or Ctrl-D ends" in reminded
    assert code == 0
    # A stop drains: it would wait for an answer that were still being made.
    assert cli("stop", "steady", "--timeout", "15").code == 0


def test_an_error_does_not_end_the_conversation(cli: Run, server: ServerProcess) -> None:
    cli("stop", "broken")
    with conversation(server, "broken") as (terminal, pid):
        terminal.until(">>> ")
        terminal.type("hello\n")
        answer = terminal.until(">>> ")
        terminal.type("/bye\n")
        code = ended(terminal, pid)

    assert "out of memory" in answer
    assert code == 0


def test_progress_on_a_terminal_is_one_line_that_vanishes(cli: Run, server: ServerProcess) -> None:
    cli("stop", "slow")
    with conversation(server, "slow", "hi") as (terminal, pid):
        loading = terminal.until("slow: echo of hi")
        code = ended(terminal, pid)

    assert "slow: starting: loading" in loading
    assert "\n" not in loading
    assert code == 0


def test_ctrl_c_while_one_question_is_answered_ends_the_command_quietly(
    cli: Run, server: ServerProcess
) -> None:
    cli("start", "steady")
    with conversation(server, "steady", "count for me") as (terminal, pid):
        terminal.until("steady: echo of count")
        terminal.type("\x03")
        code = ended(terminal, pid)

    assert code == 130
