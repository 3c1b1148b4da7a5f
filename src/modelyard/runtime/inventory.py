"""Which models there are: the declared ones, completed from their files, and those in the folders.

Laws of this file:
- A declared model wins over a found one of the same id or the same file.
- A declared model whose file cannot be read is still listed: starting it tells the reason.
- Folders are read off the event loop, and only their news changes anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from modelyard.catalog.checkpoint import HeaderCache
from modelyard.catalog.choice import TRANSFORMERS, VLLM
from modelyard.catalog.discover import DEFAULT_ENGINES, scan
from modelyard.catalog.errors import BadModelFile
from modelyard.catalog.found import FoundModel
from modelyard.catalog.hub_cache import find_repository, hub_cache
from modelyard.catalog.specs import WITHOUT_FILES, complete
from modelyard.catalog.watch import changes
from modelyard.config import Config
from modelyard.config.values import OPAQUE_PRESETS, PRESETS
from modelyard.core.specs import ModelSpec, Task
from modelyard.engines.sleeping import with_levels
from modelyard.runtime.remote_lists import RemoteLists
from modelyard.runtime.vllm_lookup import Lookup

log = logging.getLogger("modelyard")

LOOK_S = 30.0
"""How often folders are read anew where changes cannot be watched."""

_TRANSFORMERS_NEEDS = ("torch", "transformers", "sentence_transformers")

UNREADABLE_SERVES = frozenset({Task.CHAT, Task.COMPLETION})
"""Tasks assumed of a declared model whose file cannot be read and which declares none."""


class Inventory:
    """The models of a configuration and its folders."""

    def __init__(
        self,
        config: Config,
        remotes: RemoteLists | None = None,
        *,
        engines: Collection[str] | None = None,
    ) -> None:
        """`remotes` knows the models of other people's endpoints, None if there are none.

        `engines` are those that found models may be given; None looks which are here.
        """
        self.problems: list[str] = []
        """Files and folders that could not be used, and why."""
        self.found: list[FoundModel] = []
        """What is known of the models that the folders hold, declared ones included."""
        self._engines = engines
        self._config = config
        self._remotes = remotes
        self._reading = threading.Lock()
        self._headers = HeaderCache()
        self._stop = asyncio.Event()

    def read(self) -> list[ModelSpec]:
        """Look at everything once. Blocks on the disk: call it in a thread."""
        with self._reading:
            return self._read()

    def _read(self) -> list[ModelSpec]:
        problems: list[str] = []
        declared = [self._completed(spec, problems) for spec in self._config.models]
        engines = engines_here(self._config) if self._engines is None else self._engines
        found = scan(self._config.models_dirs, headers=self._headers, engines=engines)
        problems += [f"{problem.path}: {problem.reason}" for problem in found.problems]
        models = declared + _undeclared(found.models, self._config, declared)
        if self._remotes is not None:
            taken = {name for spec in models for name in (spec.id, *spec.aliases)}
            elsewhere, troubles = self._remotes.specs(self._config.limits, taken)
            models += elsewhere
            problems += troubles
        self.problems[:] = problems
        self.found[:] = found.found
        return models

    async def watch(self, changed: Callable[[Sequence[ModelSpec]], None]) -> None:
        """Tell `changed` about the models whenever a folder or a declared file has changed, until
        `close`."""
        if not self._config.models_dirs and not self._declared:
            return
        known = set(self.problems)
        async for _ in self._changes():
            changed(await asyncio.to_thread(self.read))
            for problem in sorted(set(self.problems) - known):
                log.warning("%s", problem)
            known = set(self.problems)

    async def _changes(self) -> AsyncIterator[None]:
        """News of the folders; where the system cannot watch any more, a look now and then."""
        try:
            dirs, files = self._config.models_dirs, self._declared
            async for _ in changes(dirs, files=files, stop=self._stop):
                yield
        except OSError as error:
            log.warning("cannot watch the models folders (%s); looking every %g s", error, LOOK_S)
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), LOOK_S)
            yield

    def close(self) -> None:
        self._stop.set()

    @property
    def _declared(self) -> tuple[Path, ...]:
        """Sources of declared models; those inside a models folder are watched with it."""
        sources = (
            Path(spec.source).expanduser().absolute()
            for spec in self._config.models
            if spec.source and _has_files(spec)
        )
        dirs = self._config.models_dirs
        return tuple(path for path in sources if not any(path.is_relative_to(d) for d in dirs))

    def _completed(self, spec: ModelSpec, problems: list[str]) -> ModelSpec:
        if not _has_files(spec):
            return with_levels(spec)
        try:
            located = self._located(spec)
            if spec.repository is not None and located.source == spec.repository:
                return with_levels(replace(located, tasks=spec.tasks or UNREADABLE_SERVES))
            return with_levels(complete(located, headers=self._headers))
        except BadModelFile as error:
            problems.append(f"model {spec.id}: {error}")
            return replace(spec, tasks=spec.tasks or UNREADABLE_SERVES)

    def _located(self, spec: ModelSpec) -> ModelSpec:
        """The spec with the place of its files, where `source` is the id of a repository.

        What nobody has fetched yet is left to engines that fetch by themselves. Raises BadModelFile
        for the others, and where nothing may be fetched.
        """
        source = Path(spec.source or "")
        if spec.repository is None or source.exists():
            return spec
        found = find_repository(spec.repository, [*self._config.models_dirs, hub_cache(os.environ)])
        if found is not None:
            return replace(spec, source=str(found))
        may_fetch = not (self._config.downloads.offline or os.environ.get("HF_HUB_OFFLINE"))
        if may_fetch and (spec.engine == VLLM or spec.engine in PRESETS):
            return replace(spec, source=spec.repository)
        reason = (
            "there is no such folder, and the repository of this name is not in the hub's cache"
        )
        raise BadModelFile(source, reason, hint=f"fetch it: modelyard pull {spec.repository}")


def engines_here(config: Config) -> frozenset[str]:
    """The engines that models found in folders can be given: llama.cpp, and those that are
    installed or configured. Looks at the disk and starts nothing."""
    engines = set(DEFAULT_ENGINES)
    if Lookup(config.engines.vllm, config.server.state_dir, os.environ).unasked().launch:
        engines.add(VLLM)
    if all(importlib.util.find_spec(name) is not None for name in _TRANSFORMERS_NEEDS):
        engines.add(TRANSFORMERS)
    return frozenset(engines)


def _has_files(spec: ModelSpec) -> bool:
    """Whether there are files of the model that the catalog could read."""
    if spec.engine in WITHOUT_FILES or spec.engine in OPAQUE_PRESETS:
        return False
    return spec.source is not None or spec.engine not in PRESETS


def _undeclared(
    found: Sequence[ModelSpec], config: Config, declared: Sequence[ModelSpec]
) -> list[ModelSpec]:
    names = {name for spec in declared for name in (spec.id, *spec.aliases)}
    files = {spec.source for spec in declared}
    return [
        replace(
            spec,
            limits=config.limits,
            aliases=tuple(alias for alias in spec.aliases if alias not in names),
        )
        for spec in found
        if spec.id not in names and spec.source not in files
    ]
