"""What clients hear while they wait: how the load goes, heartbeats, or nothing."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.conftest import Serve
from tests.http.keyed import client, key, serve_keyed

from modelyard.config import Config, Devices
from modelyard.core.shaping import Target, VirtualModel
from modelyard.core.specs import Limits
from modelyard.testing.server import fake_model, running

HEADER = "x-modelyard-loading-state"
CHAT = {"model": "slow", "messages": [{"role": "user", "content": "hi"}], "stream": True}
BUSY: dict[str, Any] = {"heartbeat_after_s": 0.1, "heartbeat_every_s": 0.1}
SLOW = fake_model("slow", "--load", "1500ms")


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits is looked at so often that a machine which halts for a second tells of loads."""
    monkeypatch.setattr("modelyard.http.gateway.SWEEP_S", 0.05)


def reasoning(stream: str) -> list[str]:
    """What a stream of chunks says as reasoning."""
    chunks = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk.get("choices", ())]
    return [delta["reasoning_content"] for delta in deltas if delta.get("reasoning_content")]


async def test_openais_client_reads_how_the_load_goes_as_reasoning(serve: Serve) -> None:
    said, text = [], ""
    async with (
        serve(SLOW, **BUSY) as server,
        openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client,
    ):
        stream = await client.chat.completions.create(**CHAT, extra_headers={HEADER: "true"})  # type: ignore[call-overload]
        async for chunk in stream:
            for choice in chunk.choices:
                said.append(getattr(choice.delta, "reasoning_content", None) or "")
                text += choice.delta.content or ""

    lines = [line for line in said if line]
    assert len(lines) == len(set(lines)) >= 2
    assert all(line.startswith("slow: ") and line.endswith("\n") for line in lines)
    assert any("%" in line for line in lines)
    assert text


@pytest.mark.parametrize(("asked", "told"), [({}, True), ({HEADER: "false"}, False)])
async def test_a_model_may_tell_all_its_clients_and_a_request_may_decline(
    serve: Serve, asked: dict[str, str], told: bool
) -> None:
    async with (
        serve(replace(SLOW, loading_state=True), **BUSY) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
    ):
        answer = await http.post("/v1/chat/completions", json=CHAT, headers=asked)

    assert bool(reasoning(answer.text)) is told
    assert told or ": ping\n" in answer.text  # there are beats between news, too
    assert answer.text.endswith("data: [DONE]\n\n")


async def test_the_place_in_the_queue_is_told_and_no_other_model(serve: Serve) -> None:
    small = fake_model("secret", "--tps", "8", "--tokens", "20", mib=80)
    waiting = replace(fake_model("slow", mib=80), limits=Limits(concurrency=1, stop_grace_s=2.0))
    async with (
        serve(small, waiting, mib=100, **BUSY) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60, headers={HEADER: "true"}) as http,
    ):
        first = asyncio.create_task(
            http.post("/v1/chat/completions", json={**CHAT, "model": "secret"})
        )
        while (await http.get("/api/models/secret")).json()["in_flight"] == 0:
            await asyncio.sleep(0.02)
        both = await asyncio.gather(
            *(http.post("/v1/chat/completions", json=CHAT) for _ in range(2))
        )
        await first

    lines = [reasoning(answer.text) for answer in both]
    assert "slow: waits for memory, place 2 of 2 in its queue\n" in lines[1]
    assert "slow: waits for memory, place 1 of 2 in its queue\n" in lines[0]
    assert not any("secret" in line for each in lines for line in each)


