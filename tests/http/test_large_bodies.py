"""Requests that are too large to be looked into at once, through a whole server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop
from tests.written_in_c import compiled

from modelyard.config import Config, Devices
from modelyard.http import skim
from modelyard.testing.server import Running, fake_model, running

WORDS = 200_000
ASKED = {
    "messages": [{"role": "user", "content": 'say "\\word" ' * (WORDS // 2)}],
    "model": "m",
    "ids": list(range(20_000)),
}
PATH = "/v1/chat/completions"


@pytest.fixture(autouse=True)
def in_pieces(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where modules are compiled, if they can be here."""
    module = compiled("modelyard.http._skim", tmp_path_factory.mktemp("c"))
    if module is not None:
        monkeypatch.setattr(skim, "skip_value", module.skip_value)
    monkeypatch.setattr(skim, "PIECE", 64 * 1024)


def served(folder: Path, check: Callable[[Running, httpx.AsyncClient], Awaitable[None]]) -> None:
    models = fake_model("m", "--tokens", "3"), fake_model("n", "--tokens", "3")
    config = Config(models=models, devices=Devices(budget_mib={"cpu": 1000}))

    async def serve() -> None:
        async with (
            running(config, folder) as server,
            httpx.AsyncClient(base_url=server.url, timeout=60) as http,
        ):
            await check(server, http)
            assert not server.yard.gateway.active

    uvloop.run(serve())


def test_it_is_understood_as_a_small_one_is(tmp_path: Path) -> None:
    async def check(server: Running, http: httpx.AsyncClient) -> None:
        whole = await http.post(PATH, json=ASKED)
        stream = await http.post(PATH, json={**ASKED, "stream": True})
        told = {"stream_options": {"include_usage": True}}
        with_usage = await http.post(PATH, json={**ASKED, "stream": True, **told})
        records = server.yard.gateway.records.newest(3)

        assert whole.json()["usage"]["prompt_tokens"] == WORDS
        assert '"usage"' not in stream.text
        assert '"usage"' in with_usage.text
        assert {record.model for record in records} == {"m"}
        assert [record.prompt_tokens for record in records] == [WORDS] * 3

    served(tmp_path, check)


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"model": "unknown"}, 404, "model_not_found"),
        ({"model": 5}, 400, "invalid_request"),
        ({"stream": "perhaps"}, 400, "invalid_request"),
    ],
)
def test_it_is_refused_as_a_small_one_is(
    tmp_path: Path, change: dict[str, Any], status: int, code: str
) -> None:
    async def check(server: Running, http: httpx.AsyncClient) -> None:
        large = await http.post(PATH, json={**ASKED, **change})
        small = await http.post(PATH, json={"messages": [], "model": "m", **change})

        assert (large.status_code, large.json()["error"]["code"]) == (status, code)
        assert large.json()["error"]["message"] == small.json()["error"]["message"]

    served(tmp_path, check)


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    async def check(server: Running, http: httpx.AsyncClient) -> None:
        answer = await http.post(PATH, content=json.dumps(ASKED).encode()[:-1])

        assert answer.status_code == 400
        assert "not valid JSON" in answer.json()["error"]["message"]

    served(tmp_path, check)


def test_a_client_that_leaves_meanwhile_leaves_nothing(tmp_path: Path) -> None:
    async def check(server: Running, http: httpx.AsyncClient) -> None:
        body = json.dumps(ASKED).encode()
        head = f"POST {PATH} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n\r\n"
        for cut in (len(body), len(body) - 1):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(head.encode() + body[:cut])
            await writer.drain()
            writer.transport.abort()
        async with asyncio.timeout(20):
            while server.yard.gateway.active or server.yard.gateway.answered < 2:
                await asyncio.sleep(0.01)

        assert (await http.post(PATH, json=ASKED)).status_code == 200

    served(tmp_path, check)


def test_a_fault_of_ours_ends_that_request_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(server: Running, http: httpx.AsyncClient) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(skim.Skim, "go_on", lambda _: 1 / 0)
            broken = await http.post(PATH, json=ASKED)

        assert broken.status_code == 500
        assert (await http.post(PATH, json=ASKED)).status_code == 200

    served(tmp_path, check)
