"""The admin API of a whole server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from tests.conftest import Serve

from modelyard import __version__
from modelyard.core.specs import Limits
from modelyard.testing.server import Running, fake_model

pytestmark = pytest.mark.usefixtures("nothing_left")

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def client(server: Running) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=server.url, timeout=60)


async def model_in(http: httpx.AsyncClient, state: str, name: str = "m") -> dict[str, Any]:
    """The model's view once it is in `state`."""
    async with asyncio.timeout(60):
        while True:
            view: dict[str, Any] = (await http.get(f"/api/models/{name}")).json()
            if view["state"] == state:
                return view
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("path", ["/health", "/v1/health", "/api/health"])
async def test_health_says_that_the_server_is_up(serve: Serve, path: str) -> None:
    async with serve() as server, client(server) as http:
        answer = await http.get(path)

    assert {"status": "ok", "version": __version__} == answer.json()


async def test_a_model_is_started_stopped_and_restarted_by_a_person(serve: Serve) -> None:
    async with serve(fake_model("m")) as server, client(server) as http:
        started = await http.post("/api/models/m/start")
        first = await model_in(http, "ready")
        await http.post("/api/models/m/restart")
        second = await model_in(http, "ready")
        while second["run"] == first["run"]:
            second = await model_in(http, "ready")
        await http.post("/api/models/m/stop")
        last = await model_in(http, "stopped")

    assert started.status_code == 202
    assert first["pid"] != second["pid"]
    assert list(second["memory_mib"]) == ["cpu"]
    assert (last["pid"], last["memory_mib"]) == (None, {})


async def test_a_stop_while_starting_ends_the_start(serve: Serve) -> None:
    async with serve(fake_model("m", "--hang")) as server, client(server) as http:
        await http.post("/api/models/m/start")
        starting = await model_in(http, "starting")
        waiting = asyncio.create_task(http.post("/v1/chat/completions", json=CHAT))
        async with asyncio.timeout(60):
            while not server.yard.loop.waiting:
                await asyncio.sleep(0.01)
        await http.post("/api/models/m/stop")
        await model_in(http, "stopped")
        answer = await waiting

    assert starting["run"] == 1
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_stopped")


async def test_a_model_with_a_slash_in_its_id_can_be_named(serve: Serve) -> None:
    async with serve(fake_model("org/m")) as server, client(server) as http:
        await http.post("/api/models/org/m/start")
        view = await model_in(http, "ready", "org/m")
        log = (await http.get("/api/models/org/m/logs")).json()
        listed = await http.get("/v1/models/org/m")

    assert "org/m" == view["id"] == log["model"] == listed.json()["id"]


async def test_starting_what_can_never_fit_is_refused_with_the_numbers(serve: Serve) -> None:
    async with serve(fake_model("m", mib=900), mib=100) as server, client(server) as http:
        answer = await http.post("/api/models/m/start")

    assert answer.status_code == 503
    assert "needs 900 MiB on cpu" in answer.json()["error"]["message"]


async def test_an_unknown_model_is_404_everywhere(serve: Serve) -> None:
    async with serve(fake_model("m")) as server, client(server) as http:
        answers = [
            await http.get("/api/models/nobody"),
            await http.post("/api/models/nobody/start"),
            await http.post("/api/models/nobody/stop"),
            await http.get("/api/models/nobody/logs"),
        ]

    assert [answer.status_code for answer in answers] == [404] * 4


async def test_the_reason_of_a_failure_and_its_log_stay_visible(serve: Serve) -> None:
    model = fake_model("m", "--crash-while-loading")
    async with serve(model) as server, client(server) as http:
        await http.post("/v1/chat/completions", json=CHAT)
        view = await model_in(http, "failed")
        log = (await http.get("/api/models/m/logs", params={"lines": 50})).json()

    assert "out of memory" in view["reason"]
    assert any("out of memory" in line["text"] for line in log["lines"])
    assert log["path"].endswith("m.log")


