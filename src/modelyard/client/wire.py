"""From httpx's answers and errors to values and errors of ours.

Laws of this file:
- Only what is used of an answer is decoded; more in it is no error, less or other is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import msgspec

from modelyard.client.errors import (
    ApiError,
    ConnectionLost,
    NotModelyard,
    ServerNotRunning,
    ServerNotTrusted,
    ServerSilent,
)
from modelyard.config.pulling import PULLS, PullView
from modelyard.core.errors import ModelyardError
from modelyard.core.views import Event, LineView, ModelView

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class Ranked(msgspec.Struct, frozen=True):
    """One document's place in a reranked list."""

    index: int
    relevance_score: float


class _Detail(msgspec.Struct):
    message: str = ""
    code: str | None = None


class _Refusal(msgspec.Struct):
    error: _Detail


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    text: str | None = None
    finish_reason: str | None = None


class Chunk(msgspec.Struct):
    """One event of a chat or a completion."""

    choices: list[_Choice] = []
    usage: Usage | None = None
    error: _Detail | None = None


class _Embedding(msgspec.Struct):
    index: int
    embedding: list[float]


class Embeddings(msgspec.Struct):
    """The answer of an embedding request."""

    data: list[_Embedding]


class Ranking(msgspec.Struct):
    """The answer of a rerank request."""

    results: list[Ranked]


class _RawEvent(msgspec.Struct):
    topic: str
    data: msgspec.Raw


@contextmanager
def translated(url: str, timeout_s: float = 0.0) -> Iterator[None]:
    """A block in which httpx's errors become ours. `timeout_s` is the bound that it was given."""
    import httpx

    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        if "SSL:" in str(error):  # httpx tells it by its text alone
            raise ServerNotTrusted(url, str(error)) from None
        raise ServerNotRunning(url) from None
    except httpx.TimeoutException:
        raise ServerSilent(url, timeout_s) from None
    except (httpx.HTTPError, httpx.StreamError) as error:
        raise ConnectionLost(url, str(error) or type(error).__name__) from None


def refusal(url: str, response: httpx.Response) -> ModelyardError:
    """The error in a refused request's answer."""
    try:
        said = msgspec.json.decode(response.content, type=_Refusal).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return NotModelyard(url, f"status {response.status_code}")
    message = said.message or f"status {response.status_code}"
    return ApiError(response.status_code, said.code or "internal_error", message)


def decoded(url: str, data: bytes | msgspec.Raw, kind: type[T]) -> T:
    """The value of type `kind` in some JSON. Raises NotModelyard."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NotModelyard(url, str(error)) from None


def event(url: str, data: bytes) -> Event:
    """One piece of live news; its topic says what it carries."""
    raw = decoded(url, data, _RawEvent)
    if raw.topic == "models":
        return Event(raw.topic, decoded(url, raw.data, ModelView))
    if raw.topic.startswith("log:"):
        return Event(raw.topic, decoded(url, raw.data, LineView))
    if raw.topic == PULLS:
        pull = decoded(url, raw.data, PullView)
        return Event(raw.topic, pull)
    if raw.topic == "lost":
        return Event(raw.topic, decoded(url, raw.data, int))
    return Event(raw.topic, decoded(url, raw.data, str))
