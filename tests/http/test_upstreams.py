"""What engines have besides inference, and what cannot be reached."""

from __future__ import annotations

import dataclasses

import httpx
import pytest
from tests.conftest import Serve

from modelyard.core.specs import ModelSpec, Task
from modelyard.http.upstreams import refusal
from modelyard.testing.server import DEMO_MODELS, fake_model

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.mark.parametrize(
    "path",
    [
        "sleep", "Sleep", "SLEEP/", "wake_up", "wake-up", "v1/load_lora_adapter", "collective_rpc",
        "x/../sleep", "./sleep", "a//sleep", "%73leep", "sle%65p", "sleep;x", "sleep?level=1",
        "sleep#", "a\\sleep", "release_memory_occupation", "models/load", "api/pull", " sleep",
    ],
)  # fmt: skip
def test_control_routes_are_out_of_reach_in_any_spelling(path: str) -> None:
    assert refusal("GET", path) is not None
    assert refusal("POST", path) is not None


def test_what_only_may_be_looked_at_is_not_changed() -> None:
    assert refusal("GET", "props") is None
    assert refusal("POST", "props") is not None
    assert refusal("POST", "slots/0") is not None
    assert refusal("POST", "v1/chat/completions") is None
    assert refusal("GET", "") is None


async def test_an_engine_is_started_and_answers_as_it_is(serve: Serve) -> None:
    async with (
        serve(fake_model("m")) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
    ):
        stats = await http.get("/upstream/m/stats", headers={"authorization": "Bearer secret"})
        chat = await http.post(
            "/upstream/m/v1/chat/completions",
            json={"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True},
        )
        missing = await http.get("/upstream/m/nothing/here")
        unknown = await http.get("/upstream/other/stats")
        forbidden = [
            await http.post("/upstream/m/sleep"),
            await http.request("POST", "/upstream/m/%2e%2e/sleep"),
            await http.request("POST", "/upstream/m//sleep"),
        ]

        assert stats.status_code == 200
        assert stats.json()["requests"] == 0
        assert chat.text.endswith("data: [DONE]\n\n")
        assert missing.status_code == 404
        assert unknown.status_code == 404
        assert {answer.status_code for answer in forbidden} <= {403, 404}
        assert server.yard.loop.scheduler.models["m"].in_flight == 0


async def test_llamacpps_own_routes_are_asked_by_model(serve: Serve) -> None:
    chat = next(DEMO_MODELS.glob("*chat*.gguf"))
    spec = ModelSpec("yard", "llamacpp", frozenset({Task.CHAT}), source=str(chat), estimate_mib=60)
    spec = dataclasses.replace(spec, aliases=("alias",))
    async with (
        serve(spec) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
    ):
        props = await http.get("/props", params={"model": "alias"})
        tokens = await http.post("/tokenize", json={"model": "yard", "content": "hello"})
        nobody = await http.get("/props")

    assert props.json()["default_generation_settings"]
    assert tokens.json()["tokens"]
    assert nobody.status_code == 400
