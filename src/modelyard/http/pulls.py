"""The admin API of downloads: orders, how they go, and the removal of a model's files.

Laws of this file:
- An order is answered at once; `/api/events` and `/api/pulls` tell how it goes.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from modelyard.config.pulling import PullView, PullWanted, Removal
from modelyard.runtime.loop import Loop
from modelyard.runtime.pulls import Pulls
from modelyard.runtime.removals import Removals


def routes(yard: Loop, pulls: Pulls, removals: Removals) -> APIRouter:
    """`/api/pulls`, and `/api/models/ID/files`."""
    router = APIRouter(prefix="/api", tags=["downloads"])

    @router.post("/pulls", status_code=202)
    async def pull(wanted: PullWanted) -> PullView:
        """Fetch a model from a hub into a models folder. The same order twice is one download."""
        return pulls.start(wanted)

    @router.get("/pulls")
    async def all_pulls() -> list[PullView]:
        """Downloads that wait or run, and the last ones that ended."""
        return pulls.views()

    @router.get("/pulls/{pull_id}")
    async def one_pull(pull_id: str) -> PullView:
        """One download."""
        return pulls.view(pull_id)

    @router.delete("/pulls/{pull_id}")
    async def cancel(pull_id: str) -> PullView:
        """End a download. What was fetched is kept, and the same order goes on from there."""
        return pulls.cancel(pull_id)

    @router.delete("/models/{model:path}/files")
    async def remove(
        model: str,
        force: Annotated[bool, Query(description="also of a declared model")] = False,
        dry_run: Annotated[bool, Query(description="only say what would be removed")] = False,
    ) -> Removal:
        """Remove a model's files from the models folders. A model that runs keeps them."""
        return await removals.remove(yard.names.resolve(model), force=force, dry_run=dry_run)

    return router
