"""Repositories by their id: where one lies that some program has fetched already.

Laws of this file:
- Read only, and without the network.
- The cache is found as `huggingface_hub` finds it (its `constants.py`): `HF_HUB_CACHE`, the older
  `HUGGINGFACE_HUB_CACHE`, `hub` below `HF_HOME`, below `XDG_CACHE_HOME`, below `~/.cache`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from modelyard.catalog.folders import Walk
from modelyard.catalog.stores import repository_of


def hub_cache(env: Mapping[str, str]) -> Path:
    """The folder in which the hub's library keeps what it fetches. It may not exist."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if env.get(name):
            return Path(env[name]).expanduser()
    if env.get("HF_HOME"):
        return Path(env["HF_HOME"]).expanduser() / "hub"
    caches = env.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches).expanduser() / "huggingface" / "hub"


def find_repository(repository: str, folders: Iterable[Path]) -> Path | None:
    """The folder with the files of a repository, in the first of `folders` that has them.

    Each of `folders` is a cache in the hub's layout, or holds folders `ORG/NAME`.
    """
    for folder in folders:
        cached = Walk().look(folder / f"models--{repository.replace('/', '--')}")
        found = repository_of(cached) if cached is not None else None
        if found is not None and found.snapshot is not None:
            return found.snapshot
        if (folder / repository).is_dir():
            return folder / repository
    return None
