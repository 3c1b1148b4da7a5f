"""Several replicas of one model, with real processes behind the gateway."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from modelyard.config import Config, Devices
from modelyard.core.lifecycle import State
from modelyard.core.policy import Policy
from modelyard.core.specs import Limits, Replicas
from modelyard.runtime.dialing import is_taken
from modelyard.testing.server import Running, fake_model, running

pytestmark = pytest.mark.usefixtures("nothing_left")

SLOW = ("--prefill", "300ms", "--tokens", "2")


def asked(text: str) -> dict[str, Any]:
    return {"model": "hot", "messages": [{"role": "user", "content": text}]}


@asynccontextmanager
async def hot_model(
    folder: Path, **fields: Any
) -> AsyncIterator[tuple[Running, httpx.AsyncClient]]:
    limits = Limits(concurrency=fields.pop("concurrency", 1), stop_grace_s=2.0)
    spec = replace(fake_model("hot", *SLOW, limits=limits), **fields)
    config = Config(
        models=(spec,),
        devices=Devices(budget_mib={"cpu": 100}),
        scheduling=Policy(scale_up_after_s=0.1, scale_down_after_s=0.5),
    )
    async with (
        running(config, folder / "state") as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
    ):
        yield server, http


def states(server: Running) -> list[State]:
    return [each.state for each in server.yard.loop.scheduler.models["hot"].replicas]


async def test_a_hot_model_gets_a_second_engine_and_gives_it_back(tmp_path: Path) -> None:
    statuses: list[int] = []

    async def ask_until_two_have_come(server: Running, http: httpx.AsyncClient) -> None:
        while server.yard.loop.loads < 2:
            answer = await http.post("/v1/chat/completions", json=asked("hello"))
            statuses.append(answer.status_code)

    async with hot_model(tmp_path, replicas=Replicas(0, 2)) as (server, http):
        async with asyncio.timeout(60):
            await asyncio.gather(*(ask_until_two_have_come(server, http) for _ in range(8)))
        most = server.yard.loop.loads
        async with asyncio.timeout(60):
            while states(server).count(State.READY) > 1:
                await asyncio.sleep(0.05)
        (view,) = (await http.get("/api/models")).json()

        assert set(statuses) == {200}
        assert most == 2
        assert [each["number"] for each in view["replicas"]] == [1, 2]


async def test_like_prompts_go_to_the_engine_that_knows_their_beginning(tmp_path: Path) -> None:
    async with hot_model(tmp_path, replicas=Replicas(2, 2), concurrency=4) as (server, http):
        async with asyncio.timeout(60):
            while states(server).count(State.READY) < 2:
                await asyncio.sleep(0.05)
        runs = server.yard.loop.runs
        for _ in range(4):
            await http.post("/v1/chat/completions", json=asked("the same beginning"))
        served = sorted(await asyncio.gather(*(_served(run.endpoint) for run in runs.values())))

        assert served == [0, 4]


async def test_when_one_engine_dies_the_other_serves_on(tmp_path: Path) -> None:
    async with hot_model(tmp_path, replicas=Replicas(2, 2), concurrency=4) as (server, http):
        async with asyncio.timeout(60):
            while states(server).count(State.READY) < 2:
                await asyncio.sleep(0.05)
        first = next(iter(server.yard.loop.runs.values()))
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            while is_taken(first.endpoint):  # until then it may still take connections
                await asyncio.sleep(0.005)
        calls = [http.post("/v1/chat/completions", json=asked(f"{n}")) for n in range(6)]
        answers = await asyncio.gather(*calls)

        assert [answer.status_code for answer in answers] == [200] * 6


async def test_one_client_with_many_requests_does_not_hold_up_another(tmp_path: Path) -> None:
    order: list[str] = []

    async def ask(http: httpx.AsyncClient, who: str) -> None:
        await http.post(
            "/v1/chat/completions", json=asked(who), headers={"authorization": f"Bearer {who}"}
        )
        order.append(who)

    async with hot_model(tmp_path) as (server, http):
        many = [asyncio.create_task(ask(http, "greedy")) for _ in range(6)]
        async with asyncio.timeout(60):
            while len(server.yard.loop.scheduler.models["hot"].queue) < 5:
                await asyncio.sleep(0.01)
        await asyncio.gather(*many, ask(http, "modest"))

    assert order.index("modest") <= 3  # in their order it would be the last of seven


async def _served(endpoint: object) -> int:
    async with httpx.AsyncClient(timeout=60) as http:
        stats = (await http.get(f"http://{endpoint}/stats")).json()
    return int(stats["requests"])
