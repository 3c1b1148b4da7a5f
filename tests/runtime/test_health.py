"""An engine is ready, and cleared of a suspicion, when its model answers, not only its route."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from modelyard.core.specs import Health, Limits, ModelSpec, Task
from modelyard.runtime import engine_run
from modelyard.runtime.engine_run import EngineRun
from modelyard.runtime.vitals import SUSPECT_AFTER, Vitals
from modelyard.testing.server import Running

ENGINE = Path(__file__).with_name("sick_engine.py")
ASK = {"model": "m", "messages": [{"role": "user", "content": "are you well?"}]}
ASKED = Health(functional=True)
HUNG_S = 0.6

Serve = Callable[..., AbstractAsyncContextManager[Running]]


def model(
    state: str = "well", health: Health = ASKED, tasks: tuple[Task, ...] = (Task.CHAT,)
) -> ModelSpec:
    command = (sys.executable, str(ENGINE), "--port", "{port}", "--state", state)
    return ModelSpec(
        "m", "command", frozenset(tasks), command=command, estimate_mib=10,
        limits=Limits(stop_grace_s=2.0), health=health,
    )  # fmt: skip


class Watcher:
    """Looks at the model `m` of a server, and at its engine from behind."""

    def __init__(self, server: Running, http: httpx.AsyncClient) -> None:
        self.server = server
        self.http = http

    @property
    def run(self) -> EngineRun:
        (run,) = self.server.yard.loop.runs.values()
        assert isinstance(run, EngineRun)
        return run

    @property
    def suspected(self) -> bool:
        return self.server.yard.loop.scheduler.models["m"].first.suspected

    async def start(self) -> dict[str, Any]:
        await self.http.post("/api/models/m/start")
        return await self.until(lambda view: view["state"] not in ("stopped", "starting"))

    async def view(self) -> dict[str, Any]:
        view: dict[str, Any] = (await self.http.get("/api/models/m")).json()
        return view

    async def until(self, good: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        async with asyncio.timeout(60):
            while not good(view := await self.view()):
                await asyncio.sleep(0.01)
        return view

    async def tell(self, what: str) -> None:
        await self.http.post(f"http://{self.run.endpoint}/{what}")

    async def asked(self) -> list[dict[str, Any]]:
        answer = await self.http.get(f"http://{self.run.endpoint}/asked")
        asked: list[dict[str, Any]] = answer.json()["asked"]
        return asked

    def answer_badly(self) -> None:
        for _ in range(SUSPECT_AFTER):
            self.run.vitals.answered(500)


@pytest.fixture
async def watch(serve: Serve) -> AsyncIterator[Callable[[ModelSpec], Any]]:
    """`watcher = await watch(model(...))`: a server with this model."""
    stack = AsyncExitStack()

    async def begin(spec: ModelSpec) -> Watcher:
        server = await stack.enter_async_context(serve(spec))
        http = httpx.AsyncClient(base_url=server.url, timeout=60)
        return Watcher(server, await stack.enter_async_context(http))

    async with stack:
        yield begin


# --------------------------------------------------------------------------------------- at a start


async def test_a_model_is_asked_for_one_token_before_it_is_ready(watch: Any) -> None:
    watcher = await watch(model())

    assert (await watcher.start())["state"] == "ready"
    assert await watcher.asked() == [
        {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    ]


@pytest.mark.parametrize(
    ("tasks", "body"),
    [
        ((Task.CHAT, Task.COMPLETION), {"model": "m", "prompt": "Hi", "max_tokens": 1}),
        ((Task.EMBEDDING,), {"model": "m", "input": "Hi"}),
        ((Task.RERANK,), {"model": "m", "query": "Hi", "documents": ["Hi"]}),
    ],
)
async def test_each_task_has_a_smallest_request(
    watch: Any, tasks: tuple[Task, ...], body: dict[str, Any]
) -> None:
    watcher = await watch(model(tasks=tasks))
    await watcher.start()

    assert await watcher.asked() == [body]


@pytest.mark.parametrize("health", [Health(), Health(functional=False)])
async def test_a_command_of_the_users_own_is_asked_only_if_he_wants_it(
    watch: Any, health: Health
) -> None:
    watcher = await watch(model("sick", health))

    assert (await watcher.start())["state"] == "ready"
    assert await watcher.asked() == []


async def test_a_model_that_does_not_answer_has_failed_to_start_and_its_words_are_quoted(
    watch: Any,
) -> None:
    watcher = await watch(model("sick"))
    view = await watcher.start()

    assert view["state"] == "backoff"
    assert view["reason"].startswith(
        "its health route answers, but the model does not: POST /v1/chat/completions: status 500: "
        "EngineCore is dead; last output: "
    )


async def test_a_model_that_is_silent_has_failed_to_start_after_its_own_time(watch: Any) -> None:
    watcher = await watch(model("silent", Health(functional=True, timeout_s=0.3)))
    view = await watcher.start()

    assert "POST /v1/chat/completions: no answer after 0.3 s" in view["reason"]


async def test_a_stop_does_not_wait_for_a_silent_model(watch: Any) -> None:
    watcher = await watch(model("silent"))
    await watcher.http.post("/api/models/m/start")
    await watcher.until(lambda view: view["phase"] == "trying the model")
    await watcher.http.post("/api/models/m/stop")

    assert (await watcher.until(lambda view: view["state"] == "stopped"))["reason"] in (None, "")


# --------------------------------------------------------------------------------- after suspicion


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines are given up sooner than people would like it."""
    monkeypatch.setattr(engine_run, "HUNG_AFTER_S", HUNG_S)
    monkeypatch.setattr(engine_run, "PROBE_AGAIN_S", 0.05)


