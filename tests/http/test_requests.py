"""Requests that are looked at and cancelled."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.http.keyed import CHAT_PATH, chat, client, key, serve_keyed

from modelyard.core.keys import Scope
from modelyard.testing.server import Running, fake_model

pytestmark = pytest.mark.usefixtures("nothing_left")

ENDLESS = ("--tokens", "1000000", "--tps", "100")


async def requests(http: httpx.AsyncClient, **params: Any) -> dict[str, Any]:
    view: dict[str, Any] = (await http.get("/api/requests", params=params)).json()
    return view


async def until_running(http: httpx.AsyncClient, state: str, count: int = 1) -> list[Any]:
    """The requests in this state, once there are so many."""
    async with asyncio.timeout(60):
        while True:
            running = (await requests(http))["running"]
            found = [request for request in running if request["state"] == state]
            if len(found) >= count:
                return found
            await asyncio.sleep(0.01)


async def test_a_request_is_seen_from_its_waiting_to_its_end(tmp_path: Path) -> None:
    model = fake_model("m", "--load", "1s", "--tokens", "7")
    keys = (key("ann"), key("root", scopes=frozenset({Scope.ADMIN})))
    async with (
        serve_keyed(tmp_path, model, keys=keys) as server,
        client(server, "ann") as http,
        client(server, "root") as admin,
    ):
        named = {"x-request-id": "mine/1"}
        asked = asyncio.create_task(http.post(CHAT_PATH, json=chat(stream=True), headers=named))
        (waiting,) = await until_running(admin, "waiting")
        await asked
        view = await requests(admin)

    (done,) = view["finished"]
    assert (waiting["id"], waiting["key"], waiting["model"]) == ("mine/1", "ann", "m")
    assert (waiting["status"], waiting["first_s"], waiting["route"]) == (0, None, CHAT_PATH)
    assert view["running"] == []
    assert (done["state"], done["status"], done["error"]) == ("done", 200, "")
    assert (done["stream"], done["client"], done["completion_tokens"]) == (True, "127.0.0.1", 7)
    assert 0 < done["waited_s"] <= done["first_s"] <= done["total_s"]
    assert done["waited_s"] >= waiting["waited_s"]


async def test_the_newest_finished_requests_come_first_and_are_bounded(tmp_path: Path) -> None:
    async with serve_keyed(tmp_path, fake_model("m")) as server, client(server) as http:
        for name in ("a", "b", "c"):
            await http.post(CHAT_PATH, json=chat(name))
        shown = [request["named"] for request in (await requests(http, last=2))["finished"]]
        none = (await requests(http, last=0))["finished"]
        refused = await http.get("/api/requests", params={"last": 10**9})

    assert (shown, none, refused.status_code) == (["c", "b"], [], 400)


async def test_a_cancelled_stream_ends_with_an_error_and_its_engine_stops_at_once(
    tmp_path: Path,
) -> None:
    async with (
        serve_keyed(tmp_path, fake_model("m", *ENDLESS)) as server,
        client(server) as http,
        client(server) as admin,
        http.stream("POST", CHAT_PATH, json=chat(stream=True)) as answer,
    ):
        parts = answer.aiter_bytes()
        await anext(parts)
        (running,) = await until_running(admin, "answering")
        before = await _engine_sees(server)
        began = time.perf_counter()
        told = (await admin.delete(f"/api/requests/{running['id']}")).json()
        rest = b"".join([part async for part in parts])
        async with asyncio.timeout(60):
            while await _engine_sees(server):
                await asyncio.sleep(0.002)
        took = time.perf_counter() - began
        leases = [run.upstream.leases for run in server.yard.loop.runs.values()]

    last = rest.decode().strip().rpartition("data: ")[2]
    print(f"the engine saw the cancel {took * 1000:.0f} ms after it was asked for")
    assert (before, leases) == (1, [0])
    assert json.loads(last)["error"]["code"] == "request_cancelled"
    assert [(view["state"], view["error"]) for view in told] == [("done", "request_cancelled")]


async def test_a_request_that_waits_or_has_no_answer_yet_is_cancelled_with_a_status(
    tmp_path: Path,
) -> None:
    slow = fake_model("slow", "--tokens", "1000", "--tps", "10")
    async with (
        serve_keyed(tmp_path, slow, fake_model("stuck", "--hang")) as server,
        client(server) as http,
        client(server) as admin,
    ):
        asked = [
            asyncio.create_task(http.post(CHAT_PATH, json=chat("slow"))),
            asyncio.create_task(http.post(CHAT_PATH, json=chat("stuck"))),
        ]
        (sending,) = await until_running(admin, "sending")
        (waiting,) = await until_running(admin, "waiting")
        for request in (sending, waiting):
            await admin.delete(f"/api/requests/{request['id']}")
        answers = await asyncio.gather(*asked)
        in_queue = server.yard.loop.waiting

    assert [answer.status_code for answer in answers] == [410, 410]
    assert [answer.json()["error"]["code"] for answer in answers] == ["request_cancelled"] * 2
    assert [answer.headers["x-should-retry"] for answer in answers] == ["false", "false"]
    assert in_queue == 0


async def test_a_request_whose_body_is_still_coming_can_be_cancelled(tmp_path: Path) -> None:
    async with serve_keyed(tmp_path, fake_model("m")) as server, client(server) as admin:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        head = f"POST {CHAT_PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n"
        writer.write(head.encode() + b"{")
        (reading,) = await until_running(admin, "reading")
        await admin.delete(f"/api/requests/{reading['id']}")
        async with asyncio.timeout(60):
            answer = await reader.read()
        writer.close()
        await writer.wait_closed()

    assert answer.startswith(b"HTTP/1.1 410")


async def test_cancelling_what_is_not_under_way_is_told(tmp_path: Path) -> None:
    async with serve_keyed(tmp_path, fake_model("m")) as server, client(server) as http:
        answer = await http.delete("/api/requests/req-1/2")

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert "req-1/2" in answer.json()["error"]["message"]


async def test_requests_of_one_id_are_cancelled_together_and_no_others(tmp_path: Path) -> None:
    named = {"x-request-id": "same"}
    async with (
        serve_keyed(tmp_path, fake_model("stuck", "--hang")) as server,
        client(server) as http,
        client(server) as admin,
    ):
        asked = [
            asyncio.create_task(http.post(CHAT_PATH, json=chat("stuck"), headers=headers))
            for headers in (named, named, {"x-request-id": "other"})
        ]
        await until_running(admin, "waiting", 3)
        told = (await admin.delete("/api/requests/same")).json()
        left = (await requests(admin))["running"]
        await admin.delete("/api/requests/other")
        answers = await asyncio.gather(*asked)

    assert [view["id"] for view in told] == ["same", "same"]
    assert [view["id"] for view in left] == ["other"]
    assert [answer.status_code for answer in answers] == [410] * 3


async def _engine_sees(server: Running) -> int:
    """Requests that the fake engine is answering, as it says itself."""
    (run,) = server.yard.loop.runs.values()
    url = f"http://127.0.0.1:{run.upstream.endpoint.port}"
    async with httpx.AsyncClient(base_url=url, timeout=60) as engine:
        count: int = (await engine.get("/stats")).json()["active"]
        return count
