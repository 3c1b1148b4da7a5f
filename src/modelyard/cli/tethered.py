"""`python -m modelyard.cli.tethered COMMAND...`: a command that ends when its stdin does.

Whoever starts it holds the other end of that pipe, and the kernel closes it when they are gone,
even by SIGKILL: that works on every system, without polling. The demo starts its server so.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from modelyard.cli import main

STDIN = 0


def _end_with_stdin() -> None:
    # Not `sys.stdin`: a thread that waits in it holds a lock that the interpreter's end needs.
    while os.read(STDIN, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_stdin, name="tether", daemon=True).start()
    sys.exit(main())
