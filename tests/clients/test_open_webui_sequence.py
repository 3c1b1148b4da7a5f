"""Open WebUI's requests, replayed: what it sends to an OpenAI connection and to an Ollama one.

Source: github.com/open-webui/open-webui, backend/open_webui/routers/{openai,tasks,ollama}.py and
utils/payload.py: the list of models with a short time-out, streamed chats that ask for usage, the
tasks around a chat (title, tags, follow-ups), tools, images, embeddings of documents.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from modelyard.config import Config
from modelyard.testing.server import DEMO_MODELS, Running, fake_model, running

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one server for all

HEADERS = {
    "Authorization": "Bearer any",
    "X-OpenWebUI-User-Name": "Ada%20L",
    "X-OpenWebUI-User-Id": "7c1d",
    "X-OpenWebUI-User-Email": "ada@example.com",
    "X-OpenWebUI-User-Role": "admin",
    "X-OpenWebUI-Chat-Id": "c0ffee",
    "User-Agent": "Python/3.11 aiohttp/3.13",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    config = Config(models=(fake_model("skilled", "--skilled"),), models_dirs=(DEMO_MODELS,))
    async with running(config, tmp_path_factory.mktemp("state")) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(server: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, headers=HEADERS, timeout=60) as http:
        yield http


def user(text: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


async def chunks(http: httpx.AsyncClient, body: dict[str, Any]) -> list[dict[str, Any]]:
    """A streamed chat as Open WebUI reads it: line by line, each after `data: `."""
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    answer = await http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert "text/event-stream" in answer.headers["content-type"]
    lines = [line for line in answer.text.split("\n") if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def words(of: list[dict[str, Any]], name: str = "content") -> str:
    deltas = [choice["delta"] for chunk in of for choice in chunk["choices"]]
    return "".join(delta.get(name) or "" for delta in deltas)


async def test_models_are_listed_and_none_is_started(
    http: httpx.AsyncClient, server: Running
) -> None:
    before = dict(server.yard.loop.runs)
    listed = (await http.get("/v1/models")).json()

    assert listed["object"] == "list"
    assert {"yard-chat", "yard-embed", "skilled"} <= {each["id"] for each in listed["data"]}
    assert server.yard.loop.runs == before


async def test_a_chat_streams_and_tells_its_usage(http: httpx.AsyncClient) -> None:
    told = await chunks(
        http,
        {
            "model": "yard-chat",
            "messages": [
                {"role": "system", "content": "You are a helpful assistant."},
                *user("What is 2 + 3?"),
            ],
            "temperature": 0,
            "seed": 1,
            "frequency_penalty": 0,
        },
    )

    assert words(told) == "2 + 3 = 5."
    assert told[-1]["choices"] == []
    assert told[-1]["usage"]["total_tokens"] > 0


@pytest.mark.parametrize("task", ["title", "tags", "follow_up"])
async def test_the_tasks_around_a_chat_are_answered_whole(
    http: httpx.AsyncClient, task: str
) -> None:
    prompt = f"### Task:\nGenerate a {task}.\n### Chat History:\nUSER: Hi"
    body = {"model": "skilled", "messages": user(prompt), "stream": False}
    if task == "title":
        body["max_completion_tokens"] = 1000
    answer = (await http.post("/v1/chat/completions", json=body)).json()

    said = answer["choices"][0]["message"]["content"]
    assert said.startswith(f"skilled: ### Task: Generate a {task}.")
    assert answer["usage"]["completion_tokens"] > 3


async def test_reasoning_is_streamed_apart_from_the_answer(http: httpx.AsyncClient) -> None:
    body = {"model": "skilled", "messages": user("Hi"), "reasoning_effort": "low"}
    told = await chunks(http, body)

    assert (words(told, "reasoning_content"), words(told)) == ("I think first.", "skilled: Hi")


@pytest.mark.shows(route="/v1/chat/completions", engine="command", dialect="openai")
async def test_tools_are_called_and_their_results_read(http: httpx.AsyncClient) -> None:
    function = {
        "name": "get_time",
        "description": "The time.",
        "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}},
    }
    body: dict[str, Any] = {
        "model": "skilled",
        "messages": user("Use get_time"),
        "tools": [{"type": "function", "function": function}],
    }
    told = await chunks(http, body)
    parts = [
        call
        for chunk in told
        for choice in chunk["choices"]
        for call in choice["delta"].get("tool_calls") or ()
    ]
    arguments = "".join(part["function"].get("arguments", "") for part in parts)
    assert (parts[0]["function"]["name"], json.loads(arguments)) == (
        "get_time",
        {"zone": "the zone"},
    )

    call = {"id": parts[0]["id"], "type": "function", "index": 0}
    called = {**call, "function": {"name": "get_time", "arguments": arguments}}
    body["messages"] += [
        {"role": "assistant", "content": "", "tool_calls": [called]},
        {"role": "tool", "tool_call_id": parts[0]["id"], "content": "noon"},
    ]
    assert words(await chunks(http, body)) == "skilled: noon"


async def test_an_image_goes_with_its_text(http: httpx.AsyncClient) -> None:
    url = "data:image/png;base64,AA"
    content = [{"type": "text", "text": "Look"}, {"type": "image_url", "image_url": {"url": url}}]
    told = await chunks(http, {"model": "skilled", "messages": user(content)})

    assert words(told).rstrip() == "skilled: Look"


@pytest.mark.shows(route="/v1/embeddings", engine="llamacpp", dialect="openai")
async def test_documents_are_embedded_in_batches(http: httpx.AsyncClient) -> None:
    body = {"model": "yard-embed", "input": ["one", "two", "three"]}
    data = (await http.post("/v1/embeddings", json=body)).json()["data"]

    assert [each["index"] for each in data] == [0, 1, 2]
    assert all(isinstance(each["embedding"][0], float) for each in data)


async def test_an_error_is_an_object_with_a_message(http: httpx.AsyncClient) -> None:
    body = {"model": "gone", "messages": user("Hi"), "stream": True}
    answer = await http.post("/v1/chat/completions", json=body)

    assert answer.status_code == 404
    assert "no model named 'gone'" in answer.json()["error"]["message"]


async def test_it_can_be_connected_as_ollama(http: httpx.AsyncClient) -> None:
    version = (await http.get("/api/version")).json()["version"]
    tags = (await http.get("/api/tags")).json()["models"]
    chat = {"model": "skilled", "messages": user("Hi"), "stream": True, "options": {"seed": 1}}
    lines = (await http.post("/api/chat", json=chat)).text.splitlines()
    embed = {"model": "yard-embed", "input": ["one"], "truncate": True}
    vectors = (await http.post("/api/embed", json=embed)).json()["embeddings"]
    loaded = (await http.get("/api/ps")).json()["models"]

    assert version.count(".") == 2
    assert {"yard-chat", "skilled"} <= {each["model"].partition(":")[0] for each in tags}
    assert {"yard-embed", "skilled"} <= {each["model"].partition(":")[0] for each in loaded}
    parts = [json.loads(line) for line in lines]
    assert "".join(part["message"]["content"] for part in parts) == "skilled: Hi"
    assert parts[-1]["done"] is True
    assert len(vectors) == 1
