"""The kernel's own dead-man's switch: a process that is told when the one that started it dies.

Laws of this file:
- `PR_SET_PDEATHSIG` must be set in the child between fork and exec. Python code there
  (`preexec_fn`) can deadlock in a server with threads and forces a full fork; `setpriv` of
  util-linux (2.33 or newer) sets it and executes the program in its place, in a millisecond.
- The signal is SIGTERM: it reaches only the leader, which then takes its children along. Whoever
  ignores it meets the guard.
- It is the second line behind the guard, for the day both server and guard are killed. Where it
  cannot be had, engines start without it.
- The signal is sent when the *thread* that forked ends (PR_SET_PDEATHSIG(2const)), so that thread
  must outlive the engine.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import cached_property
from pathlib import Path

from modelyard.launchers.program import first_line

_ELF_MAGIC = b"\x7fELF"


class Leash:
    """Puts commands on the leash if this system has one."""

    def on(self, argv: tuple[str, ...]) -> tuple[str, ...]:
        """`argv` as it must be executed; unchanged if there is no leash for it.

        An unsure program (another machine's binary, a broken first line) is started directly,
        because only then does the refusal come back as an error instead of an exit code.
        """
        if self._tool and _is_sure_to_start(argv[0]):
            return (self._tool, "--pdeathsig", "TERM", "--", *argv)
        return argv

    @cached_property
    def _tool(self) -> str | None:
        """The path of setpriv if it knows the option (busybox has one that does not)."""
        if sys.platform != "linux" or (path := shutil.which("setpriv")) is None:
            return None
        trial = subprocess.run(
            [path, "--pdeathsig", "TERM", "--", path, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        return path if trial.returncode == 0 else None


def _is_sure_to_start(program: str) -> bool:
    try:
        interpreter = first_line(program)
        binary = shutil.which(interpreter[0]) if interpreter else program
        return binary is not None and _machine(binary) == _machine(sys.executable)
    except OSError:
        return False


def _machine(path: str) -> bytes:
    """Word size, byte order and processor of an ELF file (elf(5)); empty for other files."""
    with Path(path).open("rb") as file:
        head = file.read(20)
    return head[4:6] + head[18:20] if head.startswith(_ELF_MAGIC) else b""
