"""Engines that listen on a Unix socket, over the whole server: requests, probes, ends."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import stat
import sys
from pathlib import Path

import httpx
import pytest
from tests.conftest import Serve

from modelyard.core.specs import Health, Limits, ModelSpec, Task
from modelyard.testing.server import DEMO_MODELS, FAKE_TASKS, Running

pytestmark = pytest.mark.usefixtures("nothing_left")

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello there"}], "max_tokens": 4}


def at_socket(*arguments: str, health: Health | None = None) -> ModelSpec:
    command = (sys.executable, "-m", "modelyard.testing.fake_engine", "--uds", "{socket}")
    return ModelSpec(
        "m",
        "command",
        FAKE_TASKS,
        command=(*command, "--model", "m", *arguments),
        estimate_mib=10,
        limits=Limits(stop_grace_s=2.0),
        health=health or Health(),
    )


def client(server: Running) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=server.url, timeout=60)


def socket_of(server: Running) -> Path:
    (run,) = server.yard.loop.runs.values()
    return Path(run.endpoint.path)


@pytest.mark.shows(route="/v1/chat/completions", engine="command", dialect="openai")
async def test_requests_and_probes_go_through_the_socket(serve: Serve) -> None:
    model = at_socket("--load", "50ms", health=Health(functional=True))
    async with serve(model) as server, client(server) as http:
        answers = await asyncio.gather(
            *(http.post("/v1/chat/completions", json=CHAT) for _ in range(20))
        )
        stream = await http.post("/v1/chat/completions", json={**CHAT, "stream": True})
        path = socket_of(server)
        found = path.stat().st_mode, path.parent.stat().st_mode

    assert {answer.status_code for answer in answers} == {200}
    assert stream.text.endswith("data: [DONE]\n\n")
    assert stat.S_ISSOCK(found[0])
    assert stat.S_IMODE(found[1]) == 0o700
    assert not path.parent.exists()


async def test_a_killed_engine_gets_a_new_socket_and_leaves_none(serve: Serve) -> None:
    async with serve(at_socket()) as server, client(server) as http:
        first = await http.post("/v1/chat/completions", json=CHAT)
        old = socket_of(server)
        (run,) = server.yard.loop.runs.values()
        assert run.pid is not None
        os.killpg(run.pid, signal.SIGKILL)
        await asyncio.wait_for(run.upstream.gone.wait(), 60)
        second = await http.post("/v1/chat/completions", json=CHAT)
        new = socket_of(server)
        left = old.parent.exists()

    assert [first.status_code, second.status_code] == [200, 200]
    assert new != old
    assert not left


async def test_a_program_that_cannot_be_started_leaves_no_folder(serve: Serve) -> None:
    model = dataclasses.replace(at_socket(), command=("/no/such/program", "{socket}"))
    async with serve(model) as server, client(server) as http:
        answer = await http.post("/v1/chat/completions", json=CHAT)
        base = server.yard.loop.supervisor.sockets.base

    assert answer.status_code == 503
    assert "/no/such/program" in answer.text
    assert not base.exists()


async def test_llama_cpp_serves_at_a_socket(serve: Serve) -> None:
    command = (sys.executable, "-m", "modelyard.servers.llamacpp", "--port", "0")
    file = str(DEMO_MODELS / "yard-chat.gguf")
    model = ModelSpec(
        "m",
        "command",
        frozenset({Task.CHAT}),
        command=(*command, "--host", "{socket}", "--model", file, "--alias", "{alias}"),
        estimate_mib=100,
        health=Health(functional=True),
    )
    async with serve(model) as server, client(server) as http:
        answer = await http.post("/v1/chat/completions", json={**CHAT, "stream": True})
        path = socket_of(server)

    assert answer.status_code == 200
    assert answer.text.count("data: ") > 2
    assert not path.exists()