async def test_an_engine_that_answered_badly_is_cleared_once_its_model_answers(watch: Any) -> None:
    watcher = await watch(model())
    run = (await watcher.start())["run"]

    watcher.answer_badly()
    assert watcher.suspected
    answer = await watcher.http.post("/v1/chat/completions", json=ASK)

    assert answer.json()["choices"][0]["message"]["content"] == "I am well"
    assert len(await watcher.asked()) == 3  # before it was ready, to clear it, and the client's
    assert (await watcher.view())["run"] == run


@pytest.mark.usefixtures("_soon")
async def test_an_engine_whose_model_is_dead_is_replaced_although_its_route_answers(
    watch: Any,
) -> None:
    watcher = await watch(model())
    run = (await watcher.start())["run"]
    await watcher.tell("state/sick")

    watcher.answer_badly()
    answer = await watcher.http.post("/v1/chat/completions", json=ASK)

    assert answer.json()["choices"][0]["message"]["content"] == "I am well"  # of a fresh engine
    assert (await watcher.view())["run"] > run


@pytest.mark.usefixtures("_soon")
async def test_a_silent_engine_that_nobody_uses_is_replaced(watch: Any) -> None:
    watcher = await watch(model())
    run = (await watcher.start())["run"]
    await watcher.tell("state/silent")

    watcher.answer_badly()
    await watcher.until(lambda view: view["state"] != "ready")
    await watcher.http.post("/api/models/m/start")

    assert (await watcher.until(lambda view: view["state"] == "ready"))["run"] > run


@pytest.mark.usefixtures("_soon")
async def test_an_engine_that_is_busy_is_not_cut_for_its_silence(watch: Any) -> None:
    watcher = await watch(model())
    run = (await watcher.start())["run"]
    await watcher.tell("state/silent")
    answering = asyncio.create_task(watcher.http.post("/v1/chat/completions", json=ASK))
    await watcher.until(lambda view: view["in_flight"] == 1)

    watcher.answer_badly()
    async with asyncio.timeout(60):
        while watcher.suspected:
            await asyncio.sleep(0.02)
    await watcher.tell("state/well")

    assert (await answering).status_code == 200
    assert (await watcher.view())["run"] == run


async def test_no_request_is_made_where_real_ones_are_answered_meanwhile(watch: Any) -> None:
    watcher = await watch(model())
    await watcher.start()
    await watcher.tell("health/down")

    watcher.answer_badly()
    watcher.run.vitals.answered(200)
    await watcher.tell("health/up")
    async with asyncio.timeout(60):
        while watcher.suspected:
            await asyncio.sleep(0.02)

    # Whether the route was asked before or after the good answer is a matter of luck.
    assert len(await watcher.asked()) <= 2


# ----------------------------------------------------------------------------------------- counting


@pytest.mark.parametrize(
    ("statuses", "alarms"),
    [
        ([500, 500], 0),
        ([500, 500, 500], 1),
        ([500, 502, 504, 500, 500], 1),
        ([500] * 6, 2),
        ([500, 500, 200, 500, 500], 0),
        ([500, 500, 404, 500], 0),
        ([503] * 9, 0),
        ([501] * 9, 0),
        ([200] * 9, 0),
    ],
)
def test_answers_of_an_engines_own_errors_are_counted_in_a_row(
    statuses: list[int], alarms: int
) -> None:
    heard: list[int] = []
    vitals = Vitals(lambda: heard.append(1))
    for status in statuses:
        vitals.answered(status)

    assert len(heard) == alarms
    assert vitals.well == sum(status not in (500, 502, 504) for status in statuses)


@pytest.mark.usefixtures("_soon")
async def test_an_engine_that_answers_500_to_real_requests_is_replaced(watch: Any) -> None:
    watcher = await watch(model())
    run = (await watcher.start())["run"]
    await watcher.tell("state/sick")

    statuses = [
        (await watcher.http.post("/v1/chat/completions", json=ASK)).status_code
        for _ in range(SUSPECT_AFTER + 1)
    ]

    assert statuses == [500, 500, 500, 200]
    assert (await watcher.view())["run"] > run
