"""The virtual models in the admin API: whom they stand for, and the mode that holds.

Laws of this file:
- Switching the mode changes who is asked from the next request on; it loads and stops nothing.
"""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from modelyard.core.views import ModesView
from modelyard.runtime.loop import Loop


class WantedMode(BaseModel):
    """The mode that is to hold; empty for none."""

    mode: str = ""


def routes(yard: Loop) -> APIRouter:
    router = APIRouter(prefix="/api", tags=["virtual models"])

    def modes() -> ModesView:
        virtuals = yard.virtuals
        return ModesView(
            virtuals.mode,
            virtuals.modes,
            [virtuals.view(each, yard.names, yard.scheduler) for each in virtuals.known],
        )

    @router.get("/modes")
    async def show() -> ModesView:
        """The mode that holds, those that there are, and whom each virtual model stands for."""
        return modes()

    @router.put("/modes")
    async def switch(wanted: WantedMode) -> ModesView:
        """Have another mode hold: `{"mode": "night"}`; an empty one is the usual."""
        yard.virtuals.switch(wanted.mode)
        return modes()

    return router
