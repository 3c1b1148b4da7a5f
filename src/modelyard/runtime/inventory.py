"""Which models there are: the declared ones, completed from their files, and those in the folders.

Laws of this file:
- A declared model wins over a found one of the same id or the same file.
- A declared model whose file cannot be read is still listed: starting it tells the reason.
- Folders are read off the event loop, and only their news changes anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from modelyard.catalog.checkpoint import HeaderCache
from modelyard.catalog.discover import complete, scan
from modelyard.catalog.errors import BadModelFile
from modelyard.catalog.watch import changes
from modelyard.config import Config
from modelyard.core.specs import ModelSpec, Task
from modelyard.engines.sleeping import with_levels

log = logging.getLogger("modelyard")

LOOK_S = 30.0
"""How often folders are read anew where changes cannot be watched."""

UNREADABLE_SERVES = frozenset({Task.CHAT, Task.COMPLETION})
"""Tasks assumed of a declared model whose file cannot be read and which declares none."""


class Inventory:
    """The models of a configuration and its folders."""

    def __init__(self, config: Config) -> None:
        self.problems: list[str] = []
        """Files and folders that could not be used, and why."""
        self._config = config
        self._headers = HeaderCache()
        self._stop = asyncio.Event()

    def read(self) -> list[ModelSpec]:
        """Look at everything once. Blocks on the disk: call it in a thread."""
        problems: list[str] = []
        declared = [self._completed(spec, problems) for spec in self._config.models]
        found = scan(self._config.models_dirs, headers=self._headers)
        problems += [f"{problem.path}: {problem.reason}" for problem in found.problems]
        models = declared + _undeclared(found.models, self._config, declared)
        self.problems[:] = problems
        return models

    async def watch(self, changed: Callable[[Sequence[ModelSpec]], None]) -> None:
        """Tell `changed` about the models whenever a folder has changed, until `close`."""
        if not self._config.models_dirs:
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
            async for _ in changes(self._config.models_dirs, stop=self._stop):
                yield
        except OSError as error:
            log.warning("cannot watch the models folders (%s); looking every %g s", error, LOOK_S)
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), LOOK_S)
            yield

    def close(self) -> None:
        self._stop.set()

    def _completed(self, spec: ModelSpec, problems: list[str]) -> ModelSpec:
        if spec.engine != "llamacpp":
            return with_levels(spec)
        try:
            return complete(spec, headers=self._headers)
        except BadModelFile as error:
            problems.append(f"model {spec.id}: {error}")
            return replace(spec, tasks=spec.tasks or UNREADABLE_SERVES)


def _undeclared(
    found: Sequence[ModelSpec], config: Config, declared: Sequence[ModelSpec]
) -> list[ModelSpec]:
    names = {name for spec in declared for name in (spec.id, *spec.aliases)}
    files = {spec.source for spec in declared}
    return [
        replace(spec, limits=config.limits)
        for spec in found
        if spec.id not in names and spec.source not in files
    ]