async def test_events_tell_every_step_of_a_start(serve: Serve) -> None:
    states: list[str] = []
    async with (
        serve(fake_model("m", "--load", "300ms")) as server,
        client(server) as http,
        http.stream("GET", "/api/events", params={"topics": "models"}) as events,
        asyncio.timeout(60),
    ):
        async for line in events.aiter_lines():
            if line.startswith("data: "):
                states.append(json.loads(line[6:])["data"]["state"])
                if states == ["stopped"]:
                    await http.post("/api/models/m/start")
                if states[-1] == "ready":
                    break

    assert states[0] == "stopped"
    assert "starting" in states
    assert states.index("starting") < states.index("ready")


async def test_a_log_can_be_followed_over_a_restart(serve: Serve) -> None:
    seen: list[dict[str, Any]] = []
    async with serve(fake_model("m")) as server, client(server) as http:
        await http.post("/api/models/m/start")
        await model_in(http, "ready")
        async with http.stream("GET", "/api/models/m/logs/follow") as lines:
            async with asyncio.timeout(60):
                async for line in lines.aiter_lines():
                    if not line.startswith("data: "):
                        continue
                    seen.append(json.loads(line[6:])["data"])
                    if len(seen) == 1:
                        await http.post("/api/models/m/restart")
                    if seen[-1]["run"] == 2:
                        break

    assert sorted({line["run"] for line in seen}) == [1, 2]


async def test_devices_show_what_is_claimed(serve: Serve) -> None:
    async with serve(fake_model("m", mib=70), mib=300) as server, client(server) as http:
        await http.post("/v1/chat/completions", json=CHAT)
        (device,) = (await http.get("/api/devices")).json()

    assert (device["id"], device["capacity_mib"], device["claimed_mib"]) == ("cpu", 300, 70)
    assert device["used_mib"] > 0


async def test_a_waiting_model_says_who_holds_the_memory(serve: Serve) -> None:
    slow = fake_model("m", "--tokens", "10000", "--tps", "20", mib=100)
    async with serve(slow, fake_model("b", mib=100), mib=150) as server, client(server) as http:
        request = {**CHAT, "stream": True}
        async with http.stream("POST", "/v1/chat/completions", json=request) as stream:
            lines = stream.aiter_lines()
            await anext(lines)
            waiting = asyncio.create_task(
                http.post("/v1/chat/completions", json={**CHAT, "model": "b"})
            )
            async with asyncio.timeout(60):
                while not (view := (await http.get("/api/models/b")).json())["queued"]:
                    await asyncio.sleep(0.02)
        answer = await waiting

    assert "held by m (ready, 1 in flight)" in view["waiting_for"]
    assert answer.status_code == 200


async def test_an_idle_model_is_stopped(serve: Serve) -> None:
    model = fake_model("m", limits=Limits(idle_stop_s=0.3, stop_grace_s=1))
    async with serve(model) as server, client(server) as http:
        await http.post("/v1/chat/completions", json=CHAT)
        await model_in(http, "stopped")
        again = await http.post("/v1/chat/completions", json=CHAT)

        assert again.status_code == 200
        assert server.yard.loop.loads == 2


async def test_a_drain_has_a_bound_when_a_person_stops_a_model(serve: Serve) -> None:
    limits = Limits(drain_timeout_s=0.3, stop_grace_s=1)
    model = fake_model("m", "--tokens", "100000", "--tps", "20", limits=limits)
    async with serve(model) as server, client(server) as http:
        request = {**CHAT, "stream": True}
        async with http.stream("POST", "/v1/chat/completions", json=request) as stream:
            lines = stream.aiter_lines()
            await anext(lines)
            await http.post("/api/models/m/stop")
            rest = [line async for line in lines if line]
        await model_in(http, "stopped")

    assert "engine_died" in rest[-1]


async def test_the_api_documents_itself(serve: Serve) -> None:
    async with serve() as server, client(server) as http:
        pages = [await http.get("/docs"), await http.get("/redoc")]
        schema = (await http.get("/openapi.json")).json()

    assert [page.status_code for page in pages] == [200, 200]
    assert {"/api/models", "/api/info", "/v1/models", "/api/events"} <= set(schema["paths"])
