"""Reranking as Cohere, Jina and Text Embeddings Inference ask for it, on one route.

Laws of this file:
- Engines are asked in Jina's words: `query`, `documents` of strings, `top_n`. A request that is
  written so already, and wants nothing of the answer that engines leave out, is not touched, and
  neither is its answer.
- Which dialect is meant is told by the body: `texts` is Text Embeddings Inference, whose answer is
  a bare list; everything else gets Jina's and Cohere's common answer.
- A score is the engine's own, whatever its scale: nothing here squashes it, because nobody says
  whether an engine has done so.

Sources: docs.cohere.com (reference of rerank, v1 and v2), api.jina.ai (reranker), the OpenAPI
document of Text Embeddings Inference, docs.voyageai.com (`top_k`); cohere-python for what its
client reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from modelyard.core.errors import InvalidRequest
from modelyard.dialects import openai
from modelyard.dialects.base import Asked, Dialect, Problem, UnreadableAnswer, WholeReply

IGNORED: Final[Mapping[str, str]] = {
    "max_chunks_per_doc": "Cohere v1 cuts long documents into chunks; engines score them whole",
    "truncation": "Voyage; whether a long document is cut is the engine's own option",
    "truncation_direction": "Text Embeddings Inference; the same",
}
"""Wishes about documents that are too long: an engine that cannot take one says so."""

_TEXT_KEYS: Final = ("text", "content")
"""Where a document that is an object has its text: Cohere's and Jina's word, and others'."""

_encode = msgspec.json.encode


def error(problem: Problem) -> bytes:
    """An error where every client of this route looks for it: OpenAI's object, Cohere's `message`,
    Jina's `detail`."""
    told = msgspec.json.decode(openai.error(problem), type=dict[str, Any])
    return _encode({**told, "message": problem.message, "detail": problem.message})


DIALECT: Final = Dialect("rerank", error)


class _Request(msgspec.Struct):
    """What is looked at; everything else goes on as it is."""

    model: Any = None
    query: Any = None
    documents: Any = None
    texts: list[str] | None = None
    top_n: Any = None
    top_k: Any = None
    rank_fields: list[str] | None = None
    return_documents: bool | None = None
    return_text: bool | None = None

    @property
    def is_plain(self) -> bool:
        """Whether engines take it as it is, and answer as is wanted."""
        if self.texts is not None or self.top_k is not None or self.return_documents is not None:
            return False
        documents = self.documents
        return not isinstance(documents, list) or all(isinstance(each, str) for each in documents)


_KNOWN: Final = {*_Request.__struct_fields__, *IGNORED} - {"model"}
_decode_request = msgspec.json.Decoder(_Request).decode
_decode_fields = msgspec.json.Decoder(dict[str, Any]).decode


def translate(body: bytes) -> Asked | None:
    """`POST /rerank`, `/v1/rerank` and `/v2/rerank`; None for what need not be translated.

    Raises InvalidRequest.
    """
    try:
        asked = _decode_request(body)
        if asked.is_plain:
            return None
        fields = _decode_fields(body)
    except msgspec.ValidationError as wrong:
        raise InvalidRequest(f"the request is not what this route expects: {wrong}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as wrong:
        raise InvalidRequest(f"the request body is not valid JSON: {wrong}") from None
    passed = {name: value for name, value in fields.items() if name not in _KNOWN}
    if asked.texts is not None:
        listed = partial(bare_list, texts=asked.texts, with_texts=asked.return_text is True)
        wanted = {"query": asked.query, "documents": asked.texts}
        return Asked(_encode(passed | wanted), WholeReply(listed, error))
    documents = asked.documents if isinstance(asked.documents, list) else []
    top_n = asked.top_k if asked.top_n is None else asked.top_n
    wanted = {
        "query": asked.query,
        "documents": [_text_of(each, asked.rank_fields) for each in documents],
        **({} if top_n is None else {"top_n": top_n}),
    }
    if asked.return_documents is not None:
        wanted["return_documents"] = asked.return_documents
    ranked = partial(
        ranking,
        model=str(asked.model or ""),
        documents=documents if asked.return_documents else None,
        bare=asked.return_documents is False,
    )
    return Asked(_encode(passed | wanted), WholeReply(ranked, error))


class _Ranked(msgspec.Struct):
    index: int
    relevance_score: float
    document: msgspec.Raw = msgspec.Raw()


class _Usage(msgspec.Struct):
    total_tokens: int | None = None
    prompt_tokens: int | None = None


class _Ranking(msgspec.Struct):
    results: list[_Ranked]
    id: str | None = None
    model: str | None = None
    usage: _Usage | None = None


_decode_ranking = msgspec.json.Decoder(_Ranking).decode


def ranking(answer: bytes, *, model: str, documents: Sequence[Any] | None, bare: bool) -> bytes:
    """The common answer of Jina and Cohere, best first. Raises UnreadableAnswer.

    `documents` are put into the answer; `bare` takes them out of it.
    """
    read = _ranking_of(answer)
    told = read.usage or _Usage()
    total = told.total_tokens if told.total_tokens is not None else told.prompt_tokens
    counted: dict[str, Any] = {}
    if total is not None:
        meta = {"tokens": {"input_tokens": total}, "billed_units": {"total_tokens": total}}
        counted = {"usage": {"total_tokens": total}, "meta": meta}
    return _encode(
        {
            "id": read.id or _id_of(answer),
            "object": "list",
            "model": read.model or model,
            "results": [_entry(each, documents, bare) for each in read.results],
            **counted,
        }
    )


def bare_list(answer: bytes, *, texts: Sequence[str], with_texts: bool) -> bytes:
    """The answer of Text Embeddings Inference, best first. Raises UnreadableAnswer."""
    shown: list[dict[str, Any]] = []
    for each in _ranking_of(answer).results:
        text = {"text": _at(texts, each.index)} if with_texts else {}
        shown.append({"index": each.index, **text, "score": each.relevance_score})
    return _encode(shown)


def _entry(ranked: _Ranked, documents: Sequence[Any] | None, bare: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"index": ranked.index, "relevance_score": ranked.relevance_score}
    if documents is not None:
        document = _at(documents, ranked.index)
        entry["document"] = {"text": document} if isinstance(document, str) else document
    elif not bare and bytes(ranked.document) not in (b"", b"null"):
        entry["document"] = ranked.document
    return entry


def _text_of(document: Any, rank_fields: Sequence[str] | None) -> Any:
    """The text of a document: `name: value`, one a line, of an object's `rank_fields`, if it has
    any; else its text. What has none, like a picture, is left to the engine."""
    if not isinstance(document, dict):
        return document
    named = [(name, document[name]) for name in rank_fields or () if document.get(name) is not None]
    if named:
        return "\n".join(f"{name}: {value}" for name, value in named)
    return next(
        (document[key] for key in _TEXT_KEYS if isinstance(document.get(key), str)), document
    )


def _ranking_of(answer: bytes) -> _Ranking:
    try:
        read = _decode_ranking(answer)
    except (msgspec.DecodeError, UnicodeDecodeError) as wrong:
        raise UnreadableAnswer(f"it is no ranking: {wrong}") from None
    read.results.sort(key=lambda ranked: -ranked.relevance_score)
    return read


def _at(documents: Sequence[Any], index: int) -> Any:
    if not 0 <= index < len(documents):
        raise UnreadableAnswer(f"it ranks document {index} of {len(documents)}")
    return documents[index]


def _id_of(answer: bytes) -> str:
    """A name for an answer whose engine gave it none; the same answer has the same one."""
    return "rerank-" + hashlib.blake2b(answer, digest_size=12).hexdigest()
