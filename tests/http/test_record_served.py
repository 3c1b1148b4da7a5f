"""What is kept of a request is right in every dialect, and however the request ends."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from tests.http.remote_peer import peer, remote

from modelyard.config import Config, Devices
from modelyard.core.specs import RemoteUpstream, Task
from modelyard.testing.server import fake_model, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

MESSAGES = [{"role": "user", "content": "hello there you"}]
ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "m", "messages": MESSAGES, "stream": False},
    "/v1/messages": {"model": "m", "messages": MESSAGES, "stream": False, "max_tokens": 9},
    "/api/chat": {"model": "m", "messages": MESSAGES, "stream": False},
    "/v1/responses": {"model": "m", "input": "hello there you", "stream": False},
}
TOLD: dict[str, Callable[[dict[str, Any]], tuple[int, int]]] = {
    "/v1/chat/completions": lambda said: (
        said["usage"]["prompt_tokens"],
        said["usage"]["completion_tokens"],
    ),
    "/v1/messages": lambda said: (said["usage"]["input_tokens"], said["usage"]["output_tokens"]),
    "/api/chat": lambda said: (said["prompt_eval_count"], said["eval_count"]),
    "/v1/responses": lambda said: (said["usage"]["input_tokens"], said["usage"]["output_tokens"]),
}
"""From a whole answer to the tokens of its prompt and of itself, as its client reads them."""
BEATS: dict[str, Any] = {"heartbeat_after_s": 0.05, "heartbeat_every_s": 0.05}
MODELS = (
    fake_model("m", "--tokens", "7"),
    fake_model("endless", "--tokens", "1000000", "--tps", "200"),
    fake_model("cut", "--cut-after", "3"),
    fake_model("slow", "--prefill", "30s"),
    fake_model("loading", "--load", "30s"),
    fake_model("failing", "--load", "1.5s", "--crash-while-loading", "--exit-code", "127"),
    fake_model("reader", "--tasks", "embedding"),
)
dialects = pytest.mark.parametrize("path", list(ASKED))
ids = map("request-{}".format, itertools.count())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    """A client of one server with all these models: each request has an id of its own."""
    config = Config(models=MODELS, devices=Devices(budget_mib={"cpu": 1000}))
    async with (
        running(config, tmp_path_factory.mktemp("state"), **BEATS) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as client,
    ):
        yield client


async def finished(http: httpx.AsyncClient, name: str) -> dict[str, Any]:
    """The record of the request of this id, once it is over."""
    async with asyncio.timeout(60):
        while True:
            for record in (await http.get("/api/requests")).json()["finished"]:
                if record["id"] == name:
                    return dict(record)
            await asyncio.sleep(0.01)


async def asked(
    http: httpx.AsyncClient, path: str, model: str, *, stream: bool, **options: Any
) -> tuple[httpx.Response, dict[str, Any]]:
    """An answer, and the record of it."""
    name = next(ids)
    body = {**ASKED[path], "model": model, "stream": stream}
    answer = await http.post(path, json=body, headers={"x-request-id": name}, **options)
    return answer, await finished(http, name)


async def left(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], enough: Callable[[str], bool]
) -> dict[str, Any]:
    """The record of a stream whose client leaves when it has heard enough."""
    name, heard = next(ids), ""
    request = {**ASKED[path], **body, "stream": True}
    named = {"x-request-id": name}
    async with http.stream("POST", path, json=request, headers=named) as answer:
        async for part in answer.aiter_text():
            heard += part
            if enough(heard):
                break
    return await finished(http, name)


def tokens(record: dict[str, Any]) -> tuple[int, int]:
    return record["prompt_tokens"], record["completion_tokens"]


@dialects
async def test_a_stream_and_a_whole_answer_count_the_same_as_their_client_reads(
    http: httpx.AsyncClient, path: str
) -> None:
    whole, first = await asked(http, path, "m", stream=False)
    _, second = await asked(http, path, "m", stream=True)

    expected = TOLD[path](whole.json())
    assert expected[1] in (7, 9)
    assert (first["stream"], second["stream"]) == (False, True)
    for record in (first, second):
        assert (record["route"], record["model"], record["named"]) == (path, "m", "m")
        assert (record["status"], record["error"], record["estimated"]) == (200, "", False)
        assert tokens(record) == expected
        assert 0 <= record["waited_s"] <= record["first_s"] <= record["total_s"]


@dialects
async def test_a_stream_that_its_client_leaves_is_reckoned_by_what_was_sent(
    http: httpx.AsyncClient, path: str
) -> None:
    more = {"max_tokens": 1_000_000} if "max_tokens" in ASKED[path] else {}
    record = await left(http, path, {"model": "endless", **more}, lambda heard: " 3" in heard)

    assert (record["status"], record["error"], record["stream"]) == (200, "client_left", True)
    assert record["estimated"]
    assert record["prompt_tokens"] > 0
    assert 1 <= record["completion_tokens"] < 1000
    assert record["first_s"] <= record["total_s"]


@dialects
async def test_a_stream_that_its_engine_breaks_off_is_reckoned_by_what_was_sent(
    http: httpx.AsyncClient, path: str
) -> None:
    _, record = await asked(http, path, "cut", stream=True)

    assert (record["status"], record["stream"]) == (200, True)
    assert record["error"] in ("engine_died", "bad_engine_answer")
    assert record["estimated"]
    assert record["completion_tokens"] == 3
    assert record["prompt_tokens"] > 0


@dialects
async def test_who_leaves_before_an_answer_has_no_tokens_of_one(
    http: httpx.AsyncClient, path: str
) -> None:
    name = next(ids)
    body, named = {**ASKED[path], "model": "slow"}, {"x-request-id": name}
    with pytest.raises(httpx.ReadTimeout):
        await http.post(path, json=body, headers=named, timeout=0.5)
    record = await finished(http, name)

    assert (record["status"], record["error"]) == (499, "client_left")
    assert (record["first_s"], record["stream"]) == (None, False)
    assert record["completion_tokens"] == 0
    assert record["estimated"] is (record["prompt_tokens"] > 0)


@dialects
async def test_heartbeats_are_no_answer_and_count_nothing(
    http: httpx.AsyncClient, path: str
) -> None:
    record = await left(http, path, {"model": "loading"}, bool)

    assert (record["status"], record["error"], record["stream"]) == (200, "client_left", True)
    assert tokens(record) == (0, 0)
    assert not record["estimated"]
    assert record["first_s"] is None
    assert record["total_s"] > 0


async def test_an_error_after_heartbeats_is_in_the_record_though_its_status_is_not(
    http: httpx.AsyncClient,
) -> None:
    answers = await asyncio.gather(
        *(asked(http, path, "failing", stream=stream) for stream in (True, False) for path in ASKED)
    )

    late, early = answers[: len(ASKED)], answers[len(ASKED) :]
    assert [record["status"] for _, record in late] == [200] * len(ASKED)
    assert [record["status"] for _, record in early] == [each.status_code for each, _ in early]
    assert all(record["status"] >= 500 for _, record in early)
    for _, record in answers:
        assert record["error"] == "engine_start_failed"
        assert tokens(record) == (0, 0)
        assert not record["estimated"]


@dialects
async def test_an_engines_own_refusal_is_named_as_such(http: httpx.AsyncClient, path: str) -> None:
    refused, record = await asked(http, path, "reader", stream=False)

    assert refused.status_code == record["status"] == 400
    assert record["error"] == "engine_error"
    assert record["completion_tokens"] == 0


BEGUN: list[dict[str, Any]] = [
    {"type": "message_start", "message": {
        "id": "m1", "type": "message", "role": "assistant", "content": [], "model": "claude-x",
        "stop_reason": None, "usage": {"input_tokens": 7, "output_tokens": 1},
    }},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a "}}
      for _ in range(6)),
]  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/chat/completions"])
async def test_a_remotes_stream_that_is_cut_is_reckoned_though_it_began_with_its_usage(
    path: str, tmp_path: Path
) -> None:
    events = "".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in BEGUN).encode()
    head = b"HTTP/1.1 200 x\r\ncontent-type: text/event-stream\r\n\r\n"
    async with peer(lambda _: head + events + b"...") as there:
        upstream = RemoteUpstream(there.url(path=""), "k", dialect="anthropic", model="claude-x")
        config = Config(models=(remote(upstream, tasks=frozenset({Task.CHAT})),))
        async with (
            running(config, tmp_path) as server,
            httpx.AsyncClient(base_url=server.url, timeout=60) as http,
        ):
            record = await left(http, path, {}, lambda heard: heard.count("a ") >= 6)

    assert (record["status"], record["error"]) == (200, "client_left")
    assert record["estimated"]
    assert 6 <= record["completion_tokens"] <= 8
    assert record["prompt_tokens"] >= 7
