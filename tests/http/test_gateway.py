"""The gateway over real sockets: what it forwards, what it refuses, how answers end."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
from typing import Any

import httpx
import pytest
from tests.conftest import Serve

from modelyard.core.specs import Limits, Task
from modelyard.http.routes import INFERENCE
from modelyard.runtime.dialing import is_taken
from modelyard.testing.server import Running, fake_model

pytestmark = pytest.mark.usefixtures("nothing_left")

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello there"}]}


def client(server: Running, **kwargs: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=server.url, timeout=60, **kwargs)


async def raw(server: Running, data: bytes, *, end: bytes = b"") -> bytes:
    """Send bytes as they are; what comes back until the server closes, or until `end`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(data)
    async with asyncio.timeout(60):
        answer = await (reader.readuntil(end) if end else reader.read())
    writer.close()
    await writer.wait_closed()
    return answer


def post(
    body: bytes, *headers: str, path: str = "/v1/chat/completions", version: str = "1.1"
) -> bytes:
    lines = [f"POST {path} HTTP/{version}", "host: localhost", *headers]
    lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


CHAT_BODY = json.dumps(CHAT).encode()
STREAM_BODY = json.dumps({**CHAT, "stream": True}).encode()

# --------------------------------------------------------------------------------------- forwarding


async def test_an_answer_comes_from_the_model_that_was_named(serve: Serve) -> None:
    async with serve(fake_model("m"), fake_model("other")) as server, client(server) as http:
        answer = await http.post("/v1/chat/completions", json={**CHAT, "model": "other"})

    assert answer.status_code == 200
    assert "other" in answer.json()["choices"][0]["message"]["content"]


async def test_an_alias_names_its_model(serve: Serve) -> None:
    model = dataclasses.replace(fake_model("m"), aliases=("gpt-4o",))
    async with serve(model) as server, client(server) as http:
        answer = await http.post("/v1/chat/completions", json={**CHAT, "model": "gpt-4o"})

    assert answer.status_code == 200


@pytest.mark.shows(route="/v1/chat/completions", engine="command", dialect="openai")
async def test_a_stream_arrives_as_events_and_ends_with_done(serve: Serve) -> None:
    async with serve(fake_model("m", "--tokens", "5")) as server, client(server) as http:
        answer = await http.post("/v1/chat/completions", json={**CHAT, "stream": True})

    events = [line for line in answer.text.split("\n\n") if line]
    assert "text/event-stream" in answer.headers["content-type"]
    assert events[-1] == "data: [DONE]"
    assert all(event.startswith("data: ") for event in events)


async def test_a_request_id_is_taken_over_or_made(serve: Serve) -> None:
    async with serve(fake_model("m")) as server, client(server) as http:
        url = "/v1/chat/completions"
        own = await http.post(url, json=CHAT, headers={"x-request-id": "mine-42"})
        made = await http.post(url, json=CHAT)
        hostile = await http.post(url, json=CHAT, headers={"x-request-id": "x" * 500})

    assert own.headers["x-request-id"] == "mine-42"
    assert made.headers["x-request-id"].startswith("req-")
    assert hostile.headers["x-request-id"].startswith("req-")


async def test_an_old_http_1_0_client_gets_an_answer_that_ends_with_the_connection(
    serve: Serve,
) -> None:
    async with serve(fake_model("m", "--tokens", "3")) as server:
        answer = await raw(server, post(STREAM_BODY, version="1.0"))

    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"chunked" not in head.lower()
    assert body.endswith(b"data: [DONE]\n\n")


async def test_pipelined_requests_are_answered_in_order(serve: Serve) -> None:
    first = json.dumps({**CHAT, "messages": [{"role": "user", "content": "first"}]}).encode()
    second = json.dumps({**CHAT, "messages": [{"role": "user", "content": "second"}]}).encode()
    listing = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    async with serve(fake_model("m")) as server:
        answer = await raw(server, post(first) + post(second) + listing)

    order = [answer.find(b"first"), answer.find(b"second"), answer.find(b'"object":"list"')]
    assert -1 not in order
    assert sorted(order) == order


async def test_a_body_in_chunks_reaches_the_engine(serve: Serve) -> None:
    async def parts() -> Any:
        for at in range(0, len(CHAT_BODY), 7):
            yield CHAT_BODY[at : at + 7]

    async with serve(fake_model("m")) as server, client(server) as http:
        answer = await http.post("/v1/chat/completions", content=parts())

    assert answer.status_code == 200


