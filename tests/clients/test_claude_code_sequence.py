"""What Claude Code sends to a gateway, replayed.

Sources: the gateway protocol reference (code.claude.com/docs/en/llm-gateway-protocol) for routes,
headers and the discovery of models; a published capture of its requests
(qntx.sbvh.nl/research/claude-api-wire-format.html) for the fields of a body.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from tests.conftest import Serve

from modelyard.testing.server import Running, fake_model

pytestmark = pytest.mark.usefixtures("nothing_left")

HEADERS = {
    "accept": "application/json",
    "anthropic-beta": "claude-code-20250219,adaptive-thinking-2026-01-28,effort-2025-11-24",
    "anthropic-dangerous-direct-browser-access": "true",
    "anthropic-version": "2023-06-01",
    "authorization": "Bearer any",
    "user-agent": "claude-cli/2.1.69 (external, cli)",
    "x-app": "cli",
    "x-claude-code-session-id": "b4e5aaaa-9a3e-47c4-84ad-3a70f38c676e",
    "x-stainless-lang": "js",
    "x-stainless-retry-count": "0",
    "x-stainless-timeout": "600",
}
READ = {
    "name": "Read",
    "description": "Reads a file.",
    "input_schema": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {"file_path": {"type": "string"}},
        "required": ["file_path"],
        "additionalProperties": False,
    },
}
CACHED = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}


@pytest.fixture
async def claude_code(serve: Serve) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        serve(fake_model("claude-local", "--skilled"), fake_model("other")) as server,
        _client(server) as client,
    ):
        yield client


def _client(server: Running) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=server.url, headers=HEADERS, timeout=60)


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


def turn(*messages: dict[str, Any]) -> dict[str, Any]:
    """The body of a request in the main conversation."""
    return {
        "model": "claude-local",
        "messages": list(messages),
        "system": [
            text("x-anthropic-billing-header: cc_version=2.1.69.abc; cc_entrypoint=cli; cch=1;"),
            text("You are Claude Code, Anthropic's official CLI for Claude.", **CACHED),
            text("Environment: a test.", **CACHED),
        ],
        "tools": [READ, {**READ, "name": "Write", **CACHED, "eager_input_streaming": True}],
        "metadata": {"user_id": '{"device_id":"d","account_uuid":"","session_id":"s"}'},
        "max_tokens": 32000,
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "medium"},
        "stream": True,
    }


async def events(client: httpx.AsyncClient, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = await client.post("/v1/messages?beta=true", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    shown = [each.split("\n") for each in answer.text.split("\n\n")[:-1]]
    data = [json.loads(lines[-1].removeprefix("data: ")) for lines in shown]
    assert [lines[0] for lines in shown] == [f"event: {each['type']}" for each in data]
    return [each for each in data if each["type"] != "ping"]


def blocks(stream: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The content that a stream amounts to, put together as Claude Code does it."""
    content: list[dict[str, Any]] = []
    for each in stream:
        if each["type"] == "content_block_start":
            assert each["index"] == len(content)
            content.append({**each["content_block"], "json": ""})
        elif each["type"] == "content_block_delta":
            delta = dict(each["delta"])
            block = content[each["index"]]
            match delta.pop("type"):
                case "input_json_delta":
                    block["json"] += delta["partial_json"]
                case _:
                    ((name, part),) = delta.items()
                    block[name] += part
    for block in content:
        spelled = block.pop("json")
        if block["type"] == "tool_use":
            block["input"] = json.loads(spelled or "{}")
    return content


async def test_it_starts_looks_for_models_and_sees_those_it_would_show(
    claude_code: httpx.AsyncClient,
) -> None:
    probe = await claude_code.head("/")
    listed = await claude_code.get("/v1/models", params={"limit": "1000"})

    assert probe.status_code < 500
    page = listed.json()
    shown = [model for model in page["data"] if model["id"].startswith(("claude", "anthropic"))]
    assert [model["display_name"] for model in shown] == ["claude-local"]
    assert page["has_more"] is False


@pytest.mark.shows(route="/v1/messages", engine="command", dialect="anthropic")
async def test_a_session_reads_a_file_and_speaks_of_it(claude_code: httpx.AsyncClient) -> None:
    reminder = text("<system-reminder>\nBe careful.\n</system-reminder>")
    asked = {"role": "user", "content": [reminder, text("Read the plan", **CACHED)]}
    first = await events(claude_code, turn(asked))
    called = blocks(first)

    assert [block["type"] for block in called] == ["thinking", "tool_use"]
    assert called[1]["name"] == "Read"
    assert called[1]["input"] == {"file_path": "the file_path"}
    assert first[-2]["delta"]["stop_reason"] == "tool_use"

    result = {
        "type": "tool_result",
        "tool_use_id": called[1]["id"],
        "content": "1\tStep one",
        **CACHED,
    }
    spoken = await events(
        claude_code,
        turn(
            asked,
            {"role": "assistant", "content": called},
            {"role": "user", "content": [result]},
            {"role": "system", "content": "The date has changed."},
        ),
    )

    said = blocks(spoken)[-1]["text"]
    assert "Step one" in said
    assert "The date has changed." in said
    assert spoken[-2]["delta"]["stop_reason"] == "end_turn"
    assert spoken[-2]["usage"]["output_tokens"] > 0
    assert spoken[-1] == {"type": "message_stop"}


@pytest.mark.shows(route="/v1/messages/count_tokens", engine="command", dialect="anthropic")
async def test_it_asks_how_long_a_prompt_is(claude_code: httpx.AsyncClient) -> None:
    body = turn({"role": "user", "content": "one two three"})
    kept = {name: body[name] for name in ("model", "messages", "tools", "thinking")}
    counted = await claude_code.post("/v1/messages/count_tokens?beta=true", json=kept)

    assert counted.status_code == 200
    assert counted.json() == {"input_tokens": 3}


async def test_a_model_that_is_not_there_is_told_in_its_own_words(
    claude_code: httpx.AsyncClient,
) -> None:
    body = turn({"role": "user", "content": "hi"}) | {"model": "claude-haiku-4-5"}
    answer = await claude_code.post("/v1/messages?beta=true", json=body)

    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "not_found_error"
    assert answer.headers["request-id"] == answer.json()["request_id"]
