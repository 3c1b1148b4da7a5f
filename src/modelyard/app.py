"""The composition root: builds every part once, starts it, stops it in order. No globals.

Start: end leftovers of dead servers, read the models, take the address, listen, preload.
Stop: take no more connections, let requests in flight end, stop the engines, close the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
import logging
import os
import shutil
import signal
import socket
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from modelyard import engines
from modelyard.config import Config
from modelyard.config.rules import is_loopback
from modelyard.config.secrets import secrets_of
from modelyard.config.tree import show
from modelyard.core.errors import ConfigError, LaunchError, ModelyardError
from modelyard.core.specs import ModelSpec
from modelyard.devices import probes
from modelyard.devices.base import Probe
from modelyard.engines.base import Engine
from modelyard.engines.remote import Remote
from modelyard.http import admin
from modelyard.http.access import Access
from modelyard.http.captures import Captures
from modelyard.http.gateway import Gateway
from modelyard.http.origin import Door
from modelyard.http.tls import context as tls_context
from modelyard.launchers.leftovers import end_leftovers
from modelyard.launchers.local import LocalLauncher
from modelyard.launchers.memory import host_mib
from modelyard.runtime import descriptors
from modelyard.runtime.advisor import Advisor
from modelyard.runtime.broadcast import Broadcast
from modelyard.runtime.config_file import ConfigFile, Read, unread
from modelyard.runtime.dialing import SocketFolders
from modelyard.runtime.inventory import Inventory, engines_here
from modelyard.runtime.learning import Learning
from modelyard.runtime.loop import Loop
from modelyard.runtime.machine_here import machine_here
from modelyard.runtime.pulls import Pulls, with_downloads
from modelyard.runtime.remote_lists import RemoteLists
from modelyard.runtime.removals import Removals
from modelyard.runtime.sampling import Sampler
from modelyard.runtime.tasks import Tasks
from modelyard.runtime.vllm_here import VllmHere
from modelyard.runtime.watching import Watching
from modelyard.store.sealing import Seal

log = logging.getLogger("modelyard")

LEFTOVER_GRACE_S = 2.0
BACKLOG = 4096
AUTO_FILE = "auto.json"
"""In the state folder: the steps that models with `auto: true` took."""
STATE_FILE = "server.json"
"""In the state folder: where the running server listens, for the CLI."""


@dataclass(slots=True)
class Yard:
    """The built parts that somebody outside needs."""

    loop: Loop
    gateway: Gateway
    inventory: Inventory
    facts: admin.Facts
    asgi: FastAPI


def find_vllm(config: Config) -> VllmHere:
    """The vLLMs that the models need. Blocks, for minutes where one is new here."""
    here = VllmHere(os.environ)
    here.look(config)
    return here


def build_engines(config: Config, here: VllmHere) -> dict[str, Engine]:
    """Every engine adapter, told where its programs are."""
    wanted = config.engines.llama_server or shutil.which("llama-server")
    llama_server = None if wanted == "builtin" else wanted
    return dict(engines.build(sys.executable, llama_server, here.adapter(), _reveal(config)))


def _reveal(config: Config) -> Callable[[str], str]:
    """Decrypts keys that are written down encrypted."""
    return Seal(config.server.state_dir).reveal


def uses_cards(config: Config, here: VllmHere, spec: ModelSpec) -> bool:
    """Whether the engine of a model is built for cards, as far as that is known: the built-in
    llama.cpp is not, but for Apple's."""
    if spec.engine == "vllm":
        return not here.build_of(spec.command).is_cpu
    if spec.engine != "llamacpp" or sys.platform == "darwin":
        return True
    wanted = config.engines.llama_server or shutil.which("llama-server")
    return wanted not in (None, "builtin")


def engine_versions(config: Config, here: VllmHere) -> dict[str, str]:
    """What tells one build of an engine from another, for those that we start ourselves."""
    binary = config.engines.llama_server or shutil.which("llama-server")
    if binary is None or binary == "builtin":
        llamacpp = f"xllamacpp {importlib.metadata.version('xllamacpp')}"
    else:
        try:
            changed = Path(binary).stat().st_mtime_ns
        except OSError:
            changed = 0
        llamacpp = f"{binary} {changed}"
    return {"llamacpp": llamacpp, "vllm": here.version, "transformers": _transformers_version()}


