"""The models of the configuration in force: read, watched, and exchanged for those of another.

Laws of this file:
- One inventory counts at a time; late news of one that was replaced is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from modelyard.config import Config
from modelyard.core.specs import ModelSpec
from modelyard.runtime.inventory import Inventory
from modelyard.runtime.remote_lists import RemoteLists
from modelyard.runtime.tasks import Tasks


class Watching:
    """Tells `changed` which models there are, whenever that changes."""

    def __init__(
        self,
        inventory: Inventory,
        models: Sequence[ModelSpec],
        changed: Callable[[Sequence[ModelSpec]], None],
        tasks: Tasks,
        remotes: RemoteLists,
    ) -> None:
        self.inventory = inventory
        self._remotes = remotes
        self.models = models
        """Those that were told last."""
        self._changed = changed
        self._tasks = tasks

    def begin(self) -> None:
        """Watch the folders of the inventory from now on."""
        inventory = self.inventory

        def heard(models: Sequence[ModelSpec]) -> None:
            if inventory is self.inventory:
                self._tell(models)

        self._tasks.spawn(inventory.watch(heard), "watch the models folders")

    def relisted(self) -> None:
        """A remote has listed other models than before."""
        self._tasks.spawn(self._look_again(), "serve what a remote lists")

    async def _look_again(self) -> None:
        inventory = self.inventory
        models = await asyncio.to_thread(inventory.read)
        if inventory is self.inventory:
            self._tell(models)

    async def follow(self, config: Config) -> None:
        """Serve and watch the models of this configuration in place of those so far."""
        await self._remotes.follow(config.remotes)
        fresh = Inventory(config, self._remotes)
        models = await asyncio.to_thread(fresh.read)
        self.inventory.close()
        self.inventory = fresh
        self._tell(models)
        self.begin()

    def _tell(self, models: Sequence[ModelSpec]) -> None:
        self.models = models
        self._changed(models)

    def close(self) -> None:
        self.inventory.close()
