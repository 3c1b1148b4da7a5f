"""A remote that speaks Anthropic's API, asked by clients of OpenAI's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.conftest import Serve
from tests.http.remote_peer import Peer, Script, answer, peer, remote

from modelyard.config import Config, Devices
from modelyard.core.circuit import Thresholds
from modelyard.core.specs import ModelSpec, RemoteUpstream, Task
from modelyard.engines.remote import Remote
from modelyard.testing.server import Running, fake_model, running

CHATS = frozenset({Task.CHAT})
pytestmark = pytest.mark.usefixtures("nothing_left")

MESSAGE = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x",
    "content": [{"type": "text", "text": "Good day."}], "stop_reason": "end_turn",
    "usage": {"input_tokens": 5, "cache_read_input_tokens": 2, "output_tokens": 3},
}  # fmt: skip
WHOLE = answer(200, json.dumps(MESSAGE).encode())
EVENTS: Sequence[dict[str, Any]] = [
    {"type": "message_start", "message": {**MESSAGE, "content": [], "stop_reason": None}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 0,
     "delta": {"type": "text_delta", "text": "Good "}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "day."}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}},
    {"type": "message_stop"},
]  # fmt: skip


def stream(events: Sequence[dict[str, Any]], end: bytes = b"0\r\n\r\n", size: int = 7) -> bytes:
    """A stream of these events in chunks of `size` bytes."""
    said = b"".join(
        b"event: %b\ndata: %b\n\n" % (each["type"].encode(), json.dumps(each).encode())
        for each in events
    )
    chunks = (said[at : at + size] for at in range(0, len(said), size))
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    head = (
        b"HTTP/1.1 200 x\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    return head + body + end


def claude(*there: Peer, **fields: Any) -> ModelSpec:
    upstreams = (
        RemoteUpstream(
            each.url(path=""), "ours", key_header="x-api-key", dialect="anthropic", model="claude-x"
        )
        for each in there
    )
    return remote(*upstreams, tasks=CHATS, **fields)


def client_of(server: Running) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="theirs", max_retries=0)


HELLO: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hello"},
]


@pytest.mark.shows(route="/v1/chat/completions", engine="remote", dialect="openai")
async def test_a_chat_is_asked_and_answered_in_both_tongues(serve: Serve) -> None:
    async with (
        peer(lambda _: WHOLE) as there,
        serve(claude(there)) as server,
        client_of(server) as client,
    ):
        said = await client.chat.completions.create(model="m", messages=HELLO, max_tokens=9)

    head = there.heads[0]
    assert head.startswith(b"POST /v1/messages HTTP/1.1\r\n")
    assert b"x-api-key: ours\r\n" in head
    assert b"anthropic-version: 2023-06-01\r\n" in head
    assert b"theirs" not in head
    assert json.loads(there.bodies[0]) == {
        "model": "claude-x",
        "system": "Be brief.",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
        "max_tokens": 9,
    }
    assert said.choices[0].message.content == "Good day."
    assert said.choices[0].finish_reason == "stop"
    assert said.usage is not None
    assert (said.usage.prompt_tokens, said.usage.completion_tokens) == (7, 3)


async def test_a_stream_becomes_a_stream_of_chunks(serve: Serve) -> None:
    async with (
        peer(lambda _: stream(EVENTS)) as there,
        serve(claude(there)) as server,
        client_of(server) as client,
    ):
        chunks = [
            chunk
            async for chunk in await client.chat.completions.create(
                model="m", messages=HELLO, stream=True, stream_options={"include_usage": True}
            )
        ]

    assert json.loads(there.bodies[0])["stream"] is True
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == "Good day."
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3


async def test_a_stream_that_breaks_off_ends_with_an_error(serve: Serve) -> None:
    body = {"model": "m", "messages": HELLO, "stream": True}
    async with (
        peer(lambda _: stream(EVENTS[:5], end=b"...")) as there,
        serve(claude(there)) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
        http.stream("POST", "/v1/chat/completions", json=body) as said,
    ):
        heard = []
        async for line in said.aiter_lines():
            heard.append(line)
            if "day." in line:
                await there.stop()

    events = [json.loads(line[6:]) for line in heard if line.startswith("data: {")]
    texts = [choice["delta"].get("content") for e in events for choice in e.get("choices", ())]
    assert [text for text in texts if text] == ["Good ", "day."]
    assert "connection" in events[-1]["error"]["message"]
    assert "data: [DONE]" not in heard


@pytest.mark.parametrize(
    ("said", "status", "words"),
    [
        (
            answer(400, b'{"type":"error","error":{"type":"invalid_request_error",'
                   b'"message":"max_tokens: too large"}}'),
            400, "max_tokens: too large",
        ),
        (answer(401, b'{"type":"error","error":{"message":"invalid x-api-key"}}'), 502, "key"),
        (answer(200, b'{"id": 3'), 502, "answer"),
        (answer(200, b"[]"), 502, "answer"),
    ],
)  # fmt: skip
async def test_what_goes_wrong_there_is_told_in_openais_shape(
    serve: Serve, said: bytes, status: int, words: str
) -> None:
    async with (
        peer(lambda _: said) as there,
        serve(claude(there)) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
    ):
        body = {"model": "m", "messages": HELLO}
        refused = await http.post("/v1/chat/completions", json=body)

    assert refused.status_code == status
    assert words in refused.json()["error"]["message"]


async def test_what_cannot_be_asked_there_is_refused_before_anybody_is_asked(serve: Serve) -> None:
    async with (
        peer() as there,
        serve(claude(there)) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
    ):
        body = {"model": "m", "messages": HELLO, "n": 2}
        refused = await http.post("/v1/chat/completions", json=body)
        again = await http.post("/v1/chat/completions", json=body)

    assert [refused.status_code, again.status_code] == [400, 400]
    assert refused.json()["error"]["param"] == "n"
    assert there.bodies == []


def overloaded(_: bytes) -> bytes:
    return answer(529, b'{"type":"error","error":{"type":"overloaded_error","message":"busy"}}')


@pytest.mark.parametrize(("first", "streamed"), [(overloaded, False), (overloaded, True)])
async def test_an_overloaded_upstream_gives_way_to_one_of_the_other_dialect(
    serve: Serve, first: Script, streamed: bool
) -> None:
    event = b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\ndata: [DONE]\n\n'
    head = b"HTTP/1.1 200 x\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n"
    other = (head % len(event) + event) if streamed else answer(200)
    async with peer(first) as there, peer(lambda _: other) as plain:
        both = (*claude(there).remote.upstreams, RemoteUpstream(plain.url(), weight=0))
        model = remote(*both, thresholds=Thresholds(), tasks=CHATS)
        async with (
            serve(model) as server,
            httpx.AsyncClient(base_url=server.url, timeout=60) as http,
        ):
            body = {"model": "m", "messages": HELLO, "stream": streamed}
            said = await http.post("/v1/chat/completions", json=body)

    assert said.status_code == 200
    assert "hi" in said.text
    assert len(there.bodies) == 1
    assert json.loads(plain.bodies[0])["messages"] == HELLO


@pytest.mark.parametrize("name", ["m", "claude-opus"])
@pytest.mark.shows(route="/v1/messages", engine="remote", dialect="anthropic")
@pytest.mark.shows(route="/v1/messages/count_tokens", engine="remote", dialect="anthropic")
async def test_a_client_of_anthropics_reaches_it_untouched(serve: Serve, name: str) -> None:
    asked = {
        "model": name, "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}],
        "thinking": {"type": "adaptive"}, "something_new": [1, 2.50],
    }  # fmt: skip
    headers = {"x-api-key": "theirs", "anthropic-version": "2023-06-01", "anthropic-beta": "b-1"}
    async with (
        peer(lambda _: WHOLE) as there,
        serve(claude(there, aliases=("claude-opus",))) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
    ):
        said = await http.post("/v1/messages", json=asked, headers=headers)
        there.script = lambda _: answer(200, b'{"input_tokens": 12}')
        counted = await http.post("/v1/messages/count_tokens", json=asked)

    assert said.json() == MESSAGE
    assert counted.json() == {"input_tokens": 12}
    assert [head.split(b" ")[1] for head in there.heads] == [
        b"/v1/messages", b"/v1/messages/count_tokens",
    ]  # fmt: skip
    assert there.bodies[0] == json.dumps(asked, separators=(",", ":")).encode().replace(
        f'"model":"{name}"'.encode(), b'"model":"claude-x"'
    )
    assert there.heads[0].count(b"anthropic-version: ") == 1
    assert b"anthropic-beta: b-1\r\n" in there.heads[0]
    assert b"theirs" not in there.heads[0]


async def test_two_modelyards_understand_each_other_in_anthropics_dialect(tmp_path: Path) -> None:
    budget = Devices(budget_mib={"cpu": 100})
    far = Config(models=(fake_model("claude-x"),), devices=budget)
    async with running(far, tmp_path / "far") as other:
        upstream = RemoteUpstream(other.url, dialect="anthropic", model="claude-x")
        near = Config(models=(remote(upstream, tasks=CHATS),), devices=budget)
        async with running(near, tmp_path / "near") as server, client_of(server) as client:
            whole = await client.chat.completions.create(model="m", messages=HELLO, max_tokens=4)
            stream = await client.chat.completions.create(
                model="m", messages=HELLO, max_tokens=4, stream=True
            )
            parts = [chunk.choices[0].delta.content async for chunk in stream if chunk.choices]
        async with client_of(other) as client:
            plain = await client.chat.completions.create(
                model="claude-x", messages=HELLO, max_tokens=4
            )

    assert whole.choices[0].message.content == plain.choices[0].message.content
    assert "".join(filter(None, parts)) == plain.choices[0].message.content
    assert whole.usage is not None
    assert plain.usage is not None
    assert whole.usage.completion_tokens == plain.usage.completion_tokens


def test_other_tasks_of_such_an_upstream_are_a_problem() -> None:
    spec = remote(RemoteUpstream("http://h", dialect="anthropic"))
    (problem,) = Remote().problems(spec)

    assert problem.startswith("upstreams[0].dialect: anthropic has no classification, completion, ")
