"""How processes of the fake vLLM call themselves and what their log lines look like.

Laws of this file:
- Only the standard library is imported.
- The form of a line is that of vLLM 0.32: the process's name and pid in brackets, then level, time
  and place. A title is the whole of what the real one shows; ours is followed by its arguments.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path


def titled(title: str, module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a Python process whose command line begins with `title`.

    To be started with `executable=sys.executable`. An interpreter that is not called by its path
    cannot find its library, so it is told.
    """
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONHOME": sys.base_prefix, "PYTHONPATH": root}
    return [title, "-S", "-m", module, *arguments], environment


def log(who: str, line: str, level: str = "INFO", *, pid: int | None = None) -> None:
    """One line as vLLM's logger writes it, with the prefix of the process that wrote it.

    `pid` is that process's where it is not the caller.
    """
    moment = time.strftime("%m-%d %H:%M:%S")
    print(f"({who} pid={pid or os.getpid()}) {level} {moment} {line}", flush=True)


def gib(mib: float) -> str:
    return f"{mib / 1024:.2f} GiB"
