"""A server that runs: its sockets, its signals, and the order in which it begins and ends.

Laws of this file:
- The address is taken before anything is started: who cannot listen has started nothing.
- The first signal lets requests in flight end, the second one cuts them. Then engines end, then
  connections.
- The file that tells the CLI where the server is, is there only while it takes requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from types import FrameType

import uvicorn

from modelyard.app.composition import Yard, build
from modelyard.app.engines import engine_problems, find_vllm
from modelyard.config import Config
from modelyard.core.errors import ConfigError, LaunchError
from modelyard.devices.base import Probe
from modelyard.http.tls import context as tls_context
from modelyard.runtime import descriptors
from modelyard.runtime.config_file import Read, unread

log = logging.getLogger("modelyard")

BACKLOG = 4096
STATE_FILE = "server.json"
"""In the state folder: where the running server listens, for the CLI."""


async def serve(
    config: Config,
    *,
    on_listening: Callable[[Yard], None],
    devices: Sequence[Probe] | None = None,
    read: Read = unread,
) -> None:
    """Run a server until a signal ends it. Raises what `listening` raises.

    `devices` finds the devices in place of this machine's own probes; `read` reads the
    configuration anew, where it comes from a file.
    """
    for library in ("uvicorn.error", "httpx"):  # our own log tells its news
        logging.getLogger(library).setLevel(logging.WARNING)
    async with listening(config, devices, read) as (yard, serving):
        on_listening(yard)
        await serving


@contextlib.asynccontextmanager
async def listening(
    config: Config, devices: Sequence[Probe] | None = None, read: Read = unread
) -> AsyncIterator[tuple[Yard, asyncio.Task[None]]]:
    """A server that takes requests within the block; the task is done when a signal ended it.

    Raises ConfigError for models that their engine cannot run as configured, and LaunchError when
    the address cannot be listened on.
    """
    here = await asyncio.to_thread(find_vllm, config)
    problems = engine_problems(config, here)
    if problems:
        raise ConfigError(str(config.path or "configuration"), problems)
    descriptors.raise_limit()
    tls = _tls(config)
    with _listening_sockets(config) as listeners:
        port, *others = (listener.getsockname()[1] for listener in listeners)
        url = _url("http" if tls is None else "https", config.server.host, port)
        async with build(config, url, here, devices, read) as yard:
            yard.facts.ollama_port = next(iter(others), None)
            server = _Server(config, yard, tls)
            serving = asyncio.create_task(server.serve(sockets=listeners), name="serve")
            try:
                await server.listening(serving)
                with _state_file(config, url):
                    yield yard, serving
            finally:
                server.should_exit = True
                await serving


class _Server(uvicorn.Server):
    """uvicorn, with our order of shutting down: requests end, then engines, then connections."""

    def __init__(self, config: Config, yard: Yard, tls: ssl.SSLContext | None) -> None:
        settings = config.server
        super().__init__(
            uvicorn.Config(
                yard.asgi,
                http=yard.gateway.protocol(),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                ssl_context_factory=None if tls is None else lambda *_: tls,
                timeout_keep_alive=max(1, int(settings.keep_alive_s)),
                timeout_graceful_shutdown=max(1, int(settings.shutdown_timeout_s)),
            )
        )
        self._settings = settings
        self._yard = yard
        self._loop = asyncio.get_running_loop()
        self._listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._listening.set()

    async def listening(self, serving: asyncio.Task[None]) -> None:
        """Return when connections are taken, or when it turned out that none can be."""
        started = asyncio.ensure_future(self._listening.wait())
        await asyncio.wait((started, serving), return_when=asyncio.FIRST_COMPLETED)
        started.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn would raise the signal again at the end, in the middle of our own clean-up."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        ours = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in ours}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """The first signal drains, the second cuts whatever still runs."""
        log.info("received %s", signal.Signals(sig).name)
        if self.should_exit:
            self.force_exit = True
            self._loop.call_soon_threadsafe(self._yard.loop.supervisor.cut)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        log.info("shutting down: waiting for %d requests", len(self._yard.gateway.active))
        await self._yard.loop.close(self._settings.shutdown_timeout_s)
        await super().shutdown(sockets)


def _tls(config: Config) -> ssl.SSLContext | None:
    """What the listener proves itself with. Raises ConfigError for files that are none of that."""
    if config.server.tls is None:
        return None
    return tls_context(config.server.tls, str(config.path or "configuration"))


def _url(scheme: str, host: str, port: int) -> str:
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


@contextlib.contextmanager
def _listening_sockets(config: Config) -> Iterator[list[socket.socket]]:
    """The server's own, and Ollama's if it is wanted; closed on leaving the block."""
    server = config.server
    with contextlib.ExitStack() as held:
        hint = "is another server running? `modelyard info` tells; choose another with --port"
        sockets = [held.enter_context(_listening_socket(server.host, server.port, hint))]
        if server.ollama_port is not None:
            hint = "is Ollama running? stop it, or choose another server.ollama_port"
            wanted = _listening_socket(server.host, server.ollama_port, hint)
            sockets.append(held.enter_context(wanted))
        yield sockets


def _listening_socket(host: str, port: int, hint: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise LaunchError(
            f"cannot listen on {host} port {port}: {error.strerror or error}", hint=hint
        ) from None


@contextlib.contextmanager
def _state_file(config: Config, url: str) -> Iterator[None]:
    """Tell the CLI where this server is, for as long as it runs."""
    file = config.server.state_dir / STATE_FILE
    tls = config.server.tls
    certificate = str(tls.certificate) if tls else None
    mine = json.dumps({"url": url, "pid": os.getpid(), "certificate": certificate})
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(mine)
    except OSError as error:
        log.warning("cannot write %s: %s; the CLI needs --url", file, error)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if file.read_text() == mine:
                file.unlink()
