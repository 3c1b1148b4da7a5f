"""Codex's requests, replayed: as `codex exec` 0.169 sends them to a provider of one's own.

Shapes, order and headers are as recorded from Codex 0.169.0 against this server, shortened to what
can matter; texts are our own. What Codex reads of an answer is in openai/codex,
codex-rs/codex-api/src/sse/responses.rs: `created`, `output_item.added` and `.done`, deltas,
`completed` with id and usage, `failed` with a code.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from modelyard.config import Config
from modelyard.testing.server import DEMO_MODELS, fake_model, running

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one server for all

THREAD = "01a1fca5-d881-7843-a5fc-4700d6eb904b"
HEADERS = {
    "accept": "text/event-stream",
    "authorization": "Bearer any",
    "originator": "codex_exec",
    "session-id": THREAD,
    "thread-id": THREAD,
    "user-agent": "codex_exec/0.169.0 (Debian 12.0.0; x86_64) unknown (codex_exec; 0.169.0)",
    "x-client-request-id": THREAD,
    "x-codex-beta-features": "remote_compaction_v2",
    "x-codex-turn-metadata": json.dumps({"session_id": THREAD, "thread_source": "user"}),
    "x-codex-window-id": f"{THREAD}:0",
}


def function(name: str, **properties: dict[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "additionalProperties": False}
    known = {"description": f"It is {name}.", "strict": False, "parameters": parameters}
    return {"type": "function", "name": name, **known}


TEXT = {"type": "string"}
COMMAND = function("exec_command", cmd=TEXT, yield_time_ms={"type": "number"})
PATCH = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edits files. This is a FREEFORM tool.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: begin hunk+ end\n"},
}
AGENTS = {
    "type": "namespace",
    "name": "multi_agent_v1",
    "description": "Tools for agents.",
    "tools": [function("spawn_agent", message=TEXT), function("wait_agent", id=TEXT)],
}
DOCS = {
    "type": "namespace",
    "name": "mcp__docs",
    "description": "Documents.",
    "tools": [function("lookup", topic=TEXT)],
}
SEARCH = {
    "type": "tool_search",
    "execution": "client",
    "description": "Finds tools.",
    "parameters": {"type": "object", "properties": {"query": TEXT}, "required": ["query"]},
}
WEB = {
    "type": "web_search",
    "external_web_access": True,
    "search_content_types": ["text", "image"],
}
TOOLS = [COMMAND, function("view_image", path=TEXT), PATCH, AGENTS, DOCS, WEB]


def said(role: str, text: str, number: int) -> dict[str, Any]:
    content = [{"type": "input_text", "text": text}]
    return {"type": "message", "id": f"msg_{number}", "role": role, "content": content}


def opening(prompt: str) -> list[dict[str, Any]]:
    """What every thread begins with."""
    return [
        said("developer", "You are a coding agent.", 1),
        said("developer", "<skills_instructions>None.</skills_instructions>", 2),
        said("user", "<environment_context><cwd>/work</cwd></environment_context>", 3),
        said("user", prompt, 4),
    ]


def turn(items: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """The body of one request."""
    return {
        "model": "skilled",
        "stream": True,
        "input": items,
        "tools": TOOLS,
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"summary": "auto"},
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": THREAD,
        "client_metadata": {"session_id": THREAD, "x-codex-window-id": f"{THREAD}:0"},
        **changes,
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    skilled = fake_model("skilled", "--skilled")
    cut = fake_model("cut", "--cut-after", "2")
    config = Config(models=(skilled, cut), models_dirs=(DEMO_MODELS,))
    async with running(config, tmp_path_factory.mktemp("state")) as server:
        base = f"{server.url}/v1"
        async with httpx.AsyncClient(base_url=base, headers=HEADERS, timeout=60) as http:
            yield http


async def events(http: httpx.AsyncClient, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = await http.post("/responses", json=body)
    assert answer.status_code == 200, answer.text
    lines = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


async def items(http: httpx.AsyncClient, body: dict[str, Any]) -> list[dict[str, Any]]:
    """What Codex keeps of an answer: the items that are done, if it was completed."""
    told = await events(http, body)
    assert told[0]["type"] == "response.created"
    final = told[-1]
    assert final["type"] == "response.completed"
    assert final["response"]["id"]
    usage = final["response"]["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 0
    return [event["item"] for event in told if event["type"] == "response.output_item.done"]


async def test_models_are_read_with_what_codex_must_know(http: httpx.AsyncClient) -> None:
    plain = (await http.get("/models")).json()
    answer = (await http.get("/models", params={"client_version": "0.169.0"})).json()

    assert "models" not in plain
    assert answer["data"] == plain["data"]
    known = {model["slug"]: model for model in answer["models"]}
    assert {"skilled", "yard-chat"} <= set(known)
    assert "yard-embed" not in known
    assert known["yard-chat"]["context_window"] == 512
    assert known["yard-chat"]["truncation_policy"] == {"mode": "tokens", "limit": 128}


async def test_a_prompt_is_answered(http: httpx.AsyncClient) -> None:
    (message,) = await items(http, turn(opening("Say hello")))

    assert message["role"] == "assistant"
    assert message["content"][0]["text"] == "skilled: Say hello"


@pytest.mark.shows(route="/v1/responses", engine="command", dialect="responses")
async def test_a_command_is_called_and_its_result_is_read(http: httpx.AsyncClient) -> None:
    history = opening("Please use exec_command")
    (call,) = await items(http, turn(history))
    assert (call["type"], call["name"]) == ("function_call", "exec_command")
    assert json.loads(call["arguments"]) == {"cmd": "the cmd", "yield_time_ms": 7}

    output = {"type": "function_call_output", "id": "fco_1", "call_id": call["call_id"]}
    history += [call, {**output, "output": "Process exited with code 0\nOutput:\nfine\n"}]
    (message,) = await items(http, turn(history))

    assert message["content"][0]["text"].endswith("Output: fine")


async def test_a_patch_is_called_in_its_own_words(http: httpx.AsyncClient) -> None:
    history = opening("Please use apply_patch")
    thought, call = await items(
        http, turn(history, reasoning={"effort": "high"}, text={"verbosity": "low"})
    )
    assert thought["encrypted_content"]
    assert (call["type"], call["name"], call["input"]) == (
        "custom_tool_call",
        "apply_patch",
        "the input",
    )

    output = {"type": "custom_tool_call_output", "id": "ctco_1", "call_id": call["call_id"]}
    history += [thought, call, {**output, "output": "invalid patch"}]
    (message,) = await items(http, turn(history))

    assert message["content"][0]["text"] == "skilled: invalid patch"


async def test_a_tool_of_a_server_is_called_within_its_namespace(http: httpx.AsyncClient) -> None:
    history = opening("Please use mcp__docs__lookup")
    (call,) = await items(http, turn(history))
    assert (call["namespace"], call["name"]) == ("mcp__docs", "lookup")

    parts = [{"type": "input_text", "text": text} for text in ("Wall time: 0 s", "the docs")]
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": parts}
    (message,) = await items(http, turn([*history, call, output]))

    assert message["content"][0]["text"] == "skilled: Wall time: 0 s the docs"


async def test_tools_are_searched_for_and_then_called(http: httpx.AsyncClient) -> None:
    history = opening("Please use tool_search")
    (search,) = await items(http, turn(history, tools=[COMMAND, SEARCH, WEB]))
    assert (search["type"], search["execution"]) == ("tool_search_call", "client")
    assert search["arguments"] == {"query": "the query"}

    found = {"type": "tool_search_output", "call_id": search["call_id"], "tools": [DOCS]}
    history += [search, {**found, "status": "completed", "execution": "client"}]
    history.append(said("user", "Now use mcp__docs__lookup", 5))
    (call,) = await items(http, turn(history, tools=[COMMAND, SEARCH, WEB]))

    assert (call["namespace"], call["name"]) == ("mcp__docs", "lookup")


async def test_tools_may_stand_in_the_input(http: httpx.AsyncClient) -> None:
    script = {**PATCH, "name": "exec"}
    functions = {"type": "namespace", "name": "functions", "tools": [script, COMMAND]}
    added = {"type": "additional_tools", "id": "at_1", "role": "developer", "tools": [functions]}
    body = turn([added, *opening("Please use functions__exec")], parallel_tool_calls=False)
    del body["tools"]

    (call,) = await items(http, body)

    assert (call["type"], call["namespace"], call["name"]) == (
        "custom_tool_call",
        "functions",
        "exec",
    )


async def test_a_history_is_made_shorter_by_an_ordinary_request(http: httpx.AsyncClient) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "exec_command", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "fine"}
    history = [*opening("Go"), call, output, said("user", "Write a handoff summary.", 6)]
    body = turn(history, parallel_tool_calls=False)
    del body["tools"]

    (message,) = await items(http, body)

    assert message["content"][0]["text"] == "skilled: Write a handoff summary."


async def test_an_image_reaches_the_model(http: httpx.AsyncClient) -> None:
    prompt = said("user", "Look", 4)
    image = {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "high"}
    prompt["content"].append(image)

    (message,) = await items(http, turn([*opening("Look")[:3], prompt]))

    assert message["content"][0]["text"] == "skilled: Look"


async def test_an_answer_that_breaks_off_is_told_to_have_failed(http: httpx.AsyncClient) -> None:
    told = await events(http, turn(opening("one two three"), model="cut", tools=[]))

    failed = [event for event in told if event["type"] == "response.failed"]
    assert [event["response"]["error"]["code"] for event in failed] == ["server_error"]
    assert not [event for event in told if event["type"] == "response.completed"]


async def test_errors_have_a_message_that_codex_shows(http: httpx.AsyncClient) -> None:
    unknown = await http.post("/responses", json=turn(opening("hi"), model="nobody"))
    compact = await http.post("/responses/compact", json={"model": "skilled", "input": []})

    assert unknown.status_code == 404
    assert "no model named 'nobody'" in unknown.json()["error"]["message"]
    assert compact.status_code == 400
    assert "not compacted" in compact.json()["error"]["message"]
