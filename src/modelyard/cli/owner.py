"""Who writes into the configuration file: the server that runs with it, else we ourselves.

Laws of this file:
- A running server owns its file; nobody else writes it.
- Without one the file is written here, by the same code and after the same checks.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.cli.configure import load_config
from modelyard.cli.exits import BadUsage
from modelyard.cli.output import note

if TYPE_CHECKING:
    from modelyard.client import Client
    from modelyard.config import Config
    from modelyard.core.specs import ModelSpec
    from modelyard.runtime.config_file import ConfigFile


def owner(url: str | None, config: Path | None) -> Client | None:
    """The server that owns the file; None if there is none."""
    from modelyard.client import Client
    from modelyard.client.errors import ServerNotRunning

    client = Client(url)
    try:
        info = client.info()
    except ServerNotRunning:
        client.close()
        if url is not None:
            raise
        return None
    if config is None or _same(config, info.config_path):
        return client
    client.close()
    if url is not None:
        raise BadUsage(f"the server at {url} uses {info.config_path or 'no file'}, not {config}")
    note(f"the running server uses another file; {config} is written without it")
    return None


def file_here(config: Path | None) -> tuple[ConfigFile, list[ModelSpec]]:
    """The configuration file, and the models that it declares or lets be found."""
    from modelyard.app import engine_problems
    from modelyard.runtime.config_file import ConfigFile
    from modelyard.runtime.inventory import Inventory

    def read(path: Path | None, content: bytes | None) -> Config:
        return load_config(path or config, content=content)

    async def adopt(_: Config) -> None:
        """Nobody runs who would have to follow it."""

    chosen = load_config(config)
    specs = Inventory(chosen).read()
    by_id = {spec.id: spec for spec in specs}
    return ConfigFile(chosen, read, engine_problems, adopt, lambda: by_id), specs


def _same(config: Path, path: str | None) -> bool:
    return path is not None and os.path.realpath(config) == os.path.realpath(path)
