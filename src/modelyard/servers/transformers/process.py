"""The life of the process: how it begins, what it tells, and that it ends when it must.

Laws of this file:
- Only the standard library: it runs before torch is imported.
- Loading can hold the interpreter for seconds. Whatever must end the process in that time is left
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
import socket
import sys
import threading
from typing import NoReturn

from modelyard.servers.processors import usable_processors
from modelyard.servers.transformers.errors import Unusable

EXIT_FAILED = 1
EXIT_PERMANENT = 78
BACKLOG = 512
MAX_SAID = 600

_STDIN = 0


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
    """Let the kernel end the process at once, whatever is being computed."""
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


def listen(host: str, port: int) -> socket.socket:
    """The socket to serve on. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG)


def bind_threads(threads: int | None) -> int:
    """Have every library compute on this many processors; None takes all that are ours.

    To be called before torch, tokenizers and OpenMP are loaded: they read their variables once.
    """
    wanted = threads or usable_processors()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
        if threads is not None:
            os.environ[name] = str(wanted)
        else:
            os.environ.setdefault(name, str(wanted))
    # Tokenizers would warn about, and switch off, its threads wherever a process is forked.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    return wanted
