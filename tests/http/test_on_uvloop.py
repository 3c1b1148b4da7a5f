"""What only a server on uvloop shows, as `modelyard serve` is one: real trouble, real clients."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import uvloop
from tests.http.fuzzing import Fuzzer
from tests.http.test_hostile_engine import hostile

from modelyard.config import Config, Devices
from modelyard.testing.server import Running, fake_model, running

BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def on_uvloop(folder: Path, check: Callable[[Running], Awaitable[None]]) -> None:
    """Have `check` look at a server that serves `m` (fake) and `h` (hostile)."""
    models = fake_model("m", "--tokens", "20"), hostile("h")
    config = Config(models=models, devices=Devices(budget_mib={"cpu": 1000}))

    async def serve() -> None:
        async with running(config, folder, body_timeout_s=1.0, header_timeout_s=1.0) as server:
            await check(server)

    uvloop.run(serve())


def test_random_trouble_breaks_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    async def check(server: Running) -> None:
        fuzzer = Fuzzer(server, seed=7)
        await fuzzer.round(240)

        assert fuzzer.found.problems == []
        assert {"http", "json", "engine", "valid"} == set(fuzzer.found.tried)
        assert fuzzer.found.statuses[200] > 0

    on_uvloop(tmp_path, check)


def test_a_timer_that_is_due_at_once_can_be_set_earlier(tmp_path: Path) -> None:
    """uvloop's handle of a timer that is due already is none that tells when."""

    async def check(server: Running) -> None:
        loop = server.yard.loop
        loop._arm(asyncio.get_running_loop().time() - 1)
        loop._arm(0.0)
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            answer = await http.post("/v1/chat/completions", json=BODY)

        assert answer.status_code == 200

    on_uvloop(tmp_path, check)


def test_the_connections_of_a_crowd_are_closed_when_it_has_gone(tmp_path: Path) -> None:
    async def check(server: Running) -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            asked = (http.post("/v1/chat/completions", json=BODY) for _ in range(40))
            await asyncio.gather(*asked)
        upstream = server.yard.loop.runs["m", 1].upstream
        upstream.fresh_for_s = 0.1
        async with asyncio.timeout(60):
            while upstream._open:
                await asyncio.sleep(0.02)

        assert upstream._idle == []

    on_uvloop(tmp_path, check)


def test_a_large_body_arrives_whole_however_it_is_asked(tmp_path: Path) -> None:
    """It is not copied on its way, and has its wish for usage written before it."""

    async def check(server: Running) -> None:
        words = "large " * 700_000
        asked = {**BODY, "messages": [{"role": "user", "content": words}]}
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            whole = await http.post("/v1/chat/completions", json=asked)
            stream = await http.post("/v1/chat/completions", json={**asked, "stream": True})
        records = server.yard.gateway.records.newest(2)

        assert whole.json()["usage"]["prompt_tokens"] == 700_000
        assert stream.text.endswith("data: [DONE]\n\n")
        assert [record.prompt_tokens for record in records] == [700_000, 700_000]

    on_uvloop(tmp_path, check)


def test_head_is_answered_as_get_without_a_body_and_ends_where_get_would_not(
    tmp_path: Path,
) -> None:
    async def check(server: Running) -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            health = await http.head("/health")
            events = await http.head("/api/events")
            inference = await http.head("/v1/chat/completions")
            again = await http.get("/health")

        assert [a.status_code for a in (health, events, inference, again)] == [200, 200, 405, 200]
        assert (health.content, health.headers["content-length"]) == (b"", str(len(again.content)))

    on_uvloop(tmp_path, check)
