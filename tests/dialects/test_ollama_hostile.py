"""Whatever clients and engines send to Ollama's dialect and to rerank, nothing else breaks."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modelyard.core.errors import InvalidRequest
from modelyard.dialects import ollama, rerank
from modelyard.dialects.base import Asked, LoadRequest, UnreadableAnswer

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "images", "function", "name", "text", "num_predict"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [
        "model", "messages", "prompt", "stream", "format", "options", "keep_alive", "think",
        "tools", "images", "input", "documents", "texts", "top_k", "query", "raw", "suffix",
        "logprobs",
    ]
)  # fmt: skip
REQUESTS: list[Callable[[bytes], Asked | LoadRequest | None]] = [
    ollama.chat,
    ollama.generate,
    ollama.embed,
    ollama.embeddings,
    rerank.translate,
]


@pytest.mark.parametrize(
    "request_", REQUESTS, ids=lambda each: f"{each.__module__}.{each.__name__}"
)
@given(st.dictionaries(FIELDS, JSON, max_size=6))
@example({"messages": [{"role": "user"}], "options": {"num_predict": 1e300, "seed": -1e300}})
@example({"messages": [{"role": "user"}], "options": {"num_predict": float("inf")}})
@example({"messages": [{"role": "tool"}], "keep_alive": 1e308})
@settings(max_examples=40, deadline=None)
def test_a_request_is_understood_or_refused(
    request_: Callable[[bytes], Asked | LoadRequest | None], fields: dict[str, Any]
) -> None:
    body = json.dumps({"model": "m", **fields}).encode()
    try:
        asked = request_(body)
    except InvalidRequest:
        return
    if isinstance(asked, Asked):
        assert isinstance(json.loads(asked.body), dict)
    elif isinstance(asked, LoadRequest):
        assert json.loads(asked.answer(1.0))


EVENTS = st.lists(
    st.dictionaries(
        st.sampled_from(["choices", "usage", "created", "error", "timings", "results", "data"]),
        JSON,
        max_size=3,
    ).map(lambda event: b"data: " + json.dumps(event).encode() + b"\n\n")
    | st.binary(max_size=20),
    max_size=4,
)


@given(EVENTS)
@example([b'data: {"created": 1e308, "choices": []}\n\n', b"data: [DONE]\n\n"])
@example([b'data: {"created": -1e30, "timings": {"prompt_ms": 1e308}}\n\ndata: [DONE]\n\n'])
@settings(max_examples=60, deadline=None)
def test_an_engines_stream_is_read_or_said_to_be_unreadable(events: list[bytes]) -> None:
    asked = ollama.chat(b'{"model": "m", "messages": [{"role": "user", "content": "x"}]}')
    assert isinstance(asked, Asked)
    try:
        said = b"".join(map(asked.reply.part, events)) + asked.reply.end()
    except UnreadableAnswer:
        return
    lines = [json.loads(line) for line in said.splitlines()]
    assert sum("error" in line or line["done"] for line in lines) == 1


@given(st.dictionaries(st.sampled_from(["choices", "results", "data", "usage"]), JSON))
@settings(max_examples=40, deadline=None)
def test_a_whole_answer_is_read_or_said_to_be_unreadable(answer: dict[str, Any]) -> None:
    for request_, fields in (
        (ollama.chat, {"messages": [{"role": "user", "content": "x"}]}),
        (ollama.embed, {"input": "x"}),
        (rerank.translate, {"texts": ["x"]}),
    ):
        asked = request_(json.dumps({"model": "m", **fields}).encode())
        assert isinstance(asked, Asked)
        try:
            json.loads(asked.reply.whole(json.dumps(answer).encode()))
        except UnreadableAnswer:
            continue