async def test_responses_count_events_while_they_wait_and_number_them_without_a_gap(
    serve: Serve,
) -> None:
    async with (
        serve(fake_model("slow", "--load", "2s"), **BUSY) as server,
        openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client,
    ):
        stream = await client.responses.create(
            model="slow", input="hi", stream=True, extra_headers={HEADER: "true"}
        )
        events: list[Any] = [event async for event in stream]

    kinds = [event.type for event in events]
    assert kinds.count("response.created") == 1
    assert kinds.count("response.in_progress") > 2
    assert kinds[-1] == "response.incomplete"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].response.created_at > 1_700_000_000
    assert {event.response.id for event in events if "response" in event.model_fields_set} == {
        events[-1].response.id
    }


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions"])
async def test_news_go_on_where_another_model_answers_in_place_of_one_that_failed(
    tmp_path: Path, path: str
) -> None:
    bad = fake_model("bad", "--load", "1.5s", "--crash-while-loading", "--exit-code", "127")
    either = VirtualModel("v", (Target("bad"), Target("slow")))
    config = Config(
        models=(bad, SLOW), virtuals=(either,), devices=Devices(budget_mib={"cpu": 100})
    )
    asked = {**CHAT, "model": "v", "input": "hi"}
    if path == "/v1/responses":
        del asked["messages"]
    async with (
        running(config, tmp_path, **BUSY) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60, headers={HEADER: "true"}) as http,
    ):
        answer = await http.post(path, json=asked)

    said = [json.loads(line[6:]) for line in answer.text.splitlines() if line[:7] == "data: {"]
    assert "bad" not in answer.text
    if path == "/v1/responses":
        assert [event["sequence_number"] for event in said] == list(range(len(said)))
        assert [event["type"] for event in said].count("response.created") == 1
        assert len({event["response"]["id"] for event in said if "response" in event}) == 1
        assert "echo of hi" in said[-1]["response"]["output"][0]["content"][0]["text"]
    else:
        lines = reasoning(answer.text)
        assert len(lines) > 2
        assert all(line.startswith("v: ") for line in lines)
        roles = [choice["delta"].get("role") for each in said for choice in each["choices"]]
        assert roles[0] == "assistant"
        assert answer.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("path", "body", "beat"),
    [
        ("/v1/messages", {**CHAT, "max_tokens": 5}, "event: ping\n"),
        ("/api/chat", CHAT, " {"),
        ("/v1/completions", {"model": "slow", "prompt": "hi", "stream": True}, ": ping\n"),
    ],
)
async def test_where_there_is_no_form_for_it_there_are_heartbeats(
    serve: Serve, path: str, body: dict[str, Any], beat: str
) -> None:
    async with (
        serve(SLOW, **BUSY) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60, headers={HEADER: "true"}) as http,
    ):
        answer = await http.post(path, json=body)

    assert beat in answer.text
    assert "waits for memory" not in answer.text
    assert "slow: " not in answer.text


async def test_who_asked_hears_of_a_start_that_fails_and_then_the_error(serve: Serve) -> None:
    failing = fake_model("slow", "--load", "1.5s", "--crash-while-loading", "--exit-code", "127")
    async with (
        serve(failing, **BUSY) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60, headers={HEADER: "true"}) as http,
    ):
        answer = await http.post("/v1/chat/completions", json=CHAT)

    assert answer.status_code == 200
    assert reasoning(answer.text)
    assert json.loads(answer.text.split("data: ")[-1])["error"]["code"] == "engine_start_failed"


async def test_an_engine_that_does_not_stream_after_heartbeats_is_told_of(serve: Serve) -> None:
    program = Path(__file__).parent.parent / "routes/any_engine.py"
    command = (sys.executable, str(program), "{port}", "1.5")
    async with (
        serve(replace(fake_model("slow"), command=command), **BUSY) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
    ):
        answer = await http.post("/v1/chat/completions", json=CHAT)

    beats, _, said = answer.text.partition("data: ")
    assert set(beats) == set(": ping\n")
    assert json.loads(said)["error"]["code"] == "bad_engine_answer"


async def test_a_load_that_is_soon_over_is_not_spoken_of(serve: Serve) -> None:
    async with (
        serve(fake_model("slow"), heartbeat_after_s=5.0) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60, headers={HEADER: "true"}) as http,
    ):
        answer = await http.post("/v1/chat/completions", json=CHAT)

    assert reasoning(answer.text) == []
    assert ": ping" not in answer.text


@pytest.mark.parametrize(
    ("settings", "agent", "beats"),
    [
        ({"heartbeats": False}, "any", False),
        ({"no_heartbeats_for": ("*OpenCode*",)}, "opencode/1.2 bun/1.3", False),
        ({"no_heartbeats_for": ("*opencode*",)}, "codex/0.169", True),
    ],
)
async def test_heartbeats_can_be_turned_off_for_all_and_for_some_programs(
    serve: Serve, settings: dict[str, Any], agent: str, beats: bool
) -> None:
    async with (
        serve(SLOW, **BUSY, **settings) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60, headers={"user-agent": agent}) as http,
    ):
        answer = await http.post("/v1/chat/completions", json=CHAT)

    assert (": ping\n" in answer.text) is beats
    assert answer.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("server_beats", "own", "beats"), [(True, False, False), (False, True, True)]
)
async def test_a_key_may_say_otherwise(
    tmp_path: Path, server_beats: bool, own: bool, beats: bool
) -> None:
    ann = key("ann", heartbeats=own)
    async with (
        serve_keyed(tmp_path, SLOW, keys=(ann,), heartbeats=server_beats, **BUSY) as server,
        client(server, "ann") as http,
    ):
        answer = await http.post("/v1/chat/completions", json=CHAT)

    assert (": ping\n" in answer.text) is beats
    assert answer.text.endswith("data: [DONE]\n\n")


async def test_without_heartbeats_even_a_late_error_keeps_its_status(serve: Serve) -> None:
    failing = fake_model("slow", "--load", "1.5s", "--crash-while-loading", "--exit-code", "127")
    async with (
        serve(failing, heartbeats=False, **BUSY) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
    ):
        answer = await http.post("/v1/chat/completions", json=CHAT)

    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "engine_start_failed"
