"""Rerank requests of every dialect as engines are asked, and their answers back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.core.errors import InvalidRequest
from modelyard.dialects import rerank
from modelyard.dialects.base import Problem, Reply, UnreadableAnswer

ANSWER = json.dumps(
    {
        "model": "r",
        "object": "list",
        "usage": {"prompt_tokens": 9, "total_tokens": 9},
        "results": [
            {"index": 1, "relevance_score": 0.25},
            {"index": 0, "relevance_score": 0.75},
        ],
    }
).encode()


def translated(**fields: Any) -> tuple[dict[str, Any], Reply]:
    asked = rerank.translate(json.dumps({"model": "m", "query": "q", **fields}).encode())
    assert asked is not None
    return json.loads(asked.body), asked.reply


def test_a_request_that_engines_understand_is_not_touched() -> None:
    fields = {"model": "m", "query": "q", "documents": ["a", "b"], "top_n": 1, "truncate": True}

    assert rerank.translate(json.dumps(fields).encode()) is None


def test_documents_that_are_objects_become_their_texts() -> None:
    body, _ = translated(documents=["a", {"text": "b", "id": 7}, {"content": "c"}])

    assert body["documents"] == ["a", "b", "c"]


def test_rank_fields_are_what_is_ranked() -> None:
    documents = [{"title": "T", "text": "b", "year": 1999}, {"text": "only"}]
    body, _ = translated(documents=documents, rank_fields=["title", "year"])

    assert body["documents"] == ["title: T\nyear: 1999", "only"]
    assert "rank_fields" not in body


def test_top_k_is_another_word_for_top_n() -> None:
    assert translated(documents=["a"], top_k=3)[0]["top_n"] == 3
    assert translated(documents=["a"], top_k=3, top_n=2)[0]["top_n"] == 2


def test_documents_come_back_where_they_are_wanted_as_they_were_sent() -> None:
    body, reply = translated(documents=["a", {"text": "b", "id": 7}], return_documents=True)
    said = json.loads(reply.whole(ANSWER))

    assert body["return_documents"] is True
    assert said["results"] == [
        {"index": 0, "relevance_score": 0.75, "document": {"text": "a"}},
        {"index": 1, "relevance_score": 0.25, "document": {"text": "b", "id": 7}},
    ]


def test_documents_stay_away_where_they_are_not_wanted() -> None:
    _, reply = translated(documents=["a"], return_documents=False)
    answer = {"results": [{"index": 0, "relevance_score": 1, "document": {"text": "a"}}]}

    assert json.loads(reply.whole(json.dumps(answer).encode()))["results"] == [
        {"index": 0, "relevance_score": 1.0}
    ]


def test_an_answer_is_at_once_coheres_and_jinas() -> None:
    _, reply = translated(documents=[{"text": "a"}, "b"])
    said = json.loads(reply.whole(ANSWER))

    assert said["model"] == "r"
    assert said["object"] == "list"
    assert said["id"].startswith("rerank-")
    assert said["usage"] == {"total_tokens": 9}
    assert said["meta"] == {"tokens": {"input_tokens": 9}, "billed_units": {"total_tokens": 9}}


def test_numbers_that_an_engine_does_not_tell_are_left_out() -> None:
    _, reply = translated(documents=[{"text": "a"}])
    said = json.loads(reply.whole(b'{"results": [{"index": 0, "relevance_score": 2}]}'))

    assert said.keys() == {"id", "object", "model", "results"}
    assert said["model"] == "m"


def test_text_embeddings_inference_gets_its_bare_list() -> None:
    body, reply = translated(texts=["a", "b"], return_text=True, raw_scores=True)

    assert body == {"model": "m", "query": "q", "documents": ["a", "b"], "raw_scores": True}
    assert json.loads(reply.whole(ANSWER)) == [
        {"index": 0, "text": "a", "score": 0.75},
        {"index": 1, "text": "b", "score": 0.25},
    ]


def test_texts_are_left_out_unless_they_are_wanted() -> None:
    _, reply = translated(texts=["a", "b"])

    assert json.loads(reply.whole(ANSWER))[0] == {"index": 0, "score": 0.75}


@given(
    st.lists(st.text(max_size=8), min_size=1, max_size=6),
    st.lists(st.booleans(), min_size=6, max_size=6),
)
@settings(max_examples=40, deadline=None)
def test_every_way_of_writing_documents_reaches_the_engine_as_the_same_list(
    texts: list[str], objects: list[bool]
) -> None:
    documents = [
        {"text": text} if wrapped else text for text, wrapped in zip(texts, objects, strict=False)
    ]

    assert translated(documents=documents, top_k=1)[0]["documents"] == texts
    assert translated(texts=texts)[0]["documents"] == texts


def test_what_has_no_text_is_left_to_the_engine() -> None:
    picture = {"image": "http://example.org/x.png"}

    assert translated(documents=["a", picture])[0]["documents"] == ["a", picture]


@pytest.mark.parametrize("documents", [None, "a", {"content": []}])
def test_documents_that_are_no_list_are_left_to_the_engine(documents: Any) -> None:
    body = {"model": "m", "query": "q", "documents": documents}

    assert rerank.translate(json.dumps(body).encode()) is None


@pytest.mark.parametrize("fields", [{"texts": [1]}, {"documents": ["a"], "rank_fields": "title"}])
def test_fields_of_the_wrong_kind_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        translated(**fields)


@pytest.mark.parametrize("nonsense", [b"", b"{", b"[1]", b"\xff"])
def test_nonsense_is_refused(nonsense: bytes) -> None:
    with pytest.raises(InvalidRequest):
        rerank.translate(nonsense)


@pytest.mark.parametrize(
    "answer",
    [b"", b"[]", b"{}", b'{"results": [{"index": 9, "relevance_score": 1}]}'],
)
def test_an_answer_that_is_no_ranking_of_these_documents_is_unreadable(answer: bytes) -> None:
    _, reply = translated(documents=["a"], return_documents=True)

    with pytest.raises(UnreadableAnswer):
        reply.whole(answer)


def test_a_ranking_is_never_a_stream() -> None:
    _, reply = translated(texts=["a"])

    with pytest.raises(UnreadableAnswer):
        reply.part(b"data: {}\n\n")
    assert reply.end() == b""


def test_an_error_is_where_every_client_looks_for_it() -> None:
    told = json.loads(rerank.DIALECT.error(Problem(404, "no such model", "model_not_found")))

    assert (told["message"], told["detail"]) == ("no such model", "no such model")
    assert told["error"]["message"] == "no such model"
    assert told["error"]["code"] == "model_not_found"
