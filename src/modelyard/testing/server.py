"""A whole server inside a test's own event loop, so that its leases and tasks can be looked at.

Laws of this file:
- Everything is real: sockets, engine processes, the launcher. Only the listener's port is chosen by
  the system and the state folder is the caller's.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from modelyard.app import Yard, listening
from modelyard.config import Config, Server
from modelyard.core.specs import Limits, ModelSpec, Task
from modelyard.devices.base import Probe

DEMO_MODELS = Path(str(files("modelyard"))) / "demo_models"
FAKE_TASKS = frozenset({Task.CHAT, Task.COMPLETION})


@dataclass(frozen=True, slots=True)
class Running:
    """A server that takes requests at `url`."""

    url: str
    port: int
    yard: Yard


@asynccontextmanager
async def running(
    config: Config,
    state_dir: Path,
    *,
    devices: Sequence[Probe] | None = None,
    **settings: object,
) -> AsyncIterator[Running]:
    """Serve `config` on a free port; `settings` replace fields of `config.server`.

    `devices` finds the devices in place of this machine's own probes.
    """
    wanted = {"port": 0, "state_dir": state_dir, "shutdown_timeout_s": 5.0, **settings}
    server: Server = replace(config.server, **wanted)  # type: ignore[arg-type]  # checked by fields
    async with listening(replace(config, server=server), devices) as (yard, _):
        port = int(yard.facts.url.rpartition(":")[2])
        yield Running(yard.facts.url, port, yard)


def fake_model(
    name: str,
    *arguments: str,
    tasks: frozenset[Task] = FAKE_TASKS,
    mib: int = 10,
    limits: Limits | None = None,
) -> ModelSpec:
    """A model whose engine is the fake one, started with `arguments`."""
    command = (sys.executable, "-m", "modelyard.testing.fake_engine", "--port", "{port}")
    return ModelSpec(
        name,
        "command",
        tasks,
        command=(*command, "--model", name, *arguments),
        estimate_mib=mib,
        limits=limits or Limits(stop_grace_s=2.0),
    )
