"""Where an engine's API differs from the one that clients speak: names, routes and shapes.

Laws of this file:
- Pure functions from bytes to bytes; nothing here opens a connection. A model without `Quirks`
  costs nothing, and one that has them pays only for what it needs: a name is replaced only if the
  client wrote another one, an answer is rewritten only for routes that have a function.
- Only answers of status 2xx are changed. Streams are those of an engine of another dialect alone
  (`replies`): no other engine that is known here streams in a shape of its own.
- What cannot be understood is passed on as it is: the client sees what the engine said.
- Numbers that an engine does not tell are left out, never made up.

Sources of the shapes: rerank is Jina's (`results` of `index`, `relevance_score` and `document`,
best first; api.jina.ai/docs). SGLang answers with a bare list of `score`, `document` and `index`
(docs.sglang.io, supported models, rerank models). Text Embeddings Inference takes `query` and
`texts` and answers with a bare list of `index`, `score` and, on `return_text`, `text` (its
OpenAPI document). stable-diffusion.cpp writes `created` as ISO 8601 text (examples/server), where
OpenAI's is a number of seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec

from modelyard.dialects.base import Reply
from modelyard.dialects.tokens import COUNT_PATH
from modelyard.engines.rename import UNREADABLE, with_name

USUAL_BASE = "/v1"
CHAT_PATH = "/v1/chat/completions"
"""Where the tokens of a chat are counted on engines without a route for it: by answering it with
one token (`dialects.tokens`)."""


@dataclass(frozen=True, slots=True)
class Quirks:
    """What has to be changed on the way to an engine and back.

    Keys of the mappings are routes as OpenAI and its likes have them: `/v1/rerank`.
    """

    served_name: str | None = None
    """The only name that the engine takes for its model; None if any will do."""
    base: str | None = None
    """What stands in place of `/v1`, or before routes that do not begin with it."""
    query: str = ""
    """What is appended to every route: `?api-version=1`."""
    paths: Mapping[str, str] = field(default_factory=dict)
    """Routes of the engine where they are not the usual ones."""
    requests: Mapping[str, Callable[[bytes], bytes]] = field(default_factory=dict)
    """From a client's body to the engine's."""
    answers: Mapping[str, Callable[[bytes, bytes], bytes]] = field(default_factory=dict)
    """From the engine's whole answer, and the client's body that it answers, to what is sent."""
    replies: Mapping[str, Callable[[bytes, int], Reply]] = field(default_factory=dict)
    """For routes whose answers are in another dialect, streams among them: from the request in
    OpenAI's shape, and the present in seconds since the epoch, to what turns the answer back."""

    def concern(self, route: str) -> bool:
        """Whether anything about this route is unusual."""
        return (
            self.served_name is not None
            or self.base is not None
            or bool(self.query)
            or route in self.paths
            or route in self.requests
            or route in self.answers
            or route in self.replies
            or route == COUNT_PATH
        )

    def path(self, route: str) -> str:
        """The engine's route for a usual one."""
        path = self.paths.get(route)
        if path is None and route == COUNT_PATH:
            return self.path(CHAT_PATH)
        if path is None:
            path = route if self.base is None else self.base + route.removeprefix(USUAL_BASE)
        return path + self.query

    def request(self, route: str, body: bytes) -> bytes:
        """The body for the engine. It is `body` itself where nothing has to be changed."""
        rewrite = self.requests.get(route)
        if rewrite is None and route == COUNT_PATH:
            rewrite = self.requests.get(CHAT_PATH)
        if rewrite is not None:
            body = rewrite(body)
        return body if self.served_name is None else with_name(body, self.served_name)


COUNTS_BY_ANSWERING = Quirks()
"""Of an engine whose API is OpenAI's, and that may have no route for counting tokens."""


class _Ranked(msgspec.Struct):
    """One entry of a bare list, of whichever engine."""

    index: int
    score: float
    document: msgspec.Raw = msgspec.Raw()
    text: str | None = None


class _RerankRequest(msgspec.Struct):
    """What the answer depends on."""

    model: str = ""
    top_n: int | None = None
    return_documents: bool | None = None


_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_ranking = msgspec.json.Decoder(list[_Ranked]).decode
_rerank_request = msgspec.json.Decoder(_RerankRequest).decode
_encode = msgspec.json.encode


def rerank_from_list(answer: bytes, request: bytes) -> bytes:
    """A bare list of scores as a ranking: best first, no more than `top_n`."""
    try:
        ranked = _ranking(answer)
        asked = _rerank_request(request)
    except UNREADABLE:
        return answer
    ranked.sort(key=lambda entry: -entry.score)
    shown = ranked if asked.top_n is None or asked.top_n < 0 else ranked[: asked.top_n]
    wanted = asked.return_documents is not False
    results = [
        {"index": entry.index, "relevance_score": entry.score, **_document(entry, wanted)}
        for entry in shown
    ]
    return _encode({"model": asked.model, "object": "list", "results": results})


def _document(entry: _Ranked, wanted: bool) -> dict[str, Any]:
    if not wanted:
        return {}
    if entry.text is not None:
        return {"document": {"text": entry.text}}
    said = bytes(entry.document)
    if said in (b"", b"null"):
        return {}
    return {"document": {"text": entry.document} if said.startswith(b'"') else entry.document}


def tei_rerank_request(body: bytes) -> bytes:
    """A rerank request as Text Embeddings Inference takes it: `texts` in place of `documents`."""
    try:
        fields = _fields(body)
        documents = msgspec.json.decode(fields["documents"], type=list[str | dict[str, Any]])
    except (*UNREADABLE, KeyError):
        return body  # the engine says what is wrong with it
    texts = [each if isinstance(each, str) else str(each.get("text", "")) for each in documents]
    kept = {name: fields[name] for name in ("query", "truncate", "raw_scores") if name in fields}
    returned = fields.get("return_documents", msgspec.Raw(b"false"))
    return _encode({**kept, "texts": texts, "return_text": returned})


def created_in_seconds(answer: bytes, request: bytes) -> bytes:  # noqa: ARG001 - see Quirks
    """An answer whose `created` is a moment in words, with seconds since 1970 in its place."""
    try:
        fields = _fields(answer)
        created = datetime.fromisoformat(msgspec.json.decode(fields["created"], type=str))
    except (*UNREADABLE, KeyError, ValueError):
        return answer
    if created.tzinfo is None:
        created = created.replace(tzinfo=UTC)
    return _encode({**fields, "created": int(created.timestamp())})
