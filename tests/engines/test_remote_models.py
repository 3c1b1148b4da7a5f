"""What endpoints say of their models, and what is made of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.config.values import RemoteEndpoint
from modelyard.core.specs import Limits, Task
from modelyard.engines.remote_models import MAX_MODELS, Offer, Page, read_page, specs_of

NESTED = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(st.sampled_from(["data", "id", "tasks", "type"]), below, max_size=3)
    ),
    max_leaves=12,
)


@given(NESTED | st.fixed_dictionaries({"data": st.lists(NESTED), "has_more": NESTED}))
def test_any_answer_is_a_list_or_a_problem(said: object) -> None:
    entries = said.get("data") if isinstance(said, dict) else said
    body = json.dumps(said).encode()

    if isinstance(entries, list):
        assert all(offer.name and offer.name.isprintable() for offer in read_page(body).offers)
    else:
        with pytest.raises(ValueError, match="without a list of models"):
            read_page(body)


def test_a_list_is_read_as_far_as_it_names_models() -> None:
    entries: list[Any] = [
        {"id": "a", "type": "rerank", "context_length": 512},
        {"id": "b", "tasks": ["image", "hover"], "max_model_len": 64},
        {"id": "c\n"}, {"id": " d"}, {"id": ""}, {"id": "x" * 201}, {"id": 3}, {}, None, "e",
        {"id": "f", "context_window": "long"},
    ]  # fmt: skip

    assert read_page(json.dumps(entries).encode()) == Page(
        (Offer("a", ("rerank",), 512), Offer("b", ("image",), 64), Offer("f"))
    )


def test_a_list_has_a_bound() -> None:
    entries = [{"id": str(at)} for at in range(MAX_MODELS + 9)]

    assert len(read_page(json.dumps(entries).encode()).offers) == MAX_MODELS


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("gpt-4o", None), ("claude-opus-4", None), ("text-embedding-3-small", Task.EMBEDDING),
        ("BAAI/bge-m3", Task.EMBEDDING), ("bge-reranker-v2-m3", Task.RERANK),
        ("whisper-1", Task.TRANSCRIPTION), ("gpt-4o-transcribe", Task.TRANSCRIPTION),
        ("tts-1-hd", Task.SPEECH), ("gpt-4o-mini-tts", Task.SPEECH), ("dall-e-3", Task.IMAGE),
        ("black-forest/FLUX.1-dev", Task.IMAGE), ("omni-moderation-latest", Task.CLASSIFICATION),
        ("influx-chat", None), ("batts", None),
    ],
)  # fmt: skip
def test_a_name_tells_what_a_model_does(name: str, task: Task | None) -> None:
    (spec,), problems = specs_of(RemoteEndpoint("r"), [(name, Offer(name))], Limits(), ())

    assert spec.tasks == ({task} if task else {Task.CHAT, Task.COMPLETION})
    assert problems == []
