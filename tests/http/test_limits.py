"""Limits of keys at a whole server: told in OpenAI's headers, settled by what was really used."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path

import pytest
from tests.http.keyed import CHAT_PATH, chat, client, key, serve_keyed

from modelyard.core.quota import Quota, Rate
from modelyard.testing.server import fake_model

pytestmark = pytest.mark.usefixtures("nothing_left")


async def test_one_request_too_many_is_refused_with_the_numbers(tmp_path: Path) -> None:
    quota = Quota(requests=Rate(2, 3600), tokens=Rate(10_000, 3600))
    keys = (key("ann", quota=quota), key("bob", quota=quota))
    async with (
        serve_keyed(tmp_path, fake_model("m", "--tokens", "5"), keys=keys) as server,
        client(server, "ann") as ann,
        client(server, "bob") as bob,
    ):
        first = await ann.post(CHAT_PATH, json=chat())
        second = await ann.post(CHAT_PATH, json=chat(stream=True))
        third = await ann.post(CHAT_PATH, json=chat())
        other = await bob.post(CHAT_PATH, json=chat())

    assert [answer.status_code for answer in (first, second, third, other)] == [200, 200, 429, 200]
    error = third.json()["error"]
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    assert "'ann' may use 2 requests in 3600 s" in error["message"]
    assert 1700 < int(third.headers["retry-after"]) <= 1800
    remaining = [
        answer.headers["x-ratelimit-remaining-requests"] for answer in (first, second, third)
    ]
    assert remaining == ["1", "0", "0"]
    assert third.headers["x-ratelimit-limit-tokens"] == "10000"
    assert third.headers.get_list("x-ratelimit-reset-requests") != []


@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_are_charged_as_the_engine_counted_them(tmp_path: Path, stream: bool) -> None:
    keys = (key("ann", quota=Quota(tokens=Rate(100_000, 10**9))),)
    async with (
        serve_keyed(tmp_path, fake_model("m", "--tokens", "40"), keys=keys) as server,
        client(server, "ann") as http,
    ):
        await http.post(CHAT_PATH, json=chat(stream=stream))
        await _settled(server.yard.gateway.active)
        record = server.yard.gateway.records.newest(1)[0]
        (caller,) = server.yard.gateway.access.callers
        (balance,) = caller.balances(asyncio.get_running_loop().time())

    used = record.prompt_tokens + record.completion_tokens
    assert (record.completion_tokens, record.estimated, record.key) == (40, False, "ann")
    assert 0 <= balance.left - (100_000 - used) <= 1  # hardly anything comes back meanwhile
    assert (caller.tokens, caller.running) == (used, 0)


async def test_requests_at_once_are_counted_until_their_streams_have_ended(tmp_path: Path) -> None:
    model = fake_model("m", "--tokens", "100000", "--tps", "50")
    keys = (key("ann", quota=Quota(concurrency=1)),)
    async with serve_keyed(tmp_path, model, keys=keys) as server, client(server, "ann") as http:
        async with http.stream("POST", CHAT_PATH, json=chat(stream=True)) as running:
            await anext(running.aiter_bytes())
            refused = await http.post(CHAT_PATH, json=chat())
        await _settled(server.yard.gateway.active)
        async with http.stream("POST", CHAT_PATH, json=chat(stream=True)) as again:
            await anext(again.aiter_bytes())

    assert (refused.status_code, again.status_code) == (429, 200)
    assert "1 requests at once" in refused.json()["error"]["message"]


async def test_what_never_reached_an_engine_costs_no_tokens(tmp_path: Path) -> None:
    quota = Quota(requests=Rate(10, 3600), tokens=Rate(1000, 86_400))
    async with (
        serve_keyed(tmp_path, fake_model("m", mib=5000), keys=(key("ann", quota=quota),)) as server,
        client(server, "ann") as http,
    ):
        unknown = await http.post(CHAT_PATH, json=chat("none"))
        too_large = await http.post(CHAT_PATH, json=chat())

    assert (unknown.status_code, too_large.status_code) == (404, 503)
    assert unknown.headers["x-ratelimit-remaining-requests"] == "10"
    assert too_large.headers["x-ratelimit-remaining-requests"] == "9"
    (caller,) = server.yard.gateway.access.callers
    assert (caller.tokens, caller.running) == (0, 0)


async def test_a_higher_priority_is_served_first_when_requests_wait(tmp_path: Path) -> None:
    keys = (key("low"), key("high", priority=10))
    model = fake_model("m", "--load", "1.5s", "--tokens", "1")
    async with (
        serve_keyed(tmp_path, model, keys=keys) as server,
        client(server, "low") as low,
        client(server, "high") as high,
    ):
        waiting = [asyncio.create_task(low.post(CHAT_PATH, json=chat())) for _ in range(3)]
        while server.yard.loop.waiting < 3:
            await asyncio.sleep(0.01)
        waiting.append(asyncio.create_task(high.post(CHAT_PATH, json=chat())))
        while server.yard.loop.waiting < 4:
            await asyncio.sleep(0.01)
        priorities = [view.priority for view in server.yard.loop.view_waiting()]
        answers = await asyncio.gather(*waiting)

    assert [answer.status_code for answer in answers] == [200] * 4
    assert priorities == [10, 0, 0, 0]


async def _settled(active: Collection[object]) -> None:
    """Return when no exchange is under way."""
    async with asyncio.timeout(60):
        while active:
            await asyncio.sleep(0.01)
