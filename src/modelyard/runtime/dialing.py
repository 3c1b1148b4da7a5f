"""How an engine is reached: by a TCP port of loopback, or by a Unix socket of its own.

Laws of this file:
- Nobody else of the runtime opens a connection to an engine or looks whether its place is taken.
- A refused connection is a ConnectionRefusedError for both kinds: a socket file that is not there
  yet means what a port without a listener means.
- A Unix socket whose backlog is full says EAGAIN at once, where TCP would wait (connect(2)), and
  event loops take that for an error, or even for a connection. cpp-httplib listened with a backlog
  of 5 by default. So we wait and try again, as long as the caller lets us.
- Sockets lie in folders that only we may enter, one for each run, removed with the run. What a
  killed server left is removed when the next one starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import socket
import ssl
import stat
import tempfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import psutil

from modelyard.core.errors import LaunchError
from modelyard.core.specs import Endpoint

P = TypeVar("P", bound=asyncio.BaseProtocol)
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

MAX_PATH_BYTES = 99
"""The longest path given to an engine. Kernels end at 104 bytes (macOS) or 108 (Linux: unix(7))."""
FULL_AGAIN_S = 0.005
"""Pause before a socket whose backlog was full is tried again."""
_SOCKET_NAME = "s.sock"  # llama-server takes its host for a socket only if it ends with .sock
_RUN_BYTES = 4
_LAST_PID = 2**22


async def dial(
    endpoint: Endpoint, protocol: Callable[[], P], tls: ssl.SSLContext | None, within_s: float
) -> P:
    """A connection that speaks what `protocol` makes of it.

    Raises OSError; ConnectionRefusedError if nobody listens there, TimeoutError if there is none
    in time.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(within_s):
        if endpoint.path:
            joined = await _joined(endpoint.path)
            _, made = await loop.create_unix_connection(protocol, sock=joined)
        else:
            host = endpoint.host
            name = None if tls is None else host
            _, made = await loop.create_connection(
                protocol, host, endpoint.port, ssl=tls, server_hostname=name
            )
    return made


async def open_streams(endpoint: Endpoint) -> Streams:
    """A connection for a request of our own. Raises as `dial` does; the caller bounds it."""
    if endpoint.path:
        return await asyncio.open_unix_connection(sock=await _joined(endpoint.path))
    return await asyncio.open_connection(endpoint.host, endpoint.port)


async def _joined(path: str) -> socket.socket:
    """A connected Unix socket. Connecting one never takes time, unless its backlog is full."""
    joined = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        joined.setblocking(False)
        while True:
            try:
                joined.connect(path)
                return joined
            except BlockingIOError:
                await asyncio.sleep(FULL_AGAIN_S)
    except FileNotFoundError as error:
        joined.close()
        raise ConnectionRefusedError(error.errno, "no such socket", path) from None
    except BaseException:
        joined.close()
        raise


def is_taken(endpoint: Endpoint) -> bool:
    """Whether something already listens, or may listen, where an engine is to listen."""
    if endpoint.path:
        return os.path.lexists(endpoint.path)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((endpoint.host, endpoint.port))
        except OSError:
            return True
    return False


class SocketFolders:
    """Where the Unix sockets of a server's engines lie: a folder for each run."""

    def __init__(self, state_dir: Path) -> None:
        """They lie under `state_dir`, unless a path there would be too long for a socket."""
        self.base = _base(state_dir.absolute())

    def new(self) -> Endpoint:
        """A place for one engine. Nothing is made yet: see `make_folder`."""
        run = f"{os.getpid()}-{secrets.token_hex(_RUN_BYTES)}"
        return Endpoint("127.0.0.1", 0, str(self.base / run / _SOCKET_NAME))

    def sweep(self) -> None:
        """Remove what servers left that live no more."""
        if _is_private(self.base):
            for left in self.base.iterdir():
                if not _lives(left.name.partition("-")[0]):
                    shutil.rmtree(left, ignore_errors=True)


def make_folder(endpoint: Endpoint) -> None:
    """Make the private folder of an endpoint's socket, if it has one. Raises LaunchError."""
    if not endpoint.path:
        return
    folder = Path(endpoint.path).parent
    base = folder.parent
    try:
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_private(base):
            raise LaunchError(
                f"{base} is to hold the engine's socket, but others may enter it; remove it, or "
                "give server.state_dir a shorter path"
            )
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise LaunchError(f"cannot make a folder for a socket at {folder}: {error}") from None


def remove_folder(endpoint: Endpoint) -> None:
    """Remove that folder, with whatever the engine left in it; the last takes the base along."""
    if endpoint.path:
        folder = Path(endpoint.path).parent
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # others are in use, or it is somebody else's
            folder.parent.rmdir()


def _is_private(folder: Path) -> bool:
    """Whether it is a folder of ours that nobody else may enter; a link to one is not."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return is_ours and not stat.S_IMODE(found.st_mode) & 0o077


def _lives(pid: str) -> bool:
    return pid.isdecimal() and psutil.pid_exists(int(pid))


def _base(state_dir: Path) -> Path:
    """The state folder's own if sockets in it have paths that are short enough.

    Else one under the user's runtime folder (XDG_RUNTIME_DIR) or the folder for temporary files,
    named after the state folder: it is the same after a restart, and no other server's.
    """
    own = state_dir / "sockets"
    if _fits(own):
        return own
    name = "modelyard-" + sha256(os.fsencode(state_dir)).hexdigest()[:8]
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    elsewhere = [Path(runtime)] if runtime and Path(runtime).is_dir() else []
    elsewhere += [Path(tempfile.gettempdir()), Path("/tmp")]
    return next(base for folder in elsewhere if _fits(base := folder / name))


def _fits(base: Path) -> bool:
    longest = base / f"{_LAST_PID}-{'0' * 2 * _RUN_BYTES}" / _SOCKET_NAME
    return len(os.fsencode(longest)) <= MAX_PATH_BYTES
