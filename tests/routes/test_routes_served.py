"""Routes that need no translation: what a client sends is what the engine gets, and back again."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from modelyard.config import Config, Devices
from modelyard.core.specs import Limits, ModelSpec, Task
from modelyard.http.routes import INFERENCE
from modelyard.testing.server import DEMO_MODELS, Running, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

ANY = ModelSpec(
    "any",
    "command",
    frozenset(Task),
    command=(sys.executable, str(Path(__file__).with_name("any_engine.py")), "{port}", "0"),
    estimate_mib=10,
    limits=Limits(stop_grace_s=2.0),
)
BODY = b'{"model": "any", "input": ["x"], "query": "q", "unknown": {"deep": [1, null]}}'
HEADERS = {
    "content-type": "application/json", "x-own": "1", "cookie": "a=b", "x-api-key": "any",
    "x-modelyard-loading-state": "true",
}  # fmt: skip
ENGINES_HEADERS = [
    "accept", "content-length", "content-type", "host", "user-agent", "x-own", "x-request-id",
]  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    devices = Devices(budget_mib={"cpu": 1000})
    config = Config(models=(ANY,), models_dirs=(DEMO_MODELS,), devices=devices)
    async with running(config, tmp_path_factory.mktemp("state")) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(server: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        yield http


def routes(request: pytest.FixtureRequest) -> list[str]:
    """What the mark of the test says that it shows."""
    mark = request.node.get_closest_marker("shows")
    return [*mark.kwargs["route"]]


@pytest.mark.shows(
    route=[
        "/v1/chat/completions", "/v1/completions", "/infill", "/v1/embeddings", "/pooling",
        "/v1/score", "/score", "/classify", "/v1/moderations", "/v1/audio/speech",
        "/v1/images/generations", "/tokenize", "/detokenize", "/apply-template",
    ],
    engine="command",
    dialect="openai",
)  # fmt: skip
async def test_json_reaches_the_engine_as_it_was_sent(
    http: httpx.AsyncClient, request: pytest.FixtureRequest
) -> None:
    shown = routes(request)
    plain = [
        path.decode()
        for path, route in INFERENCE.items()
        if route.translate is None and not route.is_form
    ]

    assert shown == plain
    for path in shown:
        answer = await http.post(path, content=BODY, headers=HEADERS)
        assert answer.json() == {
            "path": INFERENCE[path.encode()].engine_path,
            "headers": ENGINES_HEADERS,
            "type": "application/json",
            "digest": hashlib.sha256(BODY).hexdigest(),
        }


@pytest.mark.shows(
    route=[
        "/v1/audio/transcriptions", "/v1/audio/translations", "/v1/images/edits",
        "/v1/images/variations",
    ],
    engine="command",
    dialect="openai",
)  # fmt: skip
async def test_a_form_reaches_the_engine_as_it_was_sent(
    http: httpx.AsyncClient, request: pytest.FixtureRequest
) -> None:
    shown = routes(request)

    assert shown == [path.decode() for path, route in INFERENCE.items() if route.is_form]
    for path in shown:
        files = {"file": ("a.bin", bytes(range(256)) * 400, "application/octet-stream")}
        sent = http.build_request("POST", path, data={"model": "any", "n": "2"}, files=files)
        body = await sent.aread()
        answer = (await http.send(sent)).json()
        assert answer["path"] == INFERENCE[path.encode()].engine_path
        assert answer["type"] == sent.headers["content-type"]
        assert answer["digest"] == hashlib.sha256(body).hexdigest()


@pytest.mark.shows(
    route=["/tokenize", "/detokenize", "/apply-template"], engine="llamacpp", dialect="openai"
)
async def test_llamacpp_tells_what_it_makes_of_words(http: httpx.AsyncClient) -> None:
    text = {"model": "yard-chat", "content": "the yard"}
    messages = {"model": "yard-chat", "messages": [{"role": "user", "content": "the yard"}]}

    tokens = (await http.post("/tokenize", json=text)).json()["tokens"]
    again = await http.post("/detokenize", json={"model": "yard-chat", "tokens": tokens})
    prompt = (await http.post("/apply-template", json=messages)).json()["prompt"]

    assert all(isinstance(token, int) for token in tokens)
    assert again.json()["content"] == "the yard"
    assert "the yard" in prompt
    assert len(prompt) > len("the yard")


async def test_what_an_engine_has_no_words_for_is_its_own_error(http: httpx.AsyncClient) -> None:
    holes = {"model": "yard-chat", "input_prefix": "def f(", "input_suffix": "return 1"}

    refused = await http.post("/infill", json=holes)

    assert refused.status_code == 501
    assert "Infill is not supported by this model" in refused.json()["error"]["message"]