async def test_a_client_that_expects_continue_is_told_to(serve: Serve) -> None:
    async with serve(fake_model("m")) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(post(CHAT_BODY, "expect: 100-continue").removesuffix(CHAT_BODY))
        told = await reader.readuntil(b"\r\n\r\n")
        writer.write(CHAT_BODY)
        answer = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    assert told.startswith(b"HTTP/1.1 100")
    assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
@pytest.mark.shows(route="/v1/rerank", engine="command", dialect="rerank")
@pytest.mark.shows(route="/v2/rerank", engine="command", dialect="rerank")
@pytest.mark.shows(route="/rerank", engine="command", dialect="rerank")
async def test_rerank_is_served_under_all_its_names(serve: Serve, path: str) -> None:
    model = fake_model("r", "--tasks", "rerank", tasks=frozenset({Task.RERANK}))
    request = {"model": "r", "query": "q", "documents": ["a", "b"]}
    async with serve(model) as server, client(server) as http:
        answer = await http.post(path, json=request)

    assert len(answer.json()["results"]) == 2


async def test_a_slow_reader_holds_up_its_engine_and_nobody_else(serve: Serve) -> None:
    flood = fake_model("flood", "--tokens", "400000", "--tps", "0")
    body = json.dumps({**CHAT, "model": "flood", "stream": True}).encode()
    async with serve(flood, fake_model("m")) as server, client(server) as http:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(post(body))
        await reader.readuntil(b"data:")
        other = await http.post("/v1/chat/completions", json=CHAT)
        await asyncio.sleep(0.3)
        buffered = max(
            protocol.transport.get_write_buffer_size()
            for protocol in _protocols(server)
            if protocol.serving is not None
        )
        writer.transport.abort()

    assert other.status_code == 200
    assert buffered < 1_000_000


def _protocols(server: Running) -> list[Any]:
    exchanges: Any = server.yard.gateway.active
    return [exchange._protocol for exchange in exchanges]


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "words"),
    [
        ("/v1/chat/completions", b"{not json", 400, "invalid_request", "not valid JSON"),
        ("/v1/chat/completions", b"", 400, "invalid_request", "not valid JSON"),
        ("/v1/chat/completions", b"[1, 2]", 400, "invalid_request", "not what this route expects"),
        ("/v1/chat/completions", b'{"model": 7}', 400, "invalid_request", "$.model"),
        ("/v1/embeddings", b'{"input": "x"}', 400, "invalid_request", "names no model"),
        ("/v1/chat/completions", b'{"model": "qwen-smal"}', 404, "model_not_found", "qwen-small"),
        ("/v1/embeddings", b'{"model": "qwen-small"}', 400, "wrong_task", "asks for embedding"),
        ("/v1/rerank", b'{"model": "qwen-small"}', 400, "wrong_task", "chat, completion"),
    ],
)
async def test_a_wrong_request_is_told_what_is_wrong(
    serve: Serve, path: str, body: bytes, status: int, code: str, words: str
) -> None:
    async with serve(fake_model("qwen-small")) as server, client(server) as http:
        answer = await http.post(path, content=body)

    error = answer.json()["error"]
    assert {"message", "type", "param", "code"} == set(error)
    assert (status, code) == (answer.status_code, error["code"])
    assert words in error["message"]
    assert "x-request-id" in answer.headers


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_over_the_limit_is_refused_and_the_answer_is_seen(
    serve: Serve, announced: bool
) -> None:
    body = b" " * 3_000_000
    framing = [] if announced else ["transfer-encoding: chunked"]
    request = (
        post(body) if announced else post(b"", *framing).replace(b"content-length: 0\r\n", b"")
    )
    if not announced:
        request += b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
    async with serve(fake_model("m"), max_body_bytes=1000) as server:
        answer = await raw(server, request)

    assert answer.startswith(b"HTTP/1.1 413")
    assert b"request_too_large" in answer


async def test_a_body_that_never_ends_times_out(serve: Serve) -> None:
    async with serve(fake_model("m"), body_timeout_s=0.3) as server:
        answer = await raw(server, post(CHAT_BODY)[:-5])

    assert answer.startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("host: evil.example", 403),
        ("host: localhost:9", 200),
        ("host: [::1]:9", 200),
        ("host: localhost\r\norigin: https://evil.example", 403),
        ("host: localhost\r\norigin: null", 403),
        ("host: localhost\r\norigin: http://localhost:3000", 200),
    ],
)
async def test_foreign_names_and_foreign_pages_stay_outside(
    serve: Serve, header: str, status: int
) -> None:
    inference = post(CHAT_BODY, "connection: close").replace(b"host: localhost", header.encode())
    admin = f"GET /api/info HTTP/1.1\r\n{header}\r\nconnection: close\r\n\r\n".encode()
    async with serve(fake_model("m")) as server:
        answers = [await raw(server, inference), await raw(server, admin)]

    assert [status, status] == [int(answer.split()[1]) for answer in answers]


