"""WebSockets through the gateway, with a client's own library and an engine that has none."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from typing import Any

import httpx
import pytest
from tests.conftest import Serve
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus

from modelyard.core.specs import Limits, ModelSpec, Task
from modelyard.testing.server import Running, fake_model

pytestmark = pytest.mark.usefixtures("nothing_left")


def realtime(name: str, *arguments: str) -> ModelSpec:
    command = (sys.executable, "-m", "modelyard.testing.fake_realtime", "--port", "{port}")
    return ModelSpec(
        name,
        "command",
        frozenset({Task.CHAT}),
        command=(*command, "--model", name, *arguments),
        estimate_mib=10,
        limits=Limits(stop_grace_s=2.0),
        health_path="/health",
    )


def at(server: Running, query: str = "model=m", **kwargs: Any) -> connect:
    return connect(
        f"ws://127.0.0.1:{server.port}/v1/realtime?{query}", proxy=None, open_timeout=60, **kwargs
    )


async def greeted(socket: ClientConnection) -> list[str]:
    """The names of the headers that the engine has got: its first message."""
    text = await socket.recv()
    assert isinstance(text, str)
    return text.split()[1:]


async def test_messages_pass_in_both_directions_and_a_cold_model_is_started(serve: Serve) -> None:
    async with serve(realtime("m")) as server, at(server) as socket:
        await greeted(socket)
        await socket.send("hello")
        text = await socket.recv()
        await socket.send(b"\x00" * 300_000)
        data = await socket.recv()
        pong = await socket.ping()
        await asyncio.wait_for(pong, 60)

    assert text == "m: hello"
    assert data == b"m: " + b"\x00" * 300_000


async def test_the_lease_is_held_while_the_websocket_is_open(serve: Serve) -> None:
    async with serve(realtime("m")) as server:
        slot = server.yard.loop.scheduler.models["m"]
        async with at(server) as socket:
            await greeted(socket)
            held = slot.in_flight
            running = len(server.yard.gateway.active)
        await _until(lambda: not slot.in_flight)
        records = server.yard.gateway.records.newest(1)

    assert (held, running) == (1, 1)
    assert [(record.status, record.model, record.error) for record in records] == [(101, "m", "")]


async def test_the_engine_gets_no_credentials_and_the_client_nothing_of_the_engines(
    serve: Serve,
) -> None:
    headers = {"Authorization": "Bearer secret", "Cookie": "a=b", "X-Mine": "1"}
    protocols: Any = ["realtime", "openai-insecure-api-key.sk-secret"]
    async with (
        serve(realtime("m")) as server,
        at(server, additional_headers=headers, subprotocols=protocols) as socket,
    ):
        seen = await greeted(socket)
        chosen = socket.subprotocol
        assert socket.response is not None
        answered = socket.response.headers

    assert "x-mine" in seen
    assert {"authorization", "cookie", "origin"}.isdisjoint(seen)
    assert chosen == "realtime"
    assert "x-asked" not in answered
    assert "x-request-id" in answered


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("", 400, "names one model"),
        ("model=m&model=n", 400, "names one model"),
        ("model=nobody", 404, "no model named"),
        ("model=plain", 400, "has no WebSocket at /v1/realtime"),
    ],
)
async def test_a_wrong_address_is_told_what_is_wrong(
    serve: Serve, query: str, status: int, words: str
) -> None:
    async with serve(realtime("m"), fake_model("plain")) as server:
        with pytest.raises(InvalidStatus) as refused:
            async with at(server, query):
                pass

    assert refused.value.response.status_code == status
    assert words in (refused.value.response.body or b"").decode()


@pytest.mark.parametrize(
    ("origin", "status"), [("https://evil.example", 403), ("null", 403), ("http://localhost:3", 0)]
)
async def test_foreign_web_pages_open_no_websocket(serve: Serve, origin: str, status: int) -> None:
    seen = 0
    async with serve(realtime("m")) as server:
        try:
            async with at(server, additional_headers={"Origin": origin}) as socket:
                await greeted(socket)
        except InvalidStatus as refused:
            seen = refused.response.status_code

    assert seen == status


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ("Sec-WebSocket-Version: 8", 426),
        ("Sec-WebSocket-Key: short", 400),
        ("Host: evil.example", 403),
        ("Content-Length: 4", 400),
    ],
)
async def test_a_wrong_handshake_is_refused(serve: Serve, wrong: str, status: int) -> None:
    lines = {
        "Host": "localhost",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    name, _, value = wrong.partition(": ")
    head = "".join(f"{each}: {text}\r\n" for each, text in {**lines, name: value}.items())
    async with serve(realtime("m")) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(f"GET /v1/realtime?model=m HTTP/1.1\r\n{head}\r\n".encode())
        answer = await asyncio.wait_for(reader.read(), 60)
        writer.close()

    assert int(answer.split()[1]) == status


async def test_without_a_handshake_a_websockets_route_says_what_it_is(serve: Serve) -> None:
    async with serve() as server, httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        answer = await http.get("/v1/realtime?model=m")

    assert (answer.status_code, "WebSocket" in answer.text) == (426, True)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["--wrong-accept"], 502), (["--refuses", "500"], 502), (["--refuses", "404"], 400)],
)
async def test_an_engine_that_does_not_agree_is_told_of(
    serve: Serve, arguments: list[str], status: int
) -> None:
    async with serve(realtime("m", *arguments)) as server:
        with pytest.raises(InvalidStatus) as refused:
            async with at(server):
                pass
        slot = server.yard.loop.scheduler.models["m"]
        left = slot.in_flight

    assert (refused.value.response.status_code, left) == (status, 0)


@pytest.mark.parametrize("how", ["die", "leave"])
async def test_an_engine_that_goes_away_closes_the_websocket(serve: Serve, how: str) -> None:
    async with serve(realtime("m")) as server:
        slot = server.yard.loop.scheduler.models["m"]
        async with at(server) as socket:
            await greeted(socket)
            await socket.send(how)
            with pytest.raises(ConnectionClosed):
                await socket.recv()
        await _until(lambda: not slot.in_flight)
        assert server.yard.gateway.active == set()


async def test_a_client_that_vanishes_gives_its_lease_back(serve: Serve) -> None:
    async with serve(realtime("m")) as server:
        slot = server.yard.loop.scheduler.models["m"]
        socket = await at(server)
        await greeted(socket)
        held = slot.in_flight
        socket.transport.abort()
        await _until(lambda: not slot.in_flight)

    assert held == 1


async def test_a_websocket_on_which_nothing_is_said_is_closed(serve: Serve) -> None:
    async with serve(realtime("m"), websocket_idle_s=0.5) as server:
        async with at(server, ping_interval=None) as socket:
            await greeted(socket)
            with pytest.raises(ConnectionClosedError):
                await asyncio.wait_for(socket.recv(), 60)
        left = server.yard.loop.scheduler.models["m"].in_flight

    assert left == 0


async def test_pings_keep_a_websocket_open(serve: Serve) -> None:
    async with (
        serve(realtime("m"), websocket_idle_s=1.5) as server,
        at(server, ping_interval=0.1) as socket,
    ):
        await greeted(socket)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(socket.recv(), 2.5)
        await socket.send("still here")
        text = await socket.recv()

    assert text == "m: still here"


async def test_a_slow_reader_holds_up_its_engine_and_fills_no_memory(serve: Serve) -> None:
    async with (
        serve(realtime("m")) as server,
        at(server, max_queue=1, max_size=None, ping_interval=None) as socket,
    ):
        await greeted(socket)
        await socket.send("flood 50000000")
        await asyncio.sleep(0.4)
        buffered = _buffered(server)
        received = 0
        while received < 50_000_000 - 65_536:
            received += len(await socket.recv())

    assert buffered < 1_000_000


async def test_an_engine_that_takes_nothing_holds_up_its_client_and_both_are_let_go(
    serve: Serve,
) -> None:
    async with serve(realtime("m"), websocket_idle_s=0.6) as server:
        socket = await at(server, ping_interval=None)
        await greeted(socket)
        await socket.send("deaf")
        (tunnel,) = server.yard.gateway.active
        engine: Any = tunnel
        transport = engine._engine._transport
        sending = asyncio.create_task(_send_for_ever(socket))
        await _until(transport.get_write_buffer_size)
        buffered = transport.get_write_buffer_size()
        socket.transport.abort()  # nobody hears of it: what is not read is not known
        await _until(lambda: not server.yard.loop.scheduler.models["m"].in_flight)
        with pytest.raises(ConnectionClosed):
            await sending

    assert buffered < 2_000_000


async def test_a_websocket_can_be_cancelled_by_its_id(serve: Serve) -> None:
    async with (
        serve(realtime("m")) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
        at(server) as socket,
    ):
        await greeted(socket)
        (shown,) = (await http.get("/api/requests")).json()["running"]
        await http.delete(f"/api/requests/{shown['id']}")
        with pytest.raises(ConnectionClosed):
            await socket.recv()

    assert (shown["state"], shown["model"]) == ("answering", "m")


async def test_the_end_of_the_server_ends_its_websockets(serve: Serve) -> None:
    async with serve(realtime("m"), shutdown_timeout_s=0.3) as server:
        socket = await at(server)
        await greeted(socket)
    with pytest.raises(ConnectionClosed):
        await socket.recv()


async def test_a_variant_leads_to_its_model(serve: Serve) -> None:
    model = dataclasses.replace(realtime("m"), aliases=("gpt-realtime",))
    async with serve(model) as server, at(server, "model=gpt-realtime") as socket:
        await greeted(socket)
        await socket.send("x")
        text = await socket.recv()

    assert text == "m: x"


async def _send_for_ever(socket: ClientConnection) -> None:
    while True:
        await socket.send(bytes(100_000))


def _buffered(server: Running) -> int:
    return max(
        protocol.transport.get_write_buffer_size() for protocol in server.yard.gateway.connections
    )


async def _until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)
