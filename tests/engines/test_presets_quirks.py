"""Requests and answers of programs with shapes of their own, against the stand-in's real bytes."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from modelyard.core.specs import ModelSpec
from modelyard.engines.presets import PRESETS
from modelyard.engines.presets.engine import PresetEngine
from modelyard.engines.quirks import (
    Quirks,
    created_in_seconds,
    rerank_from_list,
    tei_rerank_request,
)
from modelyard.runtime.readiness import free_port

STAND_IN = Path(__file__).with_name("preset_stand_in.py")
RANKING = {"model": "m", "query": "sky", "documents": ["red", "green", "blue"], "top_n": 2}


async def asked(preset: str, arguments: list[str], usual: str, request: bytes) -> Any:
    """What a client would get for `request` from the preset's program, started with `arguments`."""
    spec = ModelSpec("m", preset, frozenset(), source="/w")
    quirks = PresetEngine(PRESETS[preset]).quirks(spec) or Quirks()
    port = free_port()
    line = [argument.replace("PORT", str(port)) for argument in arguments]
    program = await asyncio.create_subprocess_exec(sys.executable, str(STAND_IN), preset, *line)
    body = quirks.request(usual, request)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            async with asyncio.timeout(60):
                answer = await _posted(http, quirks.path(usual), body)
    finally:
        program.kill()
        await program.wait()
    return json.loads(quirks.answers[usual](answer, request))


async def _posted(http: httpx.AsyncClient, path: str, body: bytes) -> bytes:
    while True:
        try:
            headers = {"content-type": "application/json"}
            answer = await http.post(path, content=body, headers=headers)
        except httpx.ConnectError:
            await asyncio.sleep(0.02)
        else:
            assert answer.status_code == 200, answer.text
            return answer.content


@pytest.mark.parametrize(
    ("preset", "arguments", "documents"),
    [
        ("sglang", ["--model-path", "w", "--port", "PORT"], True),
        ("tei", ["--model-id", "w", "--port", "PORT"], True),
        ("tei", ["--model-id", "w", "--port", "PORT"], False),
    ],
)
async def test_a_bare_list_becomes_a_ranking(
    preset: str, arguments: list[str], documents: bool
) -> None:
    request = json.dumps({**RANKING, "return_documents": documents}).encode()

    answer = await asked(preset, arguments, "/v1/rerank", request)

    def shown(index: int, score: float, text: str) -> dict[str, Any]:
        document = {"document": {"text": text}} if documents else {}
        return {"index": index, "relevance_score": score, **document}

    assert answer == {
        "model": "m",
        "object": "list",
        "results": [shown(2, 0.9, "blue"), shown(1, 0.5, "green")],
    }


async def test_an_images_moment_becomes_a_number() -> None:
    request = json.dumps({"prompt": "a cat"}).encode()

    answer = await asked(
        "stable-diffusion.cpp", ["--listen-port", "PORT"], "/v1/images/generations", request
    )

    assert answer["created"] == 1767323045  # 2026-01-02 03:04:05 UTC
    assert answer["data"] == [{"b64_json": "AA=="}]


def test_a_name_that_the_engine_knows_costs_nothing() -> None:
    quirks = Quirks(served_name="m")
    body = b'{ "model": "m" }'

    assert quirks.request("/v1/chat/completions", body) is body
    assert Quirks().request("/v1/chat/completions", b'{"model": "alias"}') == b'{"model": "alias"}'
    assert quirks.request("/v1/chat/completions", b'{ "model": "alias" }') == body


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        ("sglang", None), ("lmdeploy", "m"), ("tensorrt-llm", None), ("llama-server", None),
        ("mlx", "default_model"), ("ollama", "/w"), ("tei", None), ("infinity", "m"),
        ("whisper.cpp", None), ("kokoro", "tts-1"), ("stable-diffusion.cpp", None),
    ],
)  # fmt: skip
def test_the_name_that_each_program_insists_on(preset: str, name: str | None) -> None:
    spec = ModelSpec("m", preset, frozenset(), aliases=("n",), source="/w")
    quirks = PresetEngine(PRESETS[preset]).quirks(spec)

    assert (quirks.served_name if quirks else None) == name


def test_tei_gets_texts_and_what_else_it_knows() -> None:
    body = {**RANKING, "documents": ["a", {"text": "b", "title": "t"}], "truncate": True}

    assert json.loads(tei_rerank_request(json.dumps(body).encode())) == {
        "query": "sky",
        "texts": ["a", "b"],
        "truncate": True,
        "return_text": False,
    }


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"3", b"\xff", b'{"documents": 3}', b'{"documents": [3], "query": "x"}'],
)
def test_a_request_that_makes_no_sense_is_left_to_the_engine(body: bytes) -> None:
    assert tei_rerank_request(body) == body
    assert Quirks(served_name="m").request("/v1/rerank", body) == body


@pytest.mark.parametrize(
    "answer",
    [b"", b"{}", b'{"results": []}', b'[{"index": 1}]', b"[1]", b"\xff", b'[{"index":"a"}]'],
)
def test_an_answer_that_is_no_bare_list_is_passed_on(answer: bytes) -> None:
    assert rerank_from_list(answer, b'{"query": "x"}') == answer


@pytest.mark.parametrize("top_n", [None, -1, 0, 1, 7])
def test_a_ranking_has_no_more_than_was_asked_for(top_n: int | None) -> None:
    bare = b'[{"score": 1, "index": 0, "document": null}, {"score": 2.5, "index": 1}]'
    request = json.dumps({"model": "m", "top_n": top_n}).encode()
    results = json.loads(rerank_from_list(bare, request))["results"]

    best = [{"index": 1, "relevance_score": 2.5}, {"index": 0, "relevance_score": 1.0}]
    assert results == best[: 2 if top_n in (None, -1) else top_n]


@pytest.mark.parametrize(
    ("created", "seconds"),
    [
        ('"1970-01-01T00:01:00"', 60),
        ('"1970-01-01T00:01:00+00:01"', 0),
        ("17", 17),
        ('"yesterday"', "yesterday"),
        ("null", None),
    ],
)
def test_a_moment_is_read_as_utc_and_anything_else_left_alone(created: str, seconds: Any) -> None:
    answer = f'{{"created": {created}}}'.encode()

    assert json.loads(created_in_seconds(answer, b"")) == {"created": seconds}
