"""Many clients, more models than fit: everybody is served, nothing is left."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import httpx
import pytest
from tests.conftest import Serve

from modelyard.catalog.discover import scan
from modelyard.testing.server import DEMO_MODELS

pytestmark = pytest.mark.usefixtures("nothing_left")

CLIENTS = 50
REQUESTS_EACH = 3

REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "yard-chat": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 12},
    ),
    "yard-embed": ("/v1/embeddings", {"input": "a cat on a mat"}),
    "yard-rerank": ("/v1/rerank", {"query": "cat", "documents": ["a dog", "a cat"]}),
}


async def test_fifty_clients_over_three_models_of_which_two_fit(serve: Serve) -> None:
    sizes = sorted(spec.estimate_mib or 0 for spec in scan([DEMO_MODELS]).models)
    budget = sizes[-1] + sizes[-2] + 1
    assert sum(sizes) > budget, "all three fit: the test shows nothing"
    async with serve(dirs=(DEMO_MODELS,), mib=budget, fair_after_s=1) as server:
        timeout = httpx.Timeout(120, pool=None)
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.url, timeout=timeout, limits=limits) as http:
            statuses = await asyncio.gather(*(_client(http, seed) for seed in range(CLIENTS)))
        loop = server.yard.loop

        assert {200} == {status for each in statuses for status in each}
        assert loop.loads > 3, "nothing was swapped"
        assert all(slot.in_flight == 0 for slot in loop.scheduler.models.values())
        assert all(run.upstream.leases == 0 for run in loop.runs.values())
        assert set() == server.yard.gateway.active
        assert loop.waiting == 0


async def _client(http: httpx.AsyncClient, seed: int) -> list[int]:
    chance = random.Random(seed)
    statuses = []
    for _ in range(REQUESTS_EACH):
        model = chance.choice(list(REQUESTS))
        path, request = REQUESTS[model]
        answer = await http.post(path, json={"model": model, **request})
        statuses.append(answer.status_code)
        await asyncio.sleep(chance.random() * 0.05)
    return statuses
