"""Two real Modelyard servers behind a third: one is killed under load, and nobody notices."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.conftest import Serve
from tests.http.remote_peer import remote

from modelyard.core.circuit import Gate, Thresholds
from modelyard.core.specs import RemoteUpstream
from modelyard.runtime.remote_run import RemoteRun

CLIENTS = 50
REQUESTS_EACH = 8

SERVER = """
import sys
from pathlib import Path
import uvloop
from modelyard.app import serve
from modelyard.config import Config, Devices, Server
from modelyard.testing.server import fake_model

config = Config(
    server=Server(port=0, state_dir=Path(sys.argv[1])),
    devices=Devices(budget_mib={"cpu": 100}),
    models=(fake_model("theirs", "--tokens", "6", "--tps", "60"),),
)
uvloop.run(serve(config, on_listening=lambda yard: print(yard.facts.url, flush=True)))
"""


@contextlib.asynccontextmanager
async def modelyard(state: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A server in a process of its own, and its address."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, str(state), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            url = (await process.stdout.readline()).decode().strip()
        yield process, url
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        await process.wait()


async def _one(http: httpx.AsyncClient, stream: bool) -> tuple[int, bytes]:
    """Status and text of an answer."""
    request: dict[str, Any] = {
        "model": "m",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": stream,
    }
    answer = await http.post("/v1/chat/completions", json=request)
    return answer.status_code, answer.content


@pytest.mark.usefixtures("nothing_left")
async def test_nobody_gets_an_error_before_the_first_byte_when_a_server_is_killed(
    serve: Serve, tmp_path: Path
) -> None:
    async with modelyard(tmp_path / "a") as (killed, a), modelyard(tmp_path / "b") as (_, b):
        upstreams = [RemoteUpstream(f"{url}/v1", key="k", model="theirs") for url in (a, b)]
        model = remote(*upstreams, thresholds=Thresholds(3, 0.5, 2.0))
        everybody = httpx.Limits(max_connections=None)
        async with (
            serve(model) as server,
            httpx.AsyncClient(base_url=server.url, timeout=60, limits=everybody) as http,
        ):
            done: list[tuple[int, bytes]] = []

            async def client(number: int) -> None:
                for at in range(REQUESTS_EACH):
                    done.append(await _one(http, stream=(number + at) % 2 == 0))

            async def kill() -> None:
                while len(done) < CLIENTS * REQUESTS_EACH // 3:
                    await asyncio.sleep(0.005)
                killed.kill()

            await asyncio.gather(kill(), *(client(number) for number in range(CLIENTS)))
            run = next(iter(server.yard.loop.runs.values()))
            assert isinstance(run, RemoteRun)

    assert len(done) == CLIENTS * REQUESTS_EACH
    assert {status for status, _ in done} == {200}
    cut = [text for _, text in done if b'"error"' in text]
    assert all(b'"delta"' in text for text in cut), "an error was the first that a client heard"
    assert len(cut) < CLIENTS
    assert [circuit.gate for circuit in run.circuits] == [Gate.OPEN, Gate.CLOSED]
    assert run.upstream.leases == 0
