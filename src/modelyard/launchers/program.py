"""Which file a command runs, found before it is started, so that errors name the cause.

Laws of this file:
- No shell ever sees a command. A script is given to the interpreter its first line names.
- Every refusal is a `LaunchError` that says which file and what to do about it.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from modelyard.core.errors import LaunchError
from modelyard.core.specs import Command

_FIRST_LINE_BYTES = 256
"""The kernel reads no more of a script's first line (BINPRM_BUF_SIZE)."""


def resolve(command: Command, env: Mapping[str, str]) -> tuple[str, ...]:
    """The argument list to execute: the program as an absolute path, an interpreter if needed.

    A program without a slash is looked up on the PATH of `env`, one with a slash from the command's
    folder. A `.sh` file that could not be executed as it is (no permission, no first line) is run
    by the interpreter it names, else by `sh`; no other file is guessed at.
    """
    if not command.argv or not command.argv[0]:
        raise LaunchError("the command is empty", hint="give it a program to run")
    if command.cwd is not None and not Path(command.cwd).is_dir():
        raise LaunchError(
            f"the working folder {command.cwd!r} does not exist or is not a folder",
            hint="create it or correct `cwd`",
        )
    name, *arguments = command.argv
    program = _find(name, command.cwd, env)
    if program.endswith(".sh"):
        interpreter = first_line(program)
        if interpreter and os.access(program, os.X_OK):
            return (program, *arguments)
        return (*(interpreter or ("sh",)), program, *arguments)
    if not os.access(program, os.X_OK):
        raise LaunchError(f"{program} may not be executed", hint=f"chmod +x {program}")
    return (program, *arguments)


def _find(name: str, cwd: str | None, env: Mapping[str, str]) -> str:
    if "/" not in name:
        found = shutil.which(name, path=env.get("PATH", os.defpath))
        if found is None:
            raise LaunchError(
                f"there is no program {name!r} on the PATH", hint="install it or give its full path"
            )
        return str(Path(found).absolute())
    # Not resolved: a virtual environment's python is a link, and must be called by its own name.
    path = Path(cwd or ".").absolute() / name
    if path.is_dir():
        raise LaunchError(f"{path} is a folder, not a program", hint="give the file to run")
    if not path.exists():
        raise LaunchError(f"the program {path} does not exist", hint="correct its path")
    return str(path)


def first_line(path: str) -> tuple[str, ...]:
    """The interpreter and its argument in a script's `#!` line; empty for everything else."""
    with Path(path).open("rb") as file:
        head = file.read(_FIRST_LINE_BYTES)
    if not head.startswith(b"#!"):
        return ()
    return tuple(os.fsdecode(head[2:].split(b"\n", 1)[0]).strip().split(None, 1))


def explain(error: OSError, program: str) -> LaunchError:
    """What the system's refusal to execute `program` means."""
    if error.errno == errno.ENOEXEC:
        return LaunchError(
            f"{program} is not a program that this machine can run (exec format error)",
            hint="it was built for another system, or is a script without a first line `#!`",
        )
    if error.errno == errno.ENOENT and Path(program).exists():
        wanted = " ".join(first_line(program)) or "a loader that this system does not have"
        return LaunchError(
            f"{program} needs an interpreter that does not exist: {wanted}",
            hint="install it, or correct the script's first line",
        )
    if error.errno == errno.E2BIG:
        return LaunchError(f"the arguments and variables of {program} are too long for the system")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return LaunchError(
            f"no file descriptor is left to start {program}", hint="raise `ulimit -n`"
        )
    return LaunchError(f"{program} could not be started: {error.strerror or error}")
