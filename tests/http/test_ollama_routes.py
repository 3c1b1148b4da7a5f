"""Ollama's listings and orders beside our own routes under /api."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import ollama
import pytest
from tests.conftest import Serve
from tests.downloads.fake_hub import Repository, running_hub
from tests.http.keyed import client as keyed_client
from tests.http.keyed import key, serve_keyed

from modelyard.catalog.checkpoint import Checkpoint
from modelyard.catalog.classify import Input
from modelyard.catalog.discover import scan
from modelyard.catalog.found import FoundModel
from modelyard.config import Config, Devices
from modelyard.config.values import Downloads
from modelyard.core.shaping import Shape
from modelyard.core.specs import ModelSpec, Task
from modelyard.http import ollama_models
from modelyard.http.routes import INFERENCE
from modelyard.testing.server import DEMO_MODELS, Running, fake_model, running

pytestmark = pytest.mark.usefixtures("nothing_left")

OLLAMA_ROUTES = {
    ("HEAD", "/api/version"),
    ("GET", "/api/version"),
    ("HEAD", "/api/tags"),
    ("GET", "/api/tags"),
    ("GET", "/api/ps"),
    ("POST", "/api/show"),
    ("POST", "/api/pull"),
    ("DELETE", "/api/delete"),
    ("POST", "/api/create"),
    ("POST", "/api/copy"),
    ("POST", "/api/push"),
}
OLLAMA_INFERENCE = {"/api/chat", "/api/generate", "/api/embed", "/api/embeddings"}


@pytest.fixture
async def server(serve: Serve) -> AsyncIterator[Running]:
    async with serve(fake_model("fake"), dirs=(DEMO_MODELS,)) as server:
        yield server


@pytest.fixture
async def http(server: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        yield client


async def test_no_route_of_ours_stands_in_the_way_of_ollamas(server: Running) -> None:
    paths = server.yard.asgi.openapi()["paths"]
    inference = {path.decode() for path in INFERENCE}
    for method, wanted in OLLAMA_ROUTES:
        patterns = {path: re.sub(r"\\\{[^}]+\\\}", ".+", re.escape(path)) for path in paths}
        matching = [path for path, pattern in patterns.items() if re.fullmatch(pattern, wanted)]
        assert matching == [wanted]
        assert method == "HEAD" or paths[wanted][method.lower()]["tags"] == ["ollama"]

    assert inference >= OLLAMA_INFERENCE
    assert not inference & paths.keys()


async def test_bodies_are_read_whatever_their_type_says(http: httpx.AsyncClient) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    shown = await http.post("/api/show", content='{"name": "yard-embed"}', headers=form)
    said = await http.post(
        "/api/generate", content='{"model": "fake", "prompt": "hi", "stream": false}', headers=form
    )

    assert shown.json()["capabilities"] == ["embedding"]
    assert said.json()["response"].startswith("fake: echo of hi")


ERRORS = [
    ("/api/show", "{", 400, "not valid JSON"),
    ("/api/show", "{}", 400, "model is required"),
    ("/api/show", '{"model": "fak"}', 404, "did you mean fake"),
    ("/api/show", '{"model": 7}', 400, "model is required"),
    ("/api/pull", '{"model": ".."}', 400, "not the name of a repository"),
    ("/api/push", '{"model": "fake"}', 501, "not supported"),
    ("/api/chat", "{", 400, "not valid JSON"),
    ("/api/chat", '{"model": "fake", "messages": 7}', 400, "messages"),
    ("/api/generate", '{"model": "fak", "prompt": "x"}', 404, "did you mean fake"),
    ("/api/embed", '{"model": "fake", "input": "x"}', 400, "asks for embedding"),
]
"""Path, body, and what is answered."""


async def test_every_error_has_ollamas_shape(http: httpx.AsyncClient) -> None:
    for path, body, status, words in ERRORS:
        answer = await http.post(path, content=body)

        assert answer.status_code == status
        assert answer.json().keys() == {"error"}
        assert words in answer.json()["error"]


async def test_errors_that_arise_elsewhere_have_it_too(http: httpx.AsyncClient) -> None:
    for method, path, host, status in (
        ("GET", "/api/tags", "evil.example", 403),
        ("POST", "/api/tags", "127.0.0.1", 405),
        ("GET", "/api/chat", "127.0.0.1", 405),
        ("POST", "/api/chat", "evil.example", 403),
    ):
        answer = await http.request(method, path, headers={"host": host})

        assert answer.status_code == status
        assert isinstance(answer.json()["error"], str)


async def test_a_model_without_files_is_listed_as_far_as_it_is_known(
    http: httpx.AsyncClient,
) -> None:
    tags = {model["name"]: model for model in (await http.get("/api/tags")).json()["models"]}

    assert tags["fake"]["capabilities"] == ["completion"]
    assert tags["fake"]["size"] == 0
    assert tags["fake"]["details"]["family"] == ""
    assert len({model["digest"] for model in tags.values()}) == 4


async def test_a_tag_that_says_nothing_is_no_other_model(http: httpx.AsyncClient) -> None:
    lines = (await http.post("/api/generate", json={"model": "fake:latest", "prompt": "hi"})).text

    assert json.loads(lines.splitlines()[0])["model"] == "fake:latest"
    assert json.loads(lines.splitlines()[-1])["done"] is True


@pytest.mark.shows(route="/api/generate", engine="command", dialect="ollama")
async def test_a_variant_is_a_model_to_ollamas_clients(serve: Serve) -> None:
    variants = {"fake:short": Shape(max_output_tokens=3)}
    async with (
        serve(replace(fake_model("fake"), variants=variants)) as server,
        ollama.AsyncClient(server.url) as client,
    ):
        listed = [model.model for model in (await client.list()).models]
        shown = await client.show("fake:short")
        answer = await client.generate("fake:short", "hi", options={"num_predict": 9})

    assert listed == ["fake", "fake:short"]
    assert shown.capabilities == ["completion"]
    assert (answer.model, answer.eval_count) == ("fake:short", 3)


async def test_a_key_sees_and_asks_its_own_models_alone(tmp_path: Path) -> None:
    models = (fake_model("shared"), fake_model("hidden"))
    keys = (key("ann", models=("sha*",)),)
    question = {"prompt": "hi", "stream": False}
    async with (
        serve_keyed(tmp_path, *models, keys=keys) as server,
        keyed_client(server, "ann") as ann,
        keyed_client(server) as nobody,
    ):
        listed = [model["name"] for model in (await ann.get("/api/tags")).json()["models"]]
        answered = await ann.post("/api/generate", json={"model": "shared:latest", **question})
        running_ones = [model["name"] for model in (await ann.get("/api/ps")).json()["models"]]
        refused = [
            (await ann.post(path, json={"model": name, **question})).json()["error"]
            for path in ("/api/show", "/api/generate")
            for name in ("hidden:latest", "nowhere:latest")
        ]
        unknown = [await nobody.get("/api/tags"), await nobody.post("/api/chat", json={})]
        open_to_all = await nobody.get("/api/version")

    assert listed == running_ones == ["shared"]
    assert answered.status_code == 200
    assert len({error.replace("hidden", "nowhere") for error in refused}) == 1
    assert [answer.status_code for answer in unknown] == [401, 401]
    assert all(isinstance(answer.json()["error"], str) for answer in unknown)
    assert open_to_all.status_code == 200


@pytest.fixture
def _no_hub_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING")) or "PROXY" in name.upper():
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))


@pytest.mark.usefixtures("_no_hub_of_the_user")
async def test_a_pulled_model_can_be_asked_at_once_and_deleted(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    files = {"chat-Q4_K_M.gguf": (DEMO_MODELS / "yard-chat.gguf").read_bytes()}
    with running_hub() as hub:
        hub.repositories["yard/chat-GGUF"] = Repository(files)
        config = Config(
            models_dirs=(tmp_path / "models",),
            devices=Devices(budget_mib={"cpu": 1000}),
            downloads=Downloads(endpoint=hub.url),
        )
        async with (
            running(config, tmp_path / "state") as server,
            ollama.AsyncClient(server.url) as client,
        ):
            pulled = [line async for line in await client.pull("hf.co/yard/chat-GGUF", stream=True)]
            (listed,) = (await client.list()).models
            answer = await client.generate(listed.model or "", "Hello", keep_alive=0)
            async with asyncio.timeout(60):
                while server.yard.loop.runs:
                    await asyncio.sleep(0.02)
            await client.delete(listed.model or "")
            left = list((tmp_path / "models").rglob("*.gguf"))

    assert pulled[-1].status == "success"
    whole = [line for line in pulled if line.total]
    assert all(line.total == len(next(iter(files.values()))) for line in whole)
    assert answer.response
    assert left == []


@pytest.mark.usefixtures("_no_hub_of_the_user")
async def test_a_download_that_fails_says_so_in_its_last_line(tmp_path: Path) -> None:
    with running_hub() as hub:
        config = Config(
            devices=Devices(budget_mib={"cpu": 1000}), downloads=Downloads(endpoint=hub.url)
        )
        async with (
            running(config, tmp_path / "state") as server,
            httpx.AsyncClient(base_url=server.url, timeout=60) as http,
        ):
            streamed = await http.post("/api/pull", json={"model": "yard/nothing"})
            whole = await http.post("/api/pull", json={"model": "yard/nothing", "stream": False})

    assert streamed.headers["content-type"] == "application/x-ndjson"
    assert "yard/nothing" in json.loads(streamed.text.splitlines()[-1])["error"]
    assert whole.status_code == 500
    assert "yard/nothing" in whole.json()["error"]


def chat_model(template: str, inputs: frozenset[Input] = frozenset()) -> FoundModel:
    """The demo's chat model with another template."""
    found = next(each for each in scan((DEMO_MODELS,)).found if each.id == "yard-chat")
    assert isinstance(found.checkpoint, Checkpoint)
    header = found.checkpoint.header
    told = {**header.metadata, "tokenizer.chat_template": template}
    checkpoint = replace(found.checkpoint, header=replace(header, metadata=told))
    return replace(found, checkpoint=checkpoint, verdict=replace(found.verdict, inputs=inputs))


@pytest.mark.parametrize(
    ("template", "inputs", "expected"),
    [
        ("{{ messages }}", frozenset(), ["completion"]),
        ("{% if tools %}{% endif %}", frozenset(), ["completion", "tools"]),
        ("{% if enable_thinking %}", frozenset(), ["completion", "thinking"]),
        ("", frozenset({Input.IMAGE, Input.AUDIO}), ["completion", "vision", "audio"]),
    ],
)
async def test_capabilities_are_told_by_the_template_and_the_inputs(
    template: str, inputs: frozenset[Input], expected: list[str]
) -> None:
    spec = ModelSpec("m", "llamacpp", frozenset({Task.CHAT, Task.COMPLETION}))

    assert ollama_models.capabilities(spec, chat_model(template, inputs)) == expected
