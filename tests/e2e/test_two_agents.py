"""Two agents that alternate between two models, of which memory holds one.

Real models on the real llama.cpp. The bound of waiting that is asserted is the scheduler's own
promise (`core/policy.py`), computed from what starts, stops and answers took in this very run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import cycle, islice
from typing import Any

import httpx
import pytest
from tests.conftest import Serve
from tests.e2e.live_times import moves_of
from tests.e2e.live_trace import RecordingScheduler, Told, actions_of

from modelyard.catalog.discover import scan
from modelyard.core.demand import USUAL_SERVICE_S
from modelyard.core.events import Grant
from modelyard.core.planning import aged_after_s
from modelyard.core.swap import FULL, PLACES
from modelyard.testing.server import DEMO_MODELS, Running

pytestmark = pytest.mark.usefixtures("nothing_left")

CHAT, RERANK = "yard-chat", "yard-rerank"
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    CHAT: (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "What is 2 + 3?"}], "temperature": 0},
    ),
    RERANK: (
        "/v1/rerank",
        {
            "query": "How do I cook rice?",
            "documents": [
                "The train to the city leaves at noon.",
                "Rice is cooked in boiling water for fifteen minutes.",
            ],
        },
    ),
}
TURNS = 5
HURRIED_TURNS, HURRIED_EVERY_S = 20, 0.1
FAIR_AFTER_S = 1.0
AGENTS = 2


def budget_mib() -> int:
    """Room for either model, and not for both."""
    sizes = {spec.id: spec.estimate_mib or 0 for spec in scan([DEMO_MODELS]).models}
    budget = max(sizes[CHAT], sizes[RERANK]) + 1
    assert sizes[CHAT] + sizes[RERANK] > budget, "both fit: the test shows nothing"
    return budget


async def agent(server: Running, first: str, then: str) -> list[bool]:
    """Ask the two in turns, each time after the last answer; whether each answer was right."""
    async with httpx.AsyncClient(base_url=server.url, timeout=200) as http:
        return [await ask(http, model) for model in islice(cycle((first, then)), TURNS)]


async def hurried_agent(server: Running, first: str, then: str) -> list[bool]:
    """Ask the two in turns, without waiting for the answers."""
    asked = []
    async with httpx.AsyncClient(base_url=server.url, timeout=200) as http:
        for model in islice(cycle((first, then)), HURRIED_TURNS):
            asked.append(asyncio.create_task(ask(http, model)))
            await asyncio.sleep(HURRIED_EVERY_S)
        return await asyncio.gather(*asked)


async def ask(http: httpx.AsyncClient, model: str) -> bool:
    path, body = BODIES[model]
    answer = await http.post(path, json={"model": model, **body})
    return answer.status_code == 200 and is_right(model, answer.json())


def is_right(model: str, answer: dict[str, Any]) -> bool:
    if model == CHAT:
        return bool(answer["choices"][0]["message"]["content"] == "2 + 3 = 5.")
    best = max(answer["results"], key=lambda result: float(result["relevance_score"]))
    return bool(best["index"] == 1)


@pytest.mark.parametrize(
    ("agent", "starts"),
    [
        (agent, [(CHAT, RERANK), (CHAT, RERANK)]),
        (agent, [(CHAT, RERANK), (RERANK, CHAT)]),
        (hurried_agent, [(CHAT, RERANK), (RERANK, CHAT)]),
    ],
    ids=["in step", "against each other", "without waiting"],
)
async def test_two_agents_share_swaps_and_wait_no_longer_than_promised(
    serve: Serve,
    agent: Callable[[Running, str, str], Awaitable[list[bool]]],
    starts: Sequence[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("modelyard.runtime.loop.Scheduler", RecordingScheduler)
    async with serve(dirs=(DEMO_MODELS,), mib=budget_mib(), fair_after_s=FAIR_AFTER_S) as server:
        right = await asyncio.gather(*(agent(server, *start) for start in starts))
        scheduler = server.yard.loop.scheduler
        assert isinstance(scheduler, RecordingScheduler)
        waits = sorted(scheduler.pace.waits)
        promised = promise_s(scheduler, asyncio.get_running_loop().time())
        swaps = server.yard.loop.loads

    requests = sum(len(each) for each in right)
    print(f"{requests} requests, {swaps} swaps; waits: mean {sum(waits) / len(waits):.2f} s,")
    print(f"longest {waits[-1]:.2f} s, promised {promised:.2f} s")
    assert all(all(each) for each in right)
    assert len(waits) == requests >= AGENTS * TURNS
    assert 2 <= swaps < requests
    assert waits[-1] <= promised


async def test_an_agent_alone_pays_a_swap_for_every_change(serve: Serve) -> None:
    async with serve(dirs=(DEMO_MODELS,), mib=budget_mib(), fair_after_s=FAIR_AFTER_S) as server:
        right = await agent(server, CHAT, RERANK)

        assert right == [True] * TURNS
        assert server.yard.loop.loads == TURNS


def promise_s(scheduler: RecordingScheduler, now: float) -> float:
    """The longest wait that the policy promises, from what everything took.

    Past twice the age bound nobody new gets the place of the one who waits; whoever has it just
    then may stay for `residency_factor` times the change, and ends what it has begun; then comes
    the change itself.
    """
    policy, pace, story = scheduler.policy, scheduler.pace, scheduler.told
    took = moves_of(story)
    up = max(seconds for (_, _, what), seconds in took.items() if what == "start")
    down = max(seconds for (_, _, what), seconds in took.items() if what == "stop")
    drain = longest_drain_s(story)
    service = max(USUAL_SERVICE_S, pace.service_s)  # believed in until answers have ended
    away = drain + down + up + service + down + up
    load = max(slot.demand.load(now) for slot in scheduler.models.values()) / PLACES
    age: float = max(aged_after_s(policy, pace), policy.away_factor * away / (1 - min(FULL, load)))
    promised: float = 2 * age + (1 + policy.residency_factor) * (up + down) + drain
    return promised


def longest_drain_s(story: Sequence[Told]) -> float:
    """The longest time from the last grant of a run to the end of what it served."""
    granted: dict[tuple[object, object], float] = {}
    longest = 0.0
    for told in story:
        if told.what == "lease" and isinstance(told.answer, int):
            granted[told.given[0], told.answer] = told.now
        elif told.what == "release":
            model, run, _ = told.given
            longest = max(longest, told.now - granted[model, run])
        for action in actions_of(told):
            if isinstance(action, Grant):
                granted[action.model, action.run] = told.now
    return longest
