"""No two engines are told the same port."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from tests.conftest import Serve

from modelyard.runtime.engine_run import EngineRun
from modelyard.runtime.readiness import free_port
from modelyard.testing.server import fake_model

pytestmark = pytest.mark.usefixtures("nothing_left")


async def test_a_port_that_an_engine_is_about_to_take_is_not_given_to_another(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = free_port()
    other = next(port for port in iter(free_port, 0) if port != one)
    # The system may name a port again until somebody listens on it.
    given = iter([one, one, one, other])
    monkeypatch.setattr("modelyard.runtime.supervisor.free_port", given.__next__)
    models = [fake_model(name, "--tokens", "2") for name in "ab"]
    async with (
        serve(*models) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
    ):
        answers = await asyncio.gather(
            *(http.post("/v1/completions", json={"model": name, "prompt": "x"}) for name in "ab")
        )
        runs = server.yard.loop.runs.values()
        ports = [run.endpoint.port for run in runs if isinstance(run, EngineRun)]

    assert [answer.status_code for answer in answers] == [200, 200]
    assert [answer.json()["choices"][0]["text"][0] for answer in answers] == ["a", "b"]
    assert ports == [one, other]