async def test_an_engines_own_error_keeps_its_status_and_gets_our_shape(serve: Serve) -> None:
    model = fake_model("m", "--tasks", "embedding")
    async with serve(model) as server, client(server) as http:
        answer = await http.post("/v1/chat/completions", json=CHAT)

    assert 400 <= answer.status_code < 500
    assert {"message", "type", "param", "code"} == set(answer.json()["error"])


async def test_what_is_not_there_is_answered_in_the_same_shape(serve: Serve) -> None:
    async with serve() as server, client(server) as http:
        missing = await http.get("/v1/nothing")
        wrong_method = await http.get("/v1/chat/completions")
        no_model = await http.get("/v1/models/nobody")
        garbage = await raw(server, b"\x00\x01\x02 garbage\r\n\r\n")

    assert [a.status_code for a in (missing, wrong_method, no_model)] == [404, 405, 404]
    assert "use POST" in wrong_method.json()["error"]["message"]
    assert garbage.startswith(b"HTTP/1.1 400")


# ---------------------------------------------------------------------------------- broken engines


async def test_an_engine_that_does_not_speak_http_is_told_of(serve: Serve) -> None:
    async with serve(fake_model("m", "--garbage")) as server, client(server) as http:
        answer = await http.post("/v1/chat/completions", json=CHAT)

    assert answer.status_code == 502
    assert answer.json()["error"]["code"] in ("bad_engine_answer", "engine_died")


async def test_an_engine_that_dies_before_the_first_byte_is_a_502(serve: Serve) -> None:
    async with serve(fake_model("m", "--prefill", "30s")) as server, client(server) as http:
        asked = asyncio.create_task(http.post("/v1/chat/completions", json=CHAT))
        await _stats(server, http, "active")
        pid = server.yard.loop.runs["m", 1].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        answer = await asked

    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_died")


async def test_a_request_that_no_engine_has_seen_is_sent_to_the_next_one(serve: Serve) -> None:
    async with serve(fake_model("m")) as server, client(server) as http:
        await http.post("/v1/chat/completions", json=CHAT)
        run = server.yard.loop.runs["m", 1]
        run.upstream.close()  # no pooled connection: the next request must open one
        assert run.pid is not None
        os.kill(run.pid, signal.SIGKILL)
        await _until(lambda: not is_taken(run.endpoint))
        answer = await http.post("/v1/chat/completions", json=CHAT)

    assert answer.status_code == 200


async def test_a_stream_that_is_cut_ends_with_an_error_event(serve: Serve) -> None:
    model = fake_model("m", "--cut-after", "3", "--tokens", "10")
    async with serve(model) as server, client(server) as http:
        answer = await http.post("/v1/chat/completions", json={**CHAT, "stream": True})

    last = json.loads(answer.text.strip().rpartition("data: ")[2])
    assert last["error"]["code"] == "engine_died"
    assert "[DONE]" not in answer.text


async def test_an_answer_shorter_than_announced_is_visibly_cut(serve: Serve) -> None:
    async with serve(fake_model("m", "--wrong-length")) as server, client(server) as http:
        with pytest.raises(httpx.RemoteProtocolError):
            await http.post("/v1/chat/completions", json=CHAT)


async def test_a_silent_engine_times_out(serve: Serve) -> None:
    limits = Limits(response_timeout_s=0.3, stop_grace_s=1)
    model = fake_model("m", "--prefill", "30s", limits=limits)
    async with serve(model) as server, client(server) as http:
        answer = await http.post("/v1/chat/completions", json=CHAT)

    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "engine_timeout")


# ----------------------------------------------------------------------------------------- waiting


async def test_many_first_requests_start_a_cold_model_once(serve: Serve) -> None:
    async with serve(fake_model("m", "--load", "300ms")) as server, client(server) as http:
        answers = await asyncio.gather(
            *(http.post("/v1/chat/completions", json=CHAT) for _ in range(20))
        )

        assert [answer.status_code for answer in answers] == [200] * 20
        assert server.yard.loop.loads == 1


async def test_a_stream_that_waits_gets_heartbeats_after_a_delay(serve: Serve) -> None:
    settings = {"heartbeat_after_s": 0.1, "heartbeat_every_s": 0.1}
    async with (
        serve(fake_model("m", "--load", "1200ms"), **settings) as server,
        client(server) as http,
    ):
        answer = await http.post("/v1/chat/completions", json={**CHAT, "stream": True})

    beats, _, events = answer.text.partition("data: ")
    assert beats.count(": ping\n") >= 2
    assert set(beats) <= set(": ping\n")
    assert events.endswith("data: [DONE]\n\n")


