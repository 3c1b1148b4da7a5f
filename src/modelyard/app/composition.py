"""The composition root: builds every part once, starts it, stops it in order. No globals.

Laws of this file:
- Start: end leftovers of dead servers; read devices, models and what was learned; then the loop,
  and what asks it. Stop: in the order of the `finally` of `build`.
- A configuration that was read anew reaches every part that depends on it by `_Followers.adopt`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI

from modelyard.app.engines import build_engines, engine_problems, engine_versions, uses_cards
from modelyard.config import Config
from modelyard.config.rules import is_loopback
from modelyard.config.secrets import secrets_of
from modelyard.core.specs import ModelSpec
from modelyard.devices import probes
from modelyard.devices.base import Probe
from modelyard.engines.remote import Remote
from modelyard.http import admin
from modelyard.http.access import Access
from modelyard.http.captures import Captures
from modelyard.http.gateway import Gateway
from modelyard.http.origin import Door
from modelyard.launchers.leftovers import end_leftovers
from modelyard.launchers.local import LocalLauncher
from modelyard.launchers.memory import host_mib
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
from modelyard.runtime.sampling import Sample, Sampler
from modelyard.runtime.tasks import Tasks
from modelyard.runtime.vllm_here import VllmHere
from modelyard.runtime.watching import Watching
from modelyard.store.sealing import Seal

log = logging.getLogger("modelyard")

LEFTOVER_GRACE_S = 2.0
AUTO_FILE = "auto.json"
"""In the state folder: the steps that models with `auto: true` took."""


@dataclass(slots=True)
class Yard:
    """The built parts that somebody outside needs."""

    loop: Loop
    gateway: Gateway
    inventory: Inventory
    facts: admin.Facts
    asgi: FastAPI


@dataclass(frozen=True, slots=True)
class _Findings:
    """What there was when the server began: models, devices, and what was learned of them."""

    inventory: Inventory
    models: Sequence[ModelSpec]
    remotes: RemoteLists
    sampler: Sampler
    sample: Sample
    learning: Learning


@dataclass(frozen=True, slots=True)
class _Followers:
    """The parts that follow the configuration when it is read anew."""

    here: VllmHere
    seal: Seal
    loop: Loop
    access: Access
    captures: Captures
    watching: Watching
    advisor: Advisor
    facts: admin.Facts

    async def adopt(self, new: Config) -> None:
        """Serve by this configuration from now on."""
        await asyncio.to_thread(self.here.look, new)
        whole = with_downloads(new)
        self.access.update(new.keys)
        self.loop.virtuals_changed(new.virtuals)
        secrets = await asyncio.to_thread(secrets_of, new, self.seal.reveal)
        self.captures.follow(new.captures, secrets)
        await self.watching.follow(whole)
        await self.advisor.settle()
        self.facts.config_path = str(new.path) if new.path else None
        self.facts.models_dirs = [str(folder) for folder in whole.models_dirs]
        self.facts.problems = self.watching.inventory.problems

    def served(self) -> dict[str, ModelSpec]:
        """The models that are served now."""
        return {spec.id: spec for spec in self.watching.models}


@contextlib.asynccontextmanager
async def build(
    config: Config,
    url: str,
    here: VllmHere,
    devices: Sequence[Probe] | None = None,
    read: Read = unread,
) -> AsyncIterator[Yard]:
    """All parts, started but for the listener. On leaving the block nothing of them is left."""
    await _end_leftovers()
    tasks, broadcast = Tasks(), Broadcast()
    launcher = LocalLauncher(config.server.state_dir / "logs")
    found = await _find(config, here, devices)
    advisor = Advisor(
        config.server.state_dir / AUTO_FILE,
        lambda: loop.scheduler.devices,
        lambda model: machine_here(loop, but=model),
        lambda: tuple(watching.inventory.found),
        lambda spec: uses_cards(config, here, spec),
        lambda specs: loop.models_changed(here.completed(specs)),
        tasks,
    )
    loop = _loop(config, here, found, launcher, broadcast, advisor)
    here.devices = lambda: loop.scheduler.devices
    seal = Seal(config.server.state_dir)
    access = Access(config.keys, is_loopback=is_loopback(config.server.host))
    captures = Captures(config.captures, secrets_of(config, seal.reveal))
    door = Door(config.server.host, config.server.allowed_hosts, config.server.cors_origins)
    gateway = Gateway(loop, config.server, door, access, captures)
    watching = Watching(found.inventory, found.models, advisor.follow, tasks, found.remotes)
    facts = _facts(config, url, gateway, watching)
    await advisor.begin(found.models)
    watching.begin()
    found.remotes.begin(watching.relisted)
    followers = _Followers(here, seal, loop, access, captures, watching, advisor, facts)
    file = ConfigFile(config, read, engine_problems, followers.adopt, followers.served)
    pulls, removals = _downloads(loop, facts, file, watching, followers.adopt)
    tasks.spawn(loop.device_watch.watch(config.devices.sample_every_s), "read the devices")
    gauges = loop.supervisor.watch_gauges(config.scheduling.read_gauges_every_s)
    tasks.spawn(gauges, "read the gauges")
    try:
        asgi = admin.build(loop, facts, gateway, file, pulls, removals)
        yield Yard(loop, gateway, found.inventory, facts, asgi)
    finally:
        await pulls.close()
        await found.remotes.close()
        watching.close()
        broadcast.close()
        await tasks.close()
        await loop.close(0.0)
        await gateway.close()
        await launcher.close()
        await found.learning.close()


async def _end_leftovers() -> None:
    for ended in await asyncio.to_thread(end_leftovers, LEFTOVER_GRACE_S):
        command = " ".join(ended.cmdline)
        log.warning("ended process %d, left behind by a former server: %s", ended.pid, command)


async def _find(config: Config, here: VllmHere, devices: Sequence[Probe] | None) -> _Findings:
    state_dir = config.server.state_dir
    remotes = RemoteLists(Remote(Seal(state_dir).reveal), state_dir)
    await asyncio.to_thread(remotes.open, config.remotes)
    inventory = Inventory(with_downloads(config), remotes)
    sampler = Sampler(probes() if devices is None else devices, config.devices, host_mib)
    versions = engine_versions(config, here)
    learning = Learning(state_dir / "modelyard.db", versions, config.scheduling.rate_memory_s)
    sample, models, _ = await asyncio.gather(
        sampler.sample(()), asyncio.to_thread(inventory.read), learning.open()
    )
    for problem in inventory.problems:
        log.warning("%s", problem)
    return _Findings(inventory, models, remotes, sampler, sample, learning)


def _loop(
    config: Config,
    here: VllmHere,
    found: _Findings,
    launcher: LocalLauncher,
    broadcast: Broadcast,
    advisor: Advisor,
) -> Loop:
    sockets = SocketFolders(config.server.state_dir)
    sockets.sweep()
    loop = Loop(
        config.scheduling,
        found.sample.devices,
        build_engines(config, here),
        launcher,
        broadcast,
        found.sampler,
        found.learning,
        sockets,
        advisor,
    )
    loop.device_watch.readings = found.sample.readings
    loop.virtuals_changed(config.virtuals)
    return loop


def _facts(config: Config, url: str, gateway: Gateway, watching: Watching) -> admin.Facts:
    return admin.Facts(
        url=url,
        config_path=str(config.path) if config.path else None,
        models_dirs=[str(folder) for folder in with_downloads(config).models_dirs],
        answered=lambda: gateway.answered,
        problems=watching.inventory.problems,
        found=lambda: tuple(watching.inventory.found),
        reserve_mib=config.devices.reserve_mib,
        list_aliases=config.server.list_aliases,
    )


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
