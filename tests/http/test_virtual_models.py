"""Virtual models, variants and modes, served by engines that start, fail and are cold."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from modelyard.config import Config, Devices
from modelyard.core.shaping import Choose, Shape, Target, VirtualModel
from modelyard.core.specs import ModelSpec
from modelyard.testing.server import Running, fake_model, running

pytestmark = pytest.mark.usefixtures("nothing_left")

HELLO = {"messages": [{"role": "user", "content": "hello"}]}


@asynccontextmanager
async def serving(
    path: Path, models: list[ModelSpec], *virtuals: VirtualModel, **settings: Any
) -> AsyncIterator[tuple[Running, httpx.AsyncClient]]:
    config = Config(
        models=tuple(models), virtuals=virtuals, devices=Devices(budget_mib={"cpu": 1000})
    )
    async with (
        running(config, path / "state", **settings) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
    ):
        yield server, http


async def chat(http: httpx.AsyncClient, model: str, **more: Any) -> httpx.Response:
    return await http.post("/v1/chat/completions", json={"model": model, **HELLO, **more})


def text(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def virtual(*names: str, how: Choose = Choose.ORDERED, **more: Any) -> VirtualModel:
    return VirtualModel("v", tuple(map(Target, names)), how, **more)


@pytest.mark.parametrize("flag", ["--crash-while-loading", "--garbage"])
async def test_the_next_target_answers_where_one_cannot(tmp_path: Path, flag: str) -> None:
    models = [fake_model("bad", flag), fake_model("good")]
    async with serving(tmp_path, models, virtual("bad", "good")) as (server, http):
        server.yard.loop.scheduler.policy = dataclasses.replace(
            server.yard.loop.scheduler.policy, max_start_attempts=1
        )
        answer = await chat(http, "v")

        assert "good" in text(answer)
        (record,) = server.yard.gateway.records.newest(5)
        assert (record.named, record.model, record.status) == ("v", "good", 200)


async def test_an_error_of_the_request_is_not_tried_elsewhere(tmp_path: Path) -> None:
    models = [fake_model("a"), fake_model("b")]
    async with serving(tmp_path, models, virtual("a", "b")) as (server, http):
        answer = await http.post("/v1/embeddings", json={"model": "v", "input": "x"})

        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "wrong_task"
        assert server.yard.loop.loads == 0


async def test_who_is_warm_answers(tmp_path: Path) -> None:
    models = [fake_model("cold"), fake_model("warm")]
    async with serving(tmp_path, models, virtual("cold", "warm", how=Choose.WARM)) as (_, http):
        await chat(http, "warm")

        assert "warm" in text(await chat(http, "v"))


async def test_weights_share_the_requests(tmp_path: Path) -> None:
    shared = VirtualModel("v", (Target("a", 3), Target("b", 1)), Choose.WEIGHTED)
    async with serving(tmp_path, [fake_model("a"), fake_model("b")], shared) as (_, http):
        answers = [(await chat(http, "v")).json()["model"] for _ in range(8)]

    assert sorted(answers) == ["a"] * 6 + ["b"] * 2


async def test_a_mode_is_switched_and_listed(tmp_path: Path) -> None:
    modes = virtual("a", modes={"night": (Target("b"),)})
    async with serving(tmp_path, [fake_model("a"), fake_model("b")], modes) as (_, http):
        switched = await http.put("/api/modes", json={"mode": "night"})
        by_night = text(await chat(http, "v"))
        refused = await http.put("/api/modes", json={"mode": "noon"})
        listed = (await http.get("/v1/models/v")).json()

    assert switched.json()["virtuals"][0]["targets"] == ["b"]
    assert "b" in by_night
    assert refused.status_code == 400
    assert "known: night" in refused.json()["error"]["message"]
    assert listed["resolves_to"] == ["b"]


async def test_variants_share_one_engine_and_shape_their_requests(tmp_path: Path) -> None:
    spec = dataclasses.replace(
        fake_model("m", "--tokens", "16"),
        aliases=("alias",),
        shape=Shape(max_output_tokens=8),
        variants={"m-short": Shape(max_output_tokens=2)},
    )
    async with serving(tmp_path, [spec], list_aliases=True) as (server, http):
        long, short = await chat(http, "m"), await chat(http, "m-short", max_tokens=5)
        listed = (await http.get("/v1/models")).json()["data"]

        assert long.json()["usage"]["completion_tokens"] == 8
        assert short.json()["usage"]["completion_tokens"] == 2
        assert server.yard.loop.loads == 1
    assert [each["id"] for each in listed] == ["m", "m-short", "alias"]
    assert [each.get("resolves_to") for each in listed] == [None, "m", "m"]


async def test_a_request_that_takes_longer_than_its_shape_allows_is_ended(tmp_path: Path) -> None:
    spec = dataclasses.replace(
        fake_model("m", "--tps", "2", "--tokens", "500"), shape=Shape(timeout_s=0.5)
    )
    async with serving(tmp_path, [spec]) as (_, http):
        whole = await chat(http, "m")
        streamed = await chat(http, "m", stream=True)

    assert whole.status_code == 504
    assert b'"code":"engine_timeout"' in streamed.content


async def test_anthropics_clients_get_their_own_listing(tmp_path: Path) -> None:
    async with serving(tmp_path, [fake_model("m")]) as (_, http):
        page = await http.get("/v1/models", headers={"anthropic-version": "2023-06-01"})
        one = await http.get("/v1/models/m", headers={"x-api-key": "x"})

    assert page.json()["data"][0]["type"] == "model"
    assert (page.json()["first_id"], page.json()["has_more"]) == ("m", False)
    assert one.json()["display_name"] == "m"


async def test_who_waits_is_shown_by_the_name_that_was_asked_for(tmp_path: Path) -> None:
    slow = fake_model("slow", "--load", "30")
    async with serving(tmp_path, [slow], virtual("slow")) as (_, http):
        asking = asyncio.create_task(chat(http, "v"))
        waiting: list[dict[str, Any]] = []
        while not waiting:
            waiting = (await http.get("/api/waiting")).json()
        asking.cancel()

    assert [(each["named"], each["model"]) for each in waiting] == [("v", "slow")]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_of_a_target_names_the_virtual_model_too(
    tmp_path: Path, stream: bool
) -> None:
    async with serving(tmp_path, [fake_model("bad", "--crash-while-loading")], virtual("bad")) as (
        server,
        http,
    ):
        server.yard.loop.scheduler.policy = dataclasses.replace(
            server.yard.loop.scheduler.policy, max_start_attempts=1
        )
        answer = await chat(http, "v", stream=stream)

    assert answer.status_code == 503
    message = answer.json()["error"]["message"]
    assert message.startswith("the virtual model 'v' asked 'bad': ")
