"""Kill things for real: an engine in mid-answer, the server with engines running."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import httpx
import psutil
import pytest
from tests.conftest import Serve

from modelyard.launchers.environment import OWNER_VARIABLE
from modelyard.testing.server import DEMO_MODELS, fake_model

CHAT = {"model": "yard-chat", "messages": [{"role": "user", "content": "What is Modelyard?"}]}


def client(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, timeout=60)


@pytest.mark.usefixtures("nothing_left")
async def test_an_engine_killed_in_mid_stream_gives_an_error_event_and_then_a_fresh_engine(
    serve: Serve,
) -> None:
    model = fake_model("slow", "--tokens", "1000", "--tps", "20")
    async with serve(model) as server, client(server.url) as http:
        request = {**CHAT, "model": "slow", "stream": True}
        seen = []
        async with http.stream("POST", "/v1/chat/completions", json=request) as stream:
            async for line in stream.aiter_lines():
                seen += [line] if line else []
                if len(seen) == 3:
                    os.kill(server.yard.loop.runs["slow", 1].pid or 0, signal.SIGKILL)
        again = await http.post(
            "/v1/chat/completions", json={**request, "stream": False, "max_tokens": 2}
        )

        assert json.loads(seen[-1].removeprefix("data: "))["error"]["code"] == "engine_died"
        assert again.status_code == 200
        assert server.yard.loop.loads == 2


async def test_a_real_engine_that_is_killed_is_replaced_on_the_next_request(serve: Serve) -> None:
    async with serve(dirs=(DEMO_MODELS,)) as server, client(server.url) as http:
        await http.post("/v1/chat/completions", json=CHAT)
        first = server.yard.loop.runs["yard-chat", 1].pid or 0
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(60):
            while ("yard-chat", 1) in server.yard.loop.runs:
                await asyncio.sleep(0.01)
        answer = await http.post("/v1/chat/completions", json=CHAT)

        assert answer.status_code == 200
        assert first != server.yard.loop.runs["yard-chat", 2].pid


SERVER = """
import sys
from pathlib import Path
import uvloop
from modelyard.app import serve
from modelyard.config import Config, Server
from modelyard.testing.server import DEMO_MODELS, fake_model

config = Config(
    server=Server(port=0, state_dir=Path(sys.argv[1])),
    models_dirs=(DEMO_MODELS,),
    models=(fake_model("stubborn", "--ignore-sigterm", "--tps", "50"),),
)
uvloop.run(serve(config, on_listening=lambda yard: print(yard.facts.url, flush=True)))
"""


async def _start(state: Path) -> tuple[asyncio.subprocess.Process, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, str(state), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        url = (await process.stdout.readline()).decode().strip()
    return process, url


async def _load_both(url: str) -> set[int]:
    async with client(url) as http:
        for model in ("yard-chat", "stubborn"):
            answer = await http.post("/v1/chat/completions", json={**CHAT, "model": model})
            assert answer.status_code == 200
        models = (await http.get("/api/models")).json()
    return {model["pid"] for model in models if model["pid"]}


def _marked(pid: int) -> list[psutil.Process]:
    """Living processes that name the server as their owner."""
    found = []
    for process in psutil.process_iter():
        try:
            owner = process.environ().get(OWNER_VARIABLE, "")
            if owner.startswith(f"{pid}:") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_a_killed_server_leaves_no_process(tmp_path: Path) -> None:
    process, url = await _start(tmp_path)
    engines = await _load_both(url)
    assert len(engines) == 2
    assert len(_marked(process.pid)) >= 2

    process.kill()
    await process.wait()
    async with asyncio.timeout(60):
        while _marked(process.pid) or any(_lives(pid) for pid in engines):
            await asyncio.sleep(0.02)


async def test_the_first_ctrl_c_lets_a_request_end_the_second_cuts_it(tmp_path: Path) -> None:
    process, url = await _start(tmp_path)
    await _load_both(url)
    slow = {**CHAT, "model": "stubborn", "max_tokens": 100000, "stream": True}
    async with (
        client(url) as http,
        http.stream("POST", "/v1/chat/completions", json=slow) as stream,
    ):
        lines = stream.aiter_lines()
        await anext(lines)
        process.send_signal(signal.SIGINT)
        for _ in range(20):
            await anext(lines)  # it goes on
        process.send_signal(signal.SIGINT)
        last = ""
        async for line in lines:
            last = line or last
    async with asyncio.timeout(60):
        code = await process.wait()

    assert "engine_died" in last
    assert code == 0
    assert _marked(process.pid) == []