def _transformers_version() -> str:
    """The libraries that the engine `transformers` runs on, as far as they are installed."""
    parts = []
    for name in ("torch", "transformers", "sentence-transformers"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            parts.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(parts)


def engine_problems(config: Config, here: VllmHere | None = None) -> list[str]:
    """What the engines find wrong with the declared models, with full key paths.

    Blocks if it has to find the vLLMs itself.
    """
    adapters = build_engines(config, here or find_vllm(config))
    found = [
        f"{show(('models', spec.id))}.{problem}"
        for spec in config.models
        for problem in adapters[spec.engine].problems(spec)
    ]
    reveal = _reveal(config)
    for endpoint in config.remotes:
        try:
            reveal(endpoint.upstream.key)
        except ModelyardError as error:
            found.append(f"{show(('remotes', endpoint.name))}.key: {error}")
    return found


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


@contextlib.asynccontextmanager
async def build(
    config: Config,
    url: str,
    here: VllmHere,
    devices: Sequence[Probe] | None = None,
    read: Read = unread,
) -> AsyncIterator[Yard]:
    """All parts, started but for the listener. On leaving the block nothing of them is left."""
    for ended in await asyncio.to_thread(end_leftovers, LEFTOVER_GRACE_S):
        command = " ".join(ended.cmdline)
        log.warning("ended process %d, left behind by a former server: %s", ended.pid, command)
    tasks = Tasks()
    broadcast = Broadcast()
    launcher = LocalLauncher(config.server.state_dir / "logs")
    served_config = with_downloads(config)
    remotes = RemoteLists(Remote(_reveal(config)), config.server.state_dir)
    await asyncio.to_thread(remotes.open, config.remotes)
    inventory = Inventory(served_config, remotes)
    sampler = Sampler(probes() if devices is None else devices, config.devices, host_mib)
    learning = Learning(
        config.server.state_dir / "modelyard.db",
        engine_versions(config, here),
        config.scheduling.rate_memory_s,
    )
    sample, models, _ = await asyncio.gather(
        sampler.sample(()), asyncio.to_thread(inventory.read), learning.open()
    )
    adapters = build_engines(config, here)
    sockets = SocketFolders(config.server.state_dir)
    sockets.sweep()
    loop = Loop(
        config.scheduling, sample.devices, adapters, launcher, broadcast, sampler, learning, sockets
    )
    loop.readings = sample.readings
    loop.virtuals_changed(config.virtuals)
    here.devices = lambda: loop.scheduler.devices
    advisor = loop.advisor = Advisor(
        config.server.state_dir / AUTO_FILE,
        here.devices,
        lambda model: machine_here(loop, but=model),
        lambda: facts.found(),
        lambda spec: uses_cards(config, here, spec),
        lambda specs: loop.models_changed(here.completed(specs)),
        tasks,
    )
    for problem in inventory.problems:
        log.warning("%s", problem)
    door = Door(config.server.host, config.server.allowed_hosts, config.server.cors_origins)
    access = Access(config.keys, is_loopback=is_loopback(config.server.host))
    seal = Seal(config.server.state_dir)
    captures = Captures(config.captures, secrets_of(config, seal.reveal))
    gateway = Gateway(loop, config.server, door, access, captures)
    facts = admin.Facts(
        url=url,
        config_path=str(config.path) if config.path else None,
        models_dirs=[str(folder) for folder in served_config.models_dirs],
        answered=lambda: gateway.answered,
        problems=inventory.problems,
        found=lambda: tuple(watching.inventory.found),
        reserve_mib=config.devices.reserve_mib,
        list_aliases=config.server.list_aliases,
    )

    watching = Watching(inventory, models, advisor.follow, tasks, remotes)
    await advisor.begin(models)
    watching.begin()
    remotes.begin(watching.relisted)

    async def adopt(new: Config) -> None:
        await asyncio.to_thread(here.look, new)
        whole = with_downloads(new)
        access.update(new.keys)
        loop.virtuals_changed(new.virtuals)
        captures.follow(new.captures, await asyncio.to_thread(secrets_of, new, seal.reveal))
        await watching.follow(whole)
        await advisor.settle()
        facts.config_path = str(new.path) if new.path else None
        facts.models_dirs = [str(folder) for folder in whole.models_dirs]
        facts.problems = watching.inventory.problems

    def served() -> dict[str, ModelSpec]:
        return {spec.id: spec for spec in watching.models}

    file = ConfigFile(config, read, engine_problems, adopt, served)
    pulls, removals = _downloads(loop, facts, file, watching, adopt)
    tasks.spawn(loop.watch_devices(config.devices.sample_every_s), "read the devices")
    tasks.spawn(loop.watch_gauges(config.scheduling.read_gauges_every_s), "read the gauges")
    try:
        asgi = admin.build(loop, facts, gateway, file, pulls, removals)
        yield Yard(loop, gateway, inventory, facts, asgi)
    finally:
        await pulls.close()
        await remotes.close()
        watching.close()
        broadcast.close()
        await tasks.close()
        await loop.close(0.0)
        await gateway.close()
        await launcher.close()
        await learning.close()


def _downloads(
    loop: Loop,
    facts: admin.Facts,
    file: ConfigFile,
    watching: Watching,
    adopt: Callable[[Config], Awaitable[None]],
) -> tuple[Pulls, Removals]:
    """What fetches models and removes them; a folder that is new is served from then on."""
    config = file.config

    def dirs() -> list[Path]:
        return [Path(folder) for folder in facts.models_dirs]

    async def landed(folder: Path) -> None:
        if not any(folder.is_relative_to(served) for served in dirs()):
            await adopt(file.config)

    pulls = Pulls(
        config.downloads,
        dirs,
        loop.broadcast,
        os.environ,
        state_dir=config.server.state_dir,
        prefers_gguf=lambda: engines_here(file.config) <= {"llamacpp"},
        landed=landed,
    )
    removals = Removals(
        lambda: watching.inventory.found,
        lambda: {spec.id for spec in file.config.models},
        dirs,
        lambda model: loop.scheduler.models[model].state.value,
    )
    return pulls, removals


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
            self._loop.call_soon_threadsafe(self._yard.loop.cut)
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
