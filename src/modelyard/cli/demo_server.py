"""The demo's server: a process of its own, with a configuration and a folder of its own.

Laws of this file:
- Nothing outlives the block: not the process (asked, then killed), not its engines (the server
  and its guard see to them), not the folder unless it is to be kept.
- Nothing of the user's counts: no configuration file, no `MODELYARD_*` variable.
- Should this process be killed, the server notices by its stdin and ends in order.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from modelyard.core.errors import LaunchError
from modelyard.core.specs import HOST_DEVICE, ModelSpec

if TYPE_CHECKING:
    from modelyard.cli.demo import Play

FIRST_PORT, LAST_PORT = 8080, 8180
LISTEN_PATIENCE_S = 30.0
STOP_PATIENCE_S = 15.0
"""Time for the server to end its engines before it is killed; they are small and idle."""

LARGEST_MARGIN_MIB = 64


def demo_models() -> list[ModelSpec]:
    """The models that come with the package. Raises LaunchError if some are not there."""
    from modelyard.catalog.discover import scan

    folder = models_folder()
    found = scan([folder])
    if len(found.models) < 3:
        problems = "; ".join(f"{problem.path}: {problem.reason}" for problem in found.problems)
        raise LaunchError(
            f"the demo needs three models in {folder} and found {len(found.models)}"
            f"{': ' if problems else ''}{problems}",
            hint="install the package again",
        )
    return sorted(found.models, key=lambda spec: spec.id)


def models_folder() -> Path:
    return Path(str(files("modelyard") / "demo_models"))


def budget_mib(models: list[ModelSpec]) -> int:
    """Memory that holds any two of three models, and never all."""
    smallest, *larger = sorted(spec.estimate_mib or 0 for spec in models)
    return sum(larger) + min(LARGEST_MARGIN_MIB, smallest // 2)


def free_port() -> int:
    """The first port from 8080 on that nobody listens on. Raises LaunchError."""
    for port in range(FIRST_PORT, LAST_PORT):
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
    raise LaunchError(
        f"all ports from {FIRST_PORT} to {LAST_PORT - 1} are taken", hint="choose one with --port"
    )


Settings: TypeAlias = Mapping[str, object]
"""A configuration as its file holds it."""


@contextmanager
def demo_server(port: int, play: Play, *, keep: bool) -> Iterator[Server]:
    """A server at `port` for what is to be played, as long as the block lasts."""
    folder = Path(tempfile.mkdtemp(prefix="modelyard-demo-"))
    try:
        config = {**_own_settings(folder, port), **play.settings(folder)}
        server = Server(folder, config, play.environment(folder))
        try:
            server.wait_until_listening()
            yield server
        finally:
            server.close()
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def tour_settings(budget: int) -> Settings:
    """The models of the package, with `budget` MiB of host memory."""
    return {
        "models_dirs": [str(models_folder())],
        "devices": {"budget": {HOST_DEVICE: f"{budget}MiB"}},
        "engines": {"llama_server": "builtin"},
    }


class Server:
    """The server's process. `close` it in any case."""

    def __init__(self, folder: Path, config: Settings, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.log = folder / "server.log"
        path = folder / "modelyard.yaml"
        path.write_text(json.dumps(config, indent=2))
        serve = ("-m", "modelyard.cli.tethered", "serve", "--json", "--config", str(path))
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                (sys.executable, *serve),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**_environment(), **environment},
                start_new_session=True,  # Ctrl-C is for us; we end the server in order
            )
        self.url = ""

    def wait_until_listening(self) -> None:
        """Read the address the server announces. Raises LaunchError if it does not come."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            announced = b""
            while True:
                if not selector.select(LISTEN_PATIENCE_S):
                    raise LaunchError(f"the server did not listen within {LISTEN_PATIENCE_S:g} s")
                part = os.read(self._process.stdout.fileno(), 65536)
                announced += part
                if not part:
                    raise LaunchError(f"the server ended at once:\n{self._last_words()}")
                try:
                    self.url = json.loads(announced)["url"]
                except ValueError:
                    continue  # not all of it yet
                return

    def wait(self) -> int:
        """Wait for the end of the server, whoever ends it."""
        return self._process.wait()

    def close(self) -> None:
        """End the server and whatever it started. A second Ctrl-C hastens it."""
        try:
            self._process.terminate()
            self._process.wait(STOP_PATIENCE_S)
        except subprocess.TimeoutExpired:
            pass  # killed below; the server's guard sees to its engines
        finally:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _last_words(self) -> str:
        return self.log.read_text(errors="replace").strip()[-2000:] or "it said nothing"


def _own_settings(folder: Path, port: int) -> Settings:
    return {
        "server": {
            "host": "127.0.0.1",
            "port": port,
            "state_dir": str(folder / "state"),
            "shutdown_timeout": "5s",
        }
    }


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("MODELYARD_")}
