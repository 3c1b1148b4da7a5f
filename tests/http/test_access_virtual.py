"""Keys, variants and virtual models: who may not use a model learns of it by no other name."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.http.keyed import CHAT_PATH, chat, key, text_of

from modelyard.config import Config, Devices
from modelyard.core.keys import Scope
from modelyard.core.shaping import Choose, Shape, Target, VirtualModel
from modelyard.testing.server import Running, fake_model, running

pytestmark = pytest.mark.usefixtures("nothing_left")

HIDDEN, SHOWN = "hidden-model", "shown"


@asynccontextmanager
async def serving(path: Path, *names: str, **more: Any) -> AsyncIterator[Running]:
    """A server whose key `few` allows `shown` alone, with one virtual model for these targets."""
    hidden = dataclasses.replace(
        fake_model(HIDDEN), variants={"hidden-short": Shape(max_output_tokens=2)}
    )
    shown = dataclasses.replace(
        fake_model(SHOWN), variants={"shown-short": Shape(max_output_tokens=2)}
    )
    config = Config(
        models=(hidden, shown),
        virtuals=(VirtualModel("v", tuple(map(Target, names)), **more),),
        keys=(
            key("few", models=(SHOWN,)),
            key("boss", scopes=frozenset(Scope)),
        ),
        devices=Devices(budget_mib={"cpu": 1000}),
    )
    async with running(config, path / "state") as server:
        yield server


def client(server: Running, name: str) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {text_of(name)}"}
    return httpx.AsyncClient(base_url=server.url, timeout=60, headers=headers)


def without_names(answer: httpx.Response, name: str) -> tuple[int, str]:
    return answer.status_code, answer.text.replace(name, "NAME")


@pytest.mark.parametrize("how", list(Choose))
async def test_who_may_use_no_target_is_told_the_same_as_of_an_unknown_name(
    tmp_path: Path, how: Choose
) -> None:
    targets = (HIDDEN, "hidden-short")
    async with serving(tmp_path, *targets, choose=how) as server, client(server, "few") as http:
        asked = {name: await http.post(CHAT_PATH, json=chat(name)) for name in ("v", "w", HIDDEN)}
        shown = {name: await http.get(f"/v1/models/{name}") for name in ("v", "w", "hidden-short")}
        told = await http.post("/api/show", json={"model": "v"})
        listed = (await http.get("/v1/models")).json()["data"]
        tags = (await http.get("/api/tags")).text

        assert server.yard.loop.loads == 0
    for answers in (asked, shown):
        expected = without_names(answers["w"], "'w'")
        assert expected[0] == 404
        assert all(without_names(each, f"'{name}'") == expected for name, each in answers.items())
    assert told.status_code == 404
    assert [each["id"] for each in listed] == [SHOWN, "shown-short"]
    assert HIDDEN not in tags


async def test_targets_that_a_key_may_not_use_are_passed_over_and_never_named(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, HIDDEN, "shown-short") as server, client(server, "few") as http:
        answer = await http.post(CHAT_PATH, json=chat("v"))
        wrong = await http.post("/v1/embeddings", json={"model": "v", "input": "x"})
        one = await http.get("/v1/models/v")
        listed = await http.get("/v1/models")
        modes = [await http.get("/api/modes"), await http.get("/api/models")]

        assert answer.json()["usage"]["completion_tokens"] == 2
        assert server.yard.loop.loads == 1
    assert one.json()["resolves_to"] == ["shown-short"]
    assert "the virtual model 'v'" in wrong.json()["error"]["message"]
    assert [each.status_code for each in modes] == [403, 403]
    for each in (answer, wrong, one, listed, *modes):
        assert "hidden" not in each.text


async def test_who_may_do_everything_is_told_of_both_names(tmp_path: Path) -> None:
    async with serving(tmp_path, "gone", fallback=False) as server, client(server, "boss") as http:
        asked = await http.post(CHAT_PATH, json=chat("v"))
        modes = (await http.get("/api/modes")).json()["virtuals"]
        problems = (await http.get("/api/info")).json()["problems"]

    assert asked.status_code == 404
    message = asked.json()["error"]["message"]
    assert message.startswith("the virtual model 'v': there is no model named 'gone'")
    assert modes[0]["unknown"] == ["gone"]
    assert "virtual.v: there is no model named 'gone'" in problems


async def test_a_request_without_a_model_means_the_only_one_that_the_key_may_use(
    tmp_path: Path,
) -> None:
    unnamed = {"messages": [{"role": "user", "content": "hello"}]}
    async with serving(tmp_path, SHOWN) as server:
        async with client(server, "few") as http:
            meant = await http.post(CHAT_PATH, json=unnamed)
            none = await http.post("/v1/embeddings", json={"input": "x"})
        async with client(server, "boss") as http:
            either = await http.post(CHAT_PATH, json=unnamed)

        (record,) = [each for each in server.yard.gateway.records.newest(9) if each.status == 200]
    assert meant.json()["model"] == SHOWN
    assert (record.named, record.model) == (SHOWN, SHOWN)
    assert (none.status_code, either.status_code) == (400, 400)
    assert none.json()["error"]["message"] == either.json()["error"]["message"]
