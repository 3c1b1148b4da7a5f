"""Clients that send slowly, read slowly, say half of what they want, or nothing at all."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable

import httpx
import pytest
from tests.conftest import Serve
from tests.http.corpus.cases import BODY, CHAT, HOST, JSON, LENGTH, LISTING, chat, get
from tests.http.corpus.wire import converse

from modelyard.testing.server import Running, fake_model

pytestmark = pytest.mark.usefixtures("nothing_left")

STREAM = json.dumps({**json.loads(BODY), "stream": True}).encode()
LEVELS = b"POST /api/plan HTTP/1.1\r\n" + HOST + JSON


async def closed(server: Running, data: bytes) -> bytes:
    """What comes back until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(data)
    async with asyncio.timeout(60):
        answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize(
    "begun", [b"P", CHAT, CHAT + HOST, CHAT + HOST + b"X-A: b", get(b"/v1/models")[:-2]]
)
async def test_a_head_that_does_not_end_in_time_is_told_so(serve: Serve, begun: bytes) -> None:
    async with serve(header_timeout_s=0.3) as server:
        answer = await closed(server, begun)

    assert answer.startswith(b"HTTP/1.1 408")
    assert b"request_timeout" in answer


async def test_a_head_that_comes_byte_by_byte_has_no_more_time(serve: Serve) -> None:
    async with serve(header_timeout_s=0.4) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        drip = asyncio.create_task(_drip(writer, CHAT + HOST + b"X-A: " + b"b" * 10_000, 0.02))
        answer = await asyncio.wait_for(reader.read(), 60)
        drip.cancel()
        writer.close()

    assert answer.startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"\r\n\r\n\r\n"])
async def test_a_connection_on_which_nothing_is_asked_is_closed(serve: Serve, sent: bytes) -> None:
    async with serve(keep_alive_s=0.3) as server:
        answer = await closed(server, sent)

    assert answer == b""


@pytest.mark.parametrize("request_", [chat(), LISTING + b"\r\n"], ids=["inference", "listing"])
async def test_a_connection_is_closed_when_it_was_idle_after_an_answer(
    serve: Serve, request_: bytes
) -> None:
    async with serve(fake_model("m"), keep_alive_s=0.3) as server:
        heard = await converse(server.port, request_, wanted=1)

    assert (heard.statuses, heard.trouble) == ([200], "")


@pytest.mark.parametrize("head", [CHAT + HOST, LEVELS], ids=["inference", "admin"])
async def test_a_body_that_stops_is_told_so(serve: Serve, head: bytes) -> None:
    async with serve(fake_model("m"), body_timeout_s=0.3) as server:
        answer = await closed(server, head + LENGTH + b"\r\n" + BODY[:-3])
        left = len(server.yard.gateway.active)

    assert (answer[:12], left) == (b"HTTP/1.1 408", 0)


@pytest.mark.parametrize("announced", [True, False])
async def test_the_admin_api_takes_no_larger_bodies_than_the_others(
    serve: Serve, announced: bool
) -> None:
    body = b" " * 300_000
    framing = b"Content-Length: %d\r\n\r\n" % len(body)
    if not announced:
        framing = b"Transfer-Encoding: chunked\r\n\r\n"
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    async with serve(max_body_bytes=100_000) as server:
        heard = await converse(server.port, LEVELS + framing + body, wanted=1)

    assert heard.statuses == [413]


async def test_a_body_that_comes_slowly_but_steadily_is_waited_for(serve: Serve) -> None:
    async with serve(fake_model("m"), body_timeout_s=1.0, header_timeout_s=1.0) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(CHAT + HOST + LENGTH + b"\r\n")
        await _drip(writer, BODY, 0.02, size=1)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        writer.close()

    assert head.startswith(b"HTTP/1.1 200")


async def test_a_client_that_takes_nothing_of_its_answer_is_cut_and_its_engine_freed(
    serve: Serve,
) -> None:
    flood = fake_model("m", "--tokens", "1000000", "--tps", "0")
    async with serve(flood, send_timeout_s=0.3) as server:
        slot = server.yard.loop.scheduler.models["m"]
        _, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1000)
        writer.write(chat(body=STREAM))
        await _until(lambda: slot.in_flight == 1)
        await _until(lambda: slot.in_flight == 0)
        left = len(server.yard.gateway.active)
        writer.transport.abort()

    assert left == 0


async def test_a_client_that_reads_slowly_but_steadily_gets_everything(serve: Serve) -> None:
    flood = fake_model("m", "--tokens", "5000", "--tps", "0")
    loop = asyncio.get_running_loop()
    async with serve(flood, send_timeout_s=1.0) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
            connection.setblocking(False)
            await loop.sock_sendall(connection, chat(b"Connection: close\r\n", body=STREAM))
            received = b""
            while part := await loop.sock_recv(connection, 64 * 1024):
                received = received[-100:] + part
                await asyncio.sleep(0.015)

    assert b"data: [DONE]" in received


async def test_a_client_that_closes_its_half_has_left(serve: Serve) -> None:
    """A half-closed connection looks like one that is gone, and for an engine's sake it is."""
    endless = fake_model("m", "--tokens", "100000", "--tps", "50")
    async with serve(endless) as server:
        slot = server.yard.loop.scheduler.models["m"]
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(chat(body=STREAM))
        await asyncio.wait_for(reader.readuntil(b"data:"), 60)
        writer.write_eof()
        await asyncio.wait_for(reader.read(), 60)
        await _until(lambda: slot.in_flight == 0)
        writer.close()


async def test_many_silent_connections_hold_up_nobody(serve: Serve) -> None:
    async with serve(fake_model("m")) as server:
        silent = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(300)]
        for _, writer in silent[::2]:
            writer.write(CHAT + HOST)
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            answer = await http.post("/v1/chat/completions", content=BODY)
        held = len(server.yard.gateway.connections)
        for _, writer in silent:
            writer.transport.abort()
        await _until(lambda: len(server.yard.gateway.connections) <= 1)

    assert (answer.status_code, held >= 300) == (200, True)


async def test_what_is_asked_while_an_answer_is_written_is_not_hoarded(serve: Serve) -> None:
    """Requests on top of one that is being answered wait in the client's own buffers."""
    endless = fake_model("m", "--tokens", "100000", "--tps", "50")
    async with serve(endless) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(chat(body=STREAM))
        await asyncio.wait_for(reader.readuntil(b"data:"), 60)
        sent = asyncio.create_task(_drip(writer, chat() * 40_000, 0, size=1_000_000))
        await asyncio.sleep(0.3)
        (protocol,) = server.yard.gateway.connections
        queued = len(protocol.pipeline)
        sent.cancel()
        writer.transport.abort()
        await _until(lambda: not server.yard.gateway.active)

    assert queued < 4000


async def _drip(writer: asyncio.StreamWriter, data: bytes, pause_s: float, size: int = 10) -> None:
    for at in range(0, len(data), size):
        writer.write(data[at : at + size])
        await writer.drain()
        await asyncio.sleep(pause_s)


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)
