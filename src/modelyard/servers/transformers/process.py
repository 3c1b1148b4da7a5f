"""What the process takes of the machine: an address and processors.

Laws of this file:
- Only the standard library: it runs before torch is imported.
"""

from __future__ import annotations

import os
import socket

from modelyard.servers.processors import usable_processors

BACKLOG = 512


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
