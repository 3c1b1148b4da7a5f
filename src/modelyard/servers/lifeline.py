"""How an engine process of ours begins, what it tells, and that it ends when it must.

Laws of this file:
- Only the standard library: it runs before torch or llama.cpp is imported.
- Loading can hold the interpreter for minutes. Whatever must end the process in that time is left
  to the kernel: signals keep their default action, and on Linux the end of stdin is made a signal
  too (F_SETSIG in fcntl(2)); elsewhere a thread waits for it.
- Exit code 78 (EX_CONFIG in sysexits.h) means that the same command can only fail again; 1 means
  that it may work another time. One line on stderr sums up either.
- A line that begins with `modelyard: ` is for the adapter, which knows its words.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import sys
import threading
from typing import NoReturn

EXIT_FAILED = 1
EXIT_PERMANENT = 78
MAX_SAID = 600

_STDIN = 0


class Unusable(Exception):
    """The same command can only fail again: a wrong file, option or kind of model."""


def announce(text: str) -> None:
    """Tell the adapter something: a phase, a percentage, what memory is held."""
    print(f"modelyard: {text}", flush=True)


def leave(code: int, message: str) -> NoReturn:
    """End at once with a reason; no thread is waited for."""
    line = " ".join(message.split())[:MAX_SAID]
    with contextlib.suppress(OSError):
        print(f"modelyard: {line}", file=sys.stderr, flush=True)
    os._exit(code)


def restore_signals() -> None:
    """Let the kernel end the process at once, whatever is being computed.

    To be called again after a library that installs handlers of its own.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def die_with_stdin() -> None:
    """Have the process end when stdin does, or end it now if it has. Raises Unusable."""
    try:
        if sys.platform == "linux":
            fcntl.fcntl(_STDIN, fcntl.F_SETOWN, os.getpid())
            fcntl.fcntl(_STDIN, fcntl.F_SETSIG, signal.SIGTERM)
            flags = fcntl.fcntl(_STDIN, fcntl.F_GETFL)
            fcntl.fcntl(_STDIN, fcntl.F_SETFL, flags | os.O_ASYNC)
        ended = select.select([_STDIN], [], [], 0)[0] and not os.read(_STDIN, 4096)
    except OSError as error:
        raise Unusable(f"--exit-with-stdin needs a stdin: {error.strerror}") from None
    if ended:
        os._exit(0)
    threading.Thread(target=_until_stdin_ends, name="stdin", daemon=True).start()


def _until_stdin_ends() -> NoReturn:
    # Asked first: a stdin that does not block would be read round and round.
    while select.select([_STDIN], [], [])[0] and os.read(_STDIN, 4096):
        pass
    os._exit(0)
