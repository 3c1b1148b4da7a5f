"""The HTTP side: an ASGI application without a framework, which listens before the model is loaded.

Laws of this file:
- The event loop never computes and never reads texts; it parses, waits and answers.
- A client that has gone ends its request: what has not been begun for it is not begun.
- Bodies and what has been taken on are bounded; what is too much is refused at once.
- Usage is what was computed: every token of every input, special ones and those of prompts
  included, after any cut.
"""

from __future__ import annotations

import asyncio
import base64
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from modelyard.servers.lifeline import announce
from modelyard.servers.transformers.computing import Computing
from modelyard.servers.transformers.errors import Refused
from modelyard.servers.transformers.requests import Embeddings, Rerank, Scores, Tokenize, parse
from modelyard.servers.transformers.settings import Duty, Settings
from modelyard.servers.transformers.terms import DOCUMENT, QUERY, Cut, Prepared, Score

if TYPE_CHECKING:  # these import torch, which the server does not wait for
    from modelyard.servers.transformers.models import AnyKind, Embedder, Vector

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Answer = dict[str, Any]
_T = TypeVar("_T")

_JSON = (b"content-type", b"application/json")
_PLAIN = (b"content-type", b"text/plain; version=0.0.4")
RETRY_AFTER_S = 1


class Application:
    """One model behind OpenAI's routes and the usual ones for reranking."""

    def __init__(self, names: Sequence[str], duties: Sequence[Duty], settings: Settings) -> None:
        self.computing: Computing[AnyKind] = Computing(
            settings.batch_size, settings.max_batch_tokens
        )
        self._names = tuple(names)
        self._duties = frozenset(duties)
        self._settings = settings
        self._since = int(time.time())
        self._taken_on = 0
        self._reading = ThreadPoolExecutor(1, "read")
        self._posts: dict[str, Callable[[bytes], Awaitable[Answer]]] = {"/tokenize": self._tokenize}
        if Duty.EMBEDDING in duties:
            self._posts["/v1/embeddings"] = self._embeddings
        if Duty.RERANK in duties:
            for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
                self._posts[path] = self._rerank
            for path in ("/score", "/v1/score"):
                self._posts[path] = self._score

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            status, header, body = await self._answer(scope, receive)
        except Refused as refused:
            status, header, body = refused.status, _JSON, _error(refused)
        except _Gone:
            return
        except Exception as error:  # whatever it is, a client waits and the others go on
            announce(f"a request failed: {type(error).__name__}: {error}")
            status, header, body = 500, _JSON, _error(Refused("the server failed", status=500))
        headers = [header, (b"content-length", b"%d" % len(body))]
        if status == 503:
            headers.append((b"retry-after", b"%d" % RETRY_AFTER_S))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(
        self, scope: Message, receive: Receive
    ) -> tuple[int, tuple[bytes, bytes], bytes]:
        path, method = scope["path"], scope["method"]
        if method == "GET" and path == "/health":
            loaded = self.computing.model is not None
            said = {"status": "ok" if loaded else "loading"}
            return 200 if loaded else 503, _JSON, msgspec.json.encode(said)
        if method == "GET" and path == "/metrics":
            return 200, _PLAIN, self._metrics().encode()
        if method == "GET" and path == "/v1/models":
            return 200, _JSON, msgspec.json.encode(self._models())
        handler = self._posts.get(path)
        if handler is None:
            raise Refused(f"there is no route {method} {path} here", status=404, code="not_found")
        if method != "POST":
            raise Refused(f"{path} takes POST", status=405)
        body = await self._body(receive)
        return 200, _JSON, msgspec.json.encode(await _while_there(handler(body), receive))

    async def _body(self, receive: Receive) -> bytes:
        most = self._settings.max_body_bytes
        parts: list[bytes] = []
        length = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            part = message.get("body", b"")
            length += len(part)
            if length > most:
                raise Refused(f"the body is larger than {most} bytes", status=413)
            parts.append(part)
            if not message.get("more_body"):
                return b"".join(parts)

    # -------------------------------------------------------------------------------------- routes

    async def _embeddings(self, body: bytes) -> Answer:
        asked = parse(Embeddings, body)
        model: Embedder = self._model()
        texts, rows = asked.texts_or_tokens(self._settings.max_inputs)
        if rows and asked.prompt_name is not None:
            raise Refused("tokens cannot be given a prompt; send texts", param="prompt_name")
        if asked.dimensions is not None and asked.dimensions > model.dimensions:
            raise Refused(
                f"this model's vectors have {model.dimensions} dimensions, not {asked.dimensions}",
                param="dimensions",
            )
        task, cut = asked.task, asked.cut(self._settings.overlong)
        with self._taking_on(len(texts) or len(rows)):
            if rows:
                prepared = await self._read(lambda: model.reader.tokens(rows, task, cut))
            else:
                prepared = await self._read(lambda: model.read(texts, asked.prompt_name, task, cut))
            vectors: list[Vector] = await self.computing.results(prepared)  # type: ignore[assignment]  # an Embedder's
        if asked.dimensions is not None:
            vectors = model.cut_to(vectors, asked.dimensions)
        is_text = asked.encoding_format == "base64"
        data = [
            {
                "object": "embedding",
                "index": at,
                "embedding": _base64(vector) if is_text else vector.tolist(),
            }
            for at, vector in enumerate(vectors)
        ]
        return {
            "object": "list",
            "data": data,
            "model": self._name(asked.model),
            "usage": _usage(prepared),
        }

    async def _rerank(self, body: bytes) -> Answer:
        asked = parse(Rerank, body)
        texts = asked.texts(self._settings.max_inputs)
        pairs = [(asked.query, text) for text in texts]
        scores, prepared = await self._scored(pairs, asked)
        order = sorted(range(len(scores)), key=lambda at: (-scores[at].raw, at))
        most = asked.top_n or asked.top_k
        results: list[dict[str, object]] = []
        for at in order[:most]:
            score = scores[at].raw if asked.raw_scores else scores[at].relevance
            results.append({"index": at, "relevance_score": score})
            if asked.return_documents:
                results[-1]["document"] = {"text": texts[at]}
        return {
            "id": f"rerank-{uuid.uuid4().hex}",
            "object": "list",
            "model": self._name(asked.model),
            "results": results,
            "usage": _usage(prepared),
        }

    async def _score(self, body: bytes) -> Answer:
        asked = parse(Scores, body)
        scores, prepared = await self._scored(asked.pairs(self._settings.max_inputs), asked)
        data = [
            {
                "object": "score",
                "index": at,
                "score": each.raw if asked.raw_scores else each.relevance,
            }
            for at, each in enumerate(scores)
        ]
        return {
            "id": f"score-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": self._name(asked.model),
            "data": data,
            "usage": _usage(prepared),
        }

    async def _tokenize(self, body: bytes) -> Answer:
        asked = parse(Tokenize, body)
        model: AnyKind = self._model()
        reader = model.reader
        tokens = await self._read(lambda: reader.encode(asked.prompt))
        return {"count": len(tokens), "max_model_len": reader.limit, "tokens": tokens}

    def _models(self) -> Answer:
        model = self.computing.model
        facts = {"max_model_len": model.reader.limit} if model is not None else {}
        return {
            "object": "list",
            "data": [
                {
                    "id": name, "object": "model", "created": self._since, "owned_by": "modelyard",
                    "tasks": sorted(self._duties), **facts,
                }
                for name in self._names
            ],
        }  # fmt: skip

    def _metrics(self) -> str:
        counts = self.computing.counts
        values = {
            "inputs_waiting": (self.computing.waiting, "gauge"),
            "inputs_taken_on": (self._taken_on, "gauge"),
            "inputs_total": (counts.inputs, "counter"),
            "inputs_failed_total": (counts.failed_inputs, "counter"),
            "tokens_total": (counts.tokens, "counter"),
            "batches_total": (counts.batches, "counter"),
            "compute_seconds_total": (round(counts.seconds, 6), "counter"),
        }
        lines = [
            f"# TYPE modelyard_reader_{name} {kind}\nmodelyard_reader_{name} {value}\n"
            for name, (value, kind) in values.items()
        ]
        return "".join(lines)

    # ------------------------------------------------------------------------------------- helpers

    def _name(self, asked_for: object) -> str:
        """The model's name as the client used it, if it is one of them."""
        return next((name for name in self._names if name == asked_for), self._names[0])

    def _model(self) -> Any:
        model = self.computing.model
        if model is None:
            raise Refused("the model is being loaded", status=503, code="loading")
        return model

    async def _scored(
        self, pairs: Sequence[tuple[str, str]], asked: Rerank | Scores
    ) -> tuple[list[Score], list[Prepared]]:
        """A score for each pair, and what was read for them."""
        model = self._model()
        cut = asked.cut(self._settings.overlong)
        if hasattr(model, "similarity"):
            if asked.instruction is not None:
                raise Refused(
                    "this model compares vectors and takes no instruction", param="instruction"
                )
            return await self._compared(model, pairs, cut)
        with self._taking_on(len(pairs)):
            prepared = await self._read(lambda: model.read(pairs, asked.instruction, cut))
            scores: list[Score] = await self.computing.results(prepared)  # type: ignore[assignment]  # a PairScorer's
        return scores, prepared

    async def _compared(
        self, model: Any, pairs: Sequence[tuple[str, str]], cut: Cut
    ) -> tuple[list[Score], list[Prepared]]:
        """Scores of a model that makes vectors of queries and documents by themselves."""
        queries = list(dict.fromkeys(query for query, _ in pairs))
        documents = [document for _, document in pairs]
        with self._taking_on(len(queries) + len(documents)):
            prepared = await self._read(
                lambda: [
                    *model.read_as(queries, QUERY, cut),
                    *model.read_as(documents, DOCUMENT, cut),
                ]
            )
            vectors = await self.computing.results(prepared)
            by_query = dict(zip(queries, vectors[: len(queries)], strict=True))
            found = vectors[len(queries) :]

            def compare() -> list[Score]:
                if len(queries) == 1:
                    return list(model.similarity(by_query[queries[0]], found))
                return [
                    model.similarity(by_query[query], [document])[0]
                    for (query, _), document in zip(pairs, found, strict=True)
                ]

            scores: list[Score] = await self.computing.call(compare)  # type: ignore[assignment]  # compare's
        return scores, prepared

    async def _read(self, read: Callable[[], _T]) -> _T:
        """Have the reading thread do it; what nobody waits for any more is not begun."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reading, read)
        except Refused:
            raise
        except Exception as error:  # a tokenizer or a template of somebody else's; a client waits
            text = " ".join(str(error).split())[:300]
            raise Refused(
                f"the model cannot read this: {type(error).__name__}: {text}", status=422
            ) from None

    @contextmanager
    def _taking_on(self, count: int) -> Iterator[None]:
        """Count inputs from here to their answer. Raises Refused when there are too many."""
        most = self._settings.max_queue
        if self._taken_on + count > most:
            raise Refused(
                f"{self._taken_on} inputs are waiting and {count} more are too many (max_queue is "
                f"{most}); try again later",
                status=503,
                code="queue_full",
            )
        self._taken_on += count
        try:
            yield
        finally:
            self._taken_on -= count


class _Gone(Exception):
    """The client has gone; there is nobody to answer."""


async def _while_there(work: Awaitable[_T], receive: Receive) -> _T:
    """The result of `work`, which ends when the client goes."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _Gone
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _usage(prepared: Sequence[Prepared]) -> dict[str, int]:
    tokens = sum(each.length for each in prepared)
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def _base64(vector: Vector) -> str:
    """Little-endian 32-bit floats, as OpenAI sends them."""
    return base64.b64encode(vector.astype("<f4", copy=False).tobytes()).decode()


def _error(refused: Refused) -> bytes:
    return msgspec.json.encode(
        {
            "error": {
                "message": refused.message,
                "type": refused.kind,
                "param": refused.param,
                "code": refused.code,
            }
        }
    )