async def test_an_error_after_heartbeats_is_an_event(serve: Serve) -> None:
    settings = {"heartbeat_after_s": 0.1, "heartbeat_every_s": 0.1}
    limits = Limits(max_wait_s=0.8, stop_grace_s=1)
    model = fake_model("m", "--hang", limits=limits)
    async with serve(model, **settings) as server, client(server) as http:
        answer = await http.post("/v1/chat/completions", json={**CHAT, "stream": True})

    assert answer.status_code == 200
    assert json.loads(answer.text.rpartition("data: ")[2])["error"]["code"] == "wait_timeout"


async def test_an_early_error_keeps_its_status(serve: Serve) -> None:
    model = fake_model("m", "--crash-while-loading", "--exit-code", "3")
    async with serve(model) as server, client(server) as http:
        answer = await http.post("/v1/chat/completions", json={**CHAT, "stream": True})

    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (503, "engine_start_failed")
    assert "out of memory while loading" in error["message"]


async def test_a_full_queue_refuses_with_a_time_to_come_back(serve: Serve) -> None:
    model = fake_model("m", "--load", "700ms", limits=Limits(max_queue=2, stop_grace_s=1))
    async with serve(model) as server, client(server) as http:
        answers = await asyncio.gather(
            *(http.post("/v1/chat/completions", json=CHAT) for _ in range(4))
        )

    refused = [answer for answer in answers if answer.status_code != 200]
    assert [answer.status_code for answer in refused] == [503, 503]
    assert {"queue_full"} == {answer.json()["error"]["code"] for answer in refused}
    assert all(int(answer.headers["retry-after"]) > 0 for answer in refused)


async def test_a_wait_that_takes_too_long_ends_with_the_reason(serve: Serve) -> None:
    model = fake_model("m", "--hang", limits=Limits(max_wait_s=0.4, stop_grace_s=1))
    async with serve(model) as server, client(server) as http:
        answer = await http.post("/v1/chat/completions", json=CHAT)

    assert answer.status_code == 504
    assert "its engine is starting" in answer.json()["error"]["message"]


async def test_a_model_that_can_never_fit_is_refused_with_the_numbers(serve: Serve) -> None:
    async with serve(fake_model("m", mib=5000), mib=100) as server, client(server) as http:
        answer = await http.post("/v1/chat/completions", json=CHAT)

    assert (answer.status_code, answer.headers["x-should-retry"]) == (503, "false")
    assert "needs 5000 MiB on cpu, which can give 100 MiB" in answer.json()["error"]["message"]


# ------------------------------------------------------------------------------ clients that leave


async def test_a_client_that_leaves_stops_the_engines_work(serve: Serve) -> None:
    model = fake_model("m", "--tokens", "100000", "--tps", "50")
    async with serve(model) as server, client(server) as http:
        async with http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as s:
            async for _ in s.aiter_lines():
                break
        stats = await _stats(server, http, "aborted")
        slot = server.yard.loop.scheduler.models["m"]

        assert {k: stats[k] for k in ("aborted", "active")} == {"aborted": 1, "active": 0}
        assert slot.in_flight == 0


async def test_a_client_that_leaves_while_it_waits_leaves_the_queue(serve: Serve) -> None:
    async with serve(fake_model("m", "--load", "1500ms")) as server, client(server) as http:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(post(CHAT_BODY))
        await _until(lambda: server.yard.loop.waiting == 1)
        writer.transport.abort()
        await _until(lambda: server.yard.loop.waiting == 0)
        answer = await http.post("/v1/chat/completions", json=CHAT)
        stats = await _stats(server, http, "requests")

    assert answer.status_code == 200
    assert stats["requests"] == 1


async def _stats(server: Running, http: httpx.AsyncClient, key: str) -> dict[str, int]:
    """The fake engine's own count, once the engine is ready and `key` is no longer zero."""
    scheduler = server.yard.loop.scheduler
    await _until(lambda: scheduler.models["m"].state == "ready")
    endpoint = server.yard.loop.runs["m", 1].endpoint
    async with asyncio.timeout(60):
        while True:
            stats: dict[str, int] = (await http.get(f"http://{endpoint}/stats")).json()
            if stats[key]:
                return stats
            await asyncio.sleep(0.02)


async def _until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def test_every_inference_route_is_listed_once() -> None:
    assert set(Task) == {route.task for route in INFERENCE.values() if route.task is not None}
