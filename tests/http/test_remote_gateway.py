"""Requests to somebody else's endpoint: what leaves this machine, and what if it fails."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.conftest import Serve
from tests.http.remote_peer import Peer, answer, certificates, peer, remote

from modelyard.core.circuit import Gate, Thresholds
from modelyard.core.specs import RemoteUpstream
from modelyard.runtime.remote_run import RemoteRun
from modelyard.testing.server import Running

pytestmark = pytest.mark.usefixtures("nothing_left")

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
EVENTS = b"HTTP/1.1 200 x\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'10\r\ndata: {"n": 1}\n\n\r\n'


async def ask(
    server: Running, headers: dict[str, str] | None = None, **keys: Any
) -> httpx.Response:
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        return await http.post("/v1/chat/completions", json={**CHAT, **keys}, headers=headers)


def run_of(server: Running) -> RemoteRun:
    run = next(iter(server.yard.loop.runs.values()))
    assert isinstance(run, RemoteRun)
    return run


# ----------------------------------------------------------------------------- what leaves, and how


@pytest.mark.shows(route="/v1/chat/completions", engine="remote", dialect="openai")
async def test_a_request_goes_out_under_the_upstreams_name_and_key(serve: Serve) -> None:
    async with peer() as there:
        upstream = RemoteUpstream(there.url(path="/base/openai"), key="ours", model="gpt-big")
        async with serve(remote(upstream)) as server:
            said = await ask(
                server,
                {
                    "authorization": "Bearer theirs",
                    "api-key": "theirs",
                    "x-goog-api-key": "theirs",
                    "cookie": "theirs",
                    "x-forwarded-for": "theirs",
                    "openai-beta": "v2",
                },
                temperature=1.50,
            )

    assert said.status_code == 200
    head = there.heads[0]
    assert head.startswith(b"POST /base/openai/chat/completions HTTP/1.1\r\n")
    assert b"host: 127.0.0.1:%d\r\n" % there.port in head
    assert b"authorization: Bearer ours\r\n" in head
    assert b"openai-beta: v2\r\n" in head
    assert b"theirs" not in head
    assert json.loads(there.bodies[0]) == {**CHAT, "model": "gpt-big", "temperature": 1.5}


async def test_a_remote_is_ready_without_a_device_and_without_being_asked(serve: Serve) -> None:
    async with (
        peer() as there,
        serve(remote(there, preload=True), mib=1) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
        asyncio.timeout(60),
    ):
        while (view := (await http.get("/api/models/m")).json())["state"] != "ready":
            await asyncio.sleep(0.01)

    assert view["memory_mib"] == {}
    assert view["pid"] is None
    assert (there.heads, there.probes) == ([], [])


async def test_a_redirect_is_not_followed_and_no_key_goes_where_it_leads(serve: Serve) -> None:
    async with peer() as recording:
        away = f"location: {recording.url()}/chat/completions?secret=1"
        async with peer(lambda _: answer(307, b"", away)) as there, serve(remote(there)) as server:
            said = await ask(server)
            await asyncio.sleep(0.05)

    error = said.json()["error"]
    assert (said.status_code, error["code"]) == (502, "upstream_redirects")
    assert f"to http://127.0.0.1:{recording.port} " in error["message"]
    assert "secret" not in error["message"]
    assert len(there.heads) == 1
    assert recording.connections == 0


async def test_each_upstream_gets_its_own_key_and_no_others(serve: Serve) -> None:
    async with peer(lambda _: answer(503)) as first, peer() as second:
        both = (RemoteUpstream(first.url(), key="one"), RemoteUpstream(second.url(), key="two"))
        async with serve(remote(*both)) as server:
            for _ in range(4):
                assert (await ask(server)).status_code == 200

    seen = {name: b"".join(p.heads + p.probes) for name, p in (("a", first), ("b", second))}
    assert b"Bearer one" in seen["a"]
    assert b"two" not in seen["a"]
    assert b"Bearer two" in seen["b"]
    assert b"one" not in seen["b"]


async def test_a_refused_key_is_said_to_be_ours(serve: Serve) -> None:
    body = b'{"error": {"message": "Incorrect API key provided: ours"}}'
    async with peer(lambda _: answer(401, body)) as there, serve(remote(there)) as server:
        said = await ask(server)

    assert said.status_code == 502
    assert said.json()["error"]["code"] == "upstream_refuses_key"
    assert "provided" not in said.text  # what they say of a key often holds a part of it


# ----------------------------------------------------------------------------------------- failover


@pytest.mark.parametrize(
    "trouble",
    [
        answer(502),
        answer(503),
        answer(504),
        answer(429, b"{}", "retry-after: 7"),
        None,
        b"HTTP/1.1 200 x\r\ncontent-length: 9\r\n\r\n",  # a head, and then nothing
        b"nonsense\r\n\r\n",
    ],
    ids=["502", "503", "504", "429", "closed", "cut", "nonsense"],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_fails_before_the_first_byte_is_asked_elsewhere(
    serve: Serve, trouble: bytes | None, stream: bool
) -> None:
    once = iter([trouble])

    async def close_after_head(there: Peer) -> None:
        async with asyncio.timeout(60):
            while not there.heads:
                await asyncio.sleep(0.01)
        for writer in tuple(there.writers):
            writer.close()

    async with peer(lambda _: next(once, answer(200))) as bad, peer() as good:
        weighed = (
            RemoteUpstream(bad.url(), weight=100),
            RemoteUpstream(good.url(), weight=1),
        )
        async with serve(remote(*weighed)) as server:
            closing = asyncio.create_task(close_after_head(bad) if trouble else asyncio.sleep(0))
            said = await ask(server, stream=stream)
            await closing

    assert said.status_code == 200
    assert said.json()["choices"]
    assert (len(bad.heads), len(good.heads)) == (1, 1)


async def test_what_an_upstream_says_of_a_bad_request_is_passed_on(serve: Serve) -> None:
    said_there = b'{"error": {"message": "too long", "code": "context_length_exceeded"}}'
    async with peer(lambda _: answer(400, said_there)) as one, peer() as other:
        weighed = (RemoteUpstream(one.url(), weight=9), RemoteUpstream(other.url(), weight=0))
        async with serve(remote(*weighed)) as server:
            said = await ask(server)

    assert said.status_code == 400
    assert said.json()["error"]["code"] == "context_length_exceeded"
    assert other.heads == []


async def test_the_last_upstreams_own_error_reaches_the_client(serve: Serve) -> None:
    busy = answer(429, b'{"error": {"message": "slow down"}}', "retry-after: 7")
    async with peer(lambda _: busy) as one, serve(remote(one)) as server:
        answers = [await ask(server) for _ in range(3)]

    assert [said.status_code for said in answers] == [429] * 3
    assert answers[0].headers["retry-after"] == "7"
    assert answers[0].json()["error"]["message"] == "slow down"
    assert len(one.heads) == 3


async def test_after_the_first_byte_nobody_else_is_asked(serve: Serve) -> None:
    async with peer() as bad, peer() as good:
        bad.script = lambda _: EVENTS + EVENT + b"..."
        weighed = (RemoteUpstream(bad.url(), weight=9), RemoteUpstream(good.url(), weight=1))
        async with (
            serve(remote(*weighed)) as server,
            httpx.AsyncClient(base_url=server.url, timeout=60) as http,
            http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as stream,
        ):
            lines = []
            async for line in stream.aiter_lines():
                lines += [line] if line else []
                if len(lines) == 1:
                    await bad.stop()

    assert stream.status_code == 200
    assert lines[0] == 'data: {"n": 1}'
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"]
    assert good.heads == []


async def test_a_stream_that_only_had_heartbeats_still_goes_elsewhere(serve: Serve) -> None:
    async with peer(lambda _: b"...") as silent, peer() as good:
        good.script = lambda _: EVENTS + EVENT + b"0\r\n\r\n"
        weighed = (RemoteUpstream(silent.url(), weight=9), RemoteUpstream(good.url()))
        async with (
            serve(remote(*weighed), heartbeat_after_s=0.01, heartbeat_every_s=0.01) as server,
            httpx.AsyncClient(base_url=server.url, timeout=60) as http,
            http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as stream,
        ):
            lines = []
            async for line in stream.aiter_lines():
                lines += [line] if line else []
                if lines == [": ping"]:
                    await silent.stop()

    assert lines[0] == ": ping"
    assert lines[-1] == 'data: {"n": 1}'
    assert not any("error" in line for line in lines)


async def test_a_client_that_leaves_stops_the_work_of_the_upstream(serve: Serve) -> None:
    async with peer(lambda _: EVENTS + EVENT + b"...") as there, serve(remote(there)) as server:
        async with (
            httpx.AsyncClient(base_url=server.url, timeout=60) as http,
            http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as stream,
        ):
            await anext(stream.aiter_lines())
        async with asyncio.timeout(60):
            while not there.closed_early:
                await asyncio.sleep(0.01)
            while run_of(server).upstream.leases:
                await asyncio.sleep(0.01)


async def test_a_pooled_connection_that_was_closed_is_made_anew_and_blames_nobody(
    serve: Serve,
) -> None:
    async with peer() as there, serve(remote(there)) as server:
        first = await ask(server)
        there.script = lambda _: None if there.connections == 1 else answer(200)
        second = await ask(server)

        assert (first.status_code, second.status_code) == (200, 200)
        assert there.connections == 2
        assert run_of(server).circuits[0].gate is Gate.CLOSED


async def test_connections_are_kept_for_the_next_request(serve: Serve) -> None:
    async with peer() as there, serve(remote(there)) as server:
        for _ in range(5):
            await ask(server)

    assert (len(there.heads), there.connections) == (5, 1)


# ------------------------------------------------------------------------------- circuits and ends


async def test_an_upstream_that_fails_is_left_alone_until_a_probe_and_a_trial_succeed(
    serve: Serve,
) -> None:
    async with peer() as good, peer() as bad:
        await bad.stop()
        model = remote(bad, good, thresholds=Thresholds(2, 0.05, 0.1))
        async with serve(model) as server:
            for _ in range(6):
                assert (await ask(server)).status_code == 200
            circuit = run_of(server).circuits[0]
            gates = [circuit.gate]
            await bad.start()
            async with asyncio.timeout(60):
                while not bad.probes:
                    await asyncio.sleep(0.01)
                while circuit.gate is gates[0]:
                    await asyncio.sleep(0.01)
            gates.append(circuit.gate)
            for _ in range(4):
                assert (await ask(server)).status_code == 200
            gates.append(circuit.gate)

    assert gates == [Gate.OPEN, Gate.HALF_OPEN, Gate.CLOSED]

    assert len(bad.heads) == 2
    assert len(bad.probes) == 1


async def test_a_remote_fails_with_its_upstreams_reasons_and_comes_back_with_one_of_them(
    serve: Serve,
) -> None:
    async with peer() as there:
        await there.stop()
        async with (
            serve(remote(there)) as server,
            httpx.AsyncClient(base_url=server.url, timeout=60) as http,
            asyncio.timeout(60),
        ):
            first, second = await ask(server), await ask(server)
            view = (await http.get("/api/models/m")).json()
            await there.start()
            while (await http.get("/api/models/m")).json()["state"] != "ready":
                await asyncio.sleep(0.02)
            third = await ask(server)

    assert (first.status_code, first.json()["error"]["code"]) == (502, "upstreams_failed")
    assert second.status_code == 503
    assert "asked again once one of its upstreams answers" in second.json()["error"]["message"]
    for said in (first, second):
        assert f"http://127.0.0.1:{there.port}" in said.json()["error"]["message"]
    assert view["state"] == "failed"
    assert "no upstream answers" in view["reason"]
    assert third.status_code == 200


async def test_one_that_broke_off_but_answers_its_probe_is_asked_again_at_once(
    serve: Serve,
) -> None:
    async with (
        peer(lambda head: answer(200) if head.startswith(b"GET") else None) as there,
        serve(remote(there, thresholds=Thresholds(1, 30.0, 60.0))) as server,
    ):
        first = await ask(server)
        there.script = lambda _: answer(200)
        second = await ask(server)

    assert first.status_code == 502
    assert second.status_code == 200


# ---------------------------------------------------------------------------------------------- TLS


async def test_a_certificate_is_checked_against_the_given_authority_and_the_name(
    serve: Serve, tmp_path: Path
) -> None:
    context, authority = certificates(tmp_path, "localhost")
    names: list[str | None] = []
    context.sni_callback = lambda _, name, __: names.append(name)
    async with peer(tls=context) as there:
        trusted = RemoteUpstream(there.url("https", "localhost"), "k", ca_file=str(authority))
        strange = RemoteUpstream(there.url("https", "localhost"), "k")
        misnamed = RemoteUpstream(there.url("https", "127.0.0.1"), "k", ca_file=str(authority))
        answers = []
        for upstream in (trusted, strange, misnamed):
            async with serve(remote(upstream)) as server:
                answers.append(await ask(server))

    assert [said.status_code for said in answers] == [200, 502, 502]
    assert len(there.heads) == 1
    assert names[0] == "localhost"
    assert f"host: localhost:{there.port}".encode() in there.heads[0]
    assert "certificate verify failed" in answers[1].json()["error"]["message"]
    assert "127.0.0.1" in answers[2].json()["error"]["message"]


async def test_a_tls_error_is_a_reason_to_ask_another_upstream(
    serve: Serve, tmp_path: Path
) -> None:
    context, _ = certificates(tmp_path, "localhost")
    async with peer(tls=context) as strange, peer() as good:
        untrusted = RemoteUpstream(strange.url("https", "localhost"), weight=9)
        async with serve(remote(untrusted, RemoteUpstream(good.url()))) as server:
            said = await ask(server)

    assert said.status_code == 200
    assert (len(strange.heads), len(good.heads)) == (0, 1)


async def test_a_slow_client_holds_an_encrypted_upstream_back(serve: Serve, tmp_path: Path) -> None:
    context, authority = certificates(tmp_path, "localhost")
    size = 64 * 1024 * 1024
    async with peer(lambda _: answer(200, b"x" * size), tls=context) as there:
        upstream = RemoteUpstream(there.url("https", "localhost"), ca_file=str(authority))
        async with serve(remote(upstream)) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            body = json.dumps(CHAT).encode()
            head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: "
            writer.write(f"{head}{len(body)}\r\n\r\n".encode() + body)
            await reader.readuntil(b"\r\n\r\n")
            sent, before = there.sent, -1
            async with asyncio.timeout(60):
                while sent != before:
                    await asyncio.sleep(0.2)
                    sent, before = there.sent, sent
            writer.transport.abort()

    assert 0 < sent < size / 2


async def test_a_file_that_holds_no_certificates_is_said_at_once(
    serve: Serve, tmp_path: Path
) -> None:
    (tmp_path / "no.pem").write_text("nothing")
    upstream = RemoteUpstream("https://localhost:1", ca_file=str(tmp_path / "no.pem"))
    async with serve(remote(upstream)) as server:
        said = await ask(server)

    assert said.status_code == 503
    assert "certificates cannot be read" in said.json()["error"]["message"]


async def test_nobody_looks_at_the_upstreams_of_a_model_that_was_stopped(serve: Serve) -> None:
    async with peer(lambda _: answer(503)) as there, serve(remote(there)) as server:
        said = await ask(server)
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http, asyncio.timeout(60):
            while (await http.get("/api/models/m")).json()["state"] != "failed":
                await asyncio.sleep(0.01)
            await http.post("/api/models/m/stop")
            state = (await http.get("/api/models/m")).json()["state"]
        async with asyncio.timeout(60):
            while len(server.yard.loop.supervisor.revivals):  # a look that was due may still go out
                await asyncio.sleep(0.01)
        before = len(there.probes)
        await asyncio.sleep(0.3)

    assert said.status_code == 503
    assert state == "stopped"
    assert len(there.probes) == before


@pytest.mark.shows(route="/v1/audio/translations", engine="remote", dialect="openai")
async def test_a_recording_goes_out_under_the_upstreams_name(serve: Serve) -> None:
    sound = bytes(range(256)) * 30
    async with peer(lambda _: answer(200, b'{"text":"hi"}')) as there:
        upstream = RemoteUpstream(there.url(path="/api"), key="ours", model="whisper-big")
        async with (
            serve(remote(upstream)) as server,
            httpx.AsyncClient(base_url=server.url, timeout=60) as http,
        ):
            files = {"file": ("a.wav", sound, "audio/wav")}
            said = await http.post("/v1/audio/translations", data={"model": "m"}, files=files)

    assert said.json() == {"text": "hi"}
    assert there.heads[0].startswith(b"POST /api/audio/translations HTTP/1.1\r\n")
    assert b"content-type: multipart/form-data; boundary=" in there.heads[0]
    assert sound in there.bodies[0]
    assert b'name="model"\r\n\r\nwhisper-big\r\n--' in there.bodies[0]
