"""Requests that people can look at and cancel.

Laws of this file:
- What is shown is what the exchanges and their records say; nothing is kept for it.
- To cancel is to end the exchange: its connection to the engine is closed at once, which is what
  stops an engine, and the client is told why.
- An id may be the client's own, so several requests may have it: they are cancelled together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query

from modelyard.core.errors import NotFound
from modelyard.core.views import RequestsView, RequestView
from modelyard.http.record import KEPT, Record, Records

if TYPE_CHECKING:
    from modelyard.http.turns import Active

SHOWN = 100
"""Finished requests that are shown unless more are asked for."""


def routes(active: Callable[[], Iterable[Active]], records: Records) -> APIRouter:
    """`active` gives the exchanges under way."""
    router = APIRouter(prefix="/api/requests", tags=["requests"])

    @router.get("")
    async def requests(last: Annotated[int, Query(ge=0, le=KEPT)] = SHOWN) -> RequestsView:
        """Requests under way, and the newest that are over."""
        now = time.time()
        exchanges = sorted(active(), key=lambda exchange: exchange.record.arrived)
        return RequestsView(
            running=[_running(exchange, now) for exchange in exchanges],
            finished=[_finished(record) for record in records.newest(last)],
            dropped=records.dropped,
        )

    @router.delete("/{request:path}")
    async def cancel(request: str) -> list[RequestView]:
        """End a request that is under way; its client is told so."""
        meant = [exchange for exchange in active() if exchange.record.id == request]
        if not meant:
            raise NotFound(f"no request {request[:200]!r} is under way")
        for exchange in meant:
            exchange.cancel()
        return [_finished(exchange.record) for exchange in meant]

    return router


def _running(exchange: Active, now: float) -> RequestView:
    record = exchange.record
    passed = max(0.0, now - record.arrived)
    state = exchange.phase.name.lower()
    waits = state in ("reading", "waiting")
    return _view(record, state, passed if waits else record.queue_s, passed)


def _finished(record: Record) -> RequestView:
    return _view(record, "done", record.queue_s, record.total_s)


def _view(record: Record, state: str, waited_s: float, total_s: float) -> RequestView:
    return RequestView(
        id=record.id,
        state=state,
        route=record.route,
        arrived_at=record.arrived,
        key=record.key,
        client=record.client,
        model=record.model,
        named=record.named,
        stream=record.stream,
        waited_s=round(waited_s, 6),
        first_s=record.first_s,
        total_s=round(total_s, 6),
        status=record.status,
        error=record.error,
        prompt_tokens=record.prompt_tokens,
        completion_tokens=record.completion_tokens or record.parts,
        estimated=record.estimated,
    )
