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
from modelyard.runtime.tasks import Tasks


class Watching:
    """Tells `changed` which models there are, whenever that changes."""

    def __init__(
        self,
        inventory: Inventory,
        models: Sequence[ModelSpec],
        changed: Callable[[Sequence[ModelSpec]], None],
        tasks: Tasks,
    ) -> None:
        self.inventory = inventory
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

    async def follow(self, config: Config) -> None:
        """Serve and watch the models of this configuration in place of those so far."""
        fresh = Inventory(config)
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
