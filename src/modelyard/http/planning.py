"""The routes of plans: whether a model fits here or on named hardware, and how to run it.

Laws of this file:
- A plan changes nothing, and it reads only the files of models that the server serves: a request
  names a model, never a path.
- It is reckoned in a thread, because it may read headers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query

from modelyard.catalog.found import FoundModel
from modelyard.catalog.specs import WITHOUT_FILES
from modelyard.config.plans import Ask, PlanView
from modelyard.core.errors import InvalidRequest
from modelyard.core.specs import ModelSpec
from modelyard.planner.locate import models_at
from modelyard.planner.machine import machine_named
from modelyard.planner.plan import make_plan, view_of
from modelyard.runtime.loop import Loop
from modelyard.runtime.machine_here import machine_here

Catalogued = Callable[[], Sequence[FoundModel]]
"""The models that the folders hold now."""

_LONGEST = 400


@dataclass(frozen=True, slots=True)
class Question:
    """The body of a POST: a model, and what `config.plans.Ask` says."""

    model: str
    gpus: str | None = None
    ram_mib: int | None = None
    context: int | None = None
    concurrency: int | None = None
    engine: str | None = None


def routes(yard: Loop, catalogued: Catalogued, reserve_mib: int) -> APIRouter:
    """The routes under /api/plan; `reserve_mib` stays free on cards that are named."""
    router = APIRouter(prefix="/api", tags=["plans"])

    async def planned(model: str, ask: Ask) -> PlanView:
        found = catalogued()
        spec = yard.names.resolve(model)
        is_variant = any(each.base == model and each.id != model for each in found)
        if ask.gpus is not None:
            machine = machine_named(ask.gpus, ask.ram_mib, reserve_mib)
        else:
            machine = machine_here(yard)

        def reckoned() -> PlanView:
            one, beside = _found(spec, found)
            return view_of(make_plan(one, machine, ask, beside=beside, any_variant=is_variant))

        return await asyncio.to_thread(reckoned)

    @router.get("/plan")
    async def plan(
        model: Annotated[str, Query(description="id or alias", max_length=_LONGEST)],
        gpus: Annotated[
            str | None,
            Query(description="`2x RTX 4090`; these devices if empty", max_length=_LONGEST),
        ] = None,
        context: int | None = None,
        concurrency: int | None = None,
        engine: Annotated[str | None, Query(max_length=_LONGEST)] = None,
        ram_mib: int | None = None,
    ) -> PlanView:
        """Whether a model fits on this machine or on named cards, and how to run it there."""
        return await planned(model, Ask(gpus or None, ram_mib, context, concurrency, engine))

    @router.post("/plan")
    async def plan_of(wanted: Question) -> PlanView:
        """The same, asked in a body."""
        ask = Ask(
            wanted.gpus or None, wanted.ram_mib, wanted.context, wanted.concurrency, wanted.engine
        )
        return await planned(wanted.model, ask)

    return router


def _found(spec: ModelSpec, found: Sequence[FoundModel]) -> tuple[FoundModel, Sequence[FoundModel]]:
    for each in found:
        if str(each.source) == spec.source:
            return each, found
    if spec.engine in WITHOUT_FILES or spec.source is None:
        raise InvalidRequest(f"{spec.id} has no files that could be planned for", param="model")
    return models_at(Path(spec.source))
