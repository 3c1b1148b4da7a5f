"""The models that somebody else's endpoint has: its list read, and made into models of ours.

Laws of this file:
- Pure: somebody else has asked, and this is what was answered. An answer may hold anything; what is
  no model is skipped, and there is a bound to how many there are.
- A list hardly says what a model does. What it says in words that are known counts, then the
  model's name, then the usual: chat and completion.
- No name of ours is taken: what would collide is left out, with the reason.

Sources of the lists: OpenAI (platform.openai.com/docs/api-reference/models: `data` of `id`, nothing
of what a model does); Anthropic (docs.anthropic.com/en/api/models-list: `data` of `id`, in pages
of at most 1000 with `has_more` and `last_id`); Together (docs.together.ai/reference/models-1: a
bare list with `type` and `context_length`); vLLM (`max_model_len`); OpenRouter
(`context_length`); Groq (`context_window`); Modelyard itself (`tasks`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from modelyard.config.kinds import MAX_NAME
from modelyard.config.remote import revision_of
from modelyard.config.values import RemoteEndpoint
from modelyard.core.specs import Limits, ModelSpec, Profile, RemoteModel, Task

MAX_MODELS: Final = 5000
"""Models of one endpoint; more are left out."""
MOST_TOLD: Final = 5
"""Names that one problem quotes."""
WRITES: Final = frozenset({Task.CHAT, Task.COMPLETION})
_LENGTHS: Final = ("context_length", "max_model_len", "context_window", "max_input_tokens")
_TYPES: Final = {
    "chat": WRITES,
    "language": frozenset({Task.COMPLETION}),
    "code": frozenset({Task.COMPLETION}),
    "embedding": frozenset({Task.EMBEDDING}),
    "rerank": frozenset({Task.RERANK}),
    "moderation": frozenset({Task.CLASSIFICATION}),
    "transcribe": frozenset({Task.TRANSCRIPTION}),
    "audio": frozenset({Task.SPEECH}),
    "image": frozenset({Task.IMAGE}),
}
"""Together's words for what a model does."""
_TOLD_BY_NAME: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), frozenset({task}))
    for pattern, task in (
        (r"rerank", Task.RERANK),
        (r"embed|(?<![a-z])(bge|gte|e5)[-_]|minilm", Task.EMBEDDING),
        (r"moderation", Task.CLASSIFICATION),
        (r"whisper|transcribe", Task.TRANSCRIPTION),
        (r"(?<![a-z])tts(?![a-z])|kokoro", Task.SPEECH),
        (r"dall-e|gpt-image|stable-diffusion|sdxl|(?<![a-z])flux", Task.IMAGE),
    )
)


@dataclass(frozen=True, slots=True)
class Offer:
    """A model as its endpoint lists it."""

    name: str
    tasks: tuple[str, ...] = ()
    """What it does, as far as the list says so."""
    context_length: int | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """One part of a list."""

    offers: tuple[Offer, ...]
    next: str | None = None
    """The name after which the next part begins; None for the last part."""


def read_page(answer: bytes) -> Page:
    """What one answer to `GET /models` lists. Raises ValueError where it is no list of models."""
    try:
        said = msgspec.json.decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("its list of models is not JSON") from None
    entries = said.get("data") if isinstance(said, dict) else said
    if not isinstance(entries, list):
        raise ValueError("it answers without a list of models")
    offers = tuple(offer for entry in entries[:MAX_MODELS] if (offer := _offer(entry)))
    last = said.get("last_id") if isinstance(said, dict) and said.get("has_more") is True else None
    return Page(offers, last if isinstance(last, str) and last else None)


def _offer(entry: Any) -> Offer | None:
    name = entry.get("id") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        return None
    if name != name.strip() or not name.isprintable():
        return None
    lengths = (entry.get(key) for key in _LENGTHS)
    length = next((each for each in lengths if isinstance(each, int) and each > 0), None)
    return Offer(name, tuple(sorted(_said(entry))), length)


def _said(entry: dict[str, Any]) -> frozenset[Task]:
    tasks = entry.get("tasks")
    if isinstance(tasks, list):
        known = {task.value for task in Task}
        return frozenset(Task(each) for each in tasks if isinstance(each, str) and each in known)
    kind = entry.get("type")
    return _TYPES.get(kind, frozenset()) if isinstance(kind, str) else frozenset()


def written(endpoint: RemoteEndpoint) -> tuple[tuple[str, Offer], ...]:
    """The models that the configuration names, each with what it is called here."""
    return tuple((name, Offer(theirs)) for name, theirs in (endpoint.models or {}).items())


def specs_of(
    endpoint: RemoteEndpoint,
    offers: Sequence[tuple[str, Offer]],
    limits: Limits,
    taken: Collection[str],
) -> tuple[list[ModelSpec], list[str]]:
    """The models of an endpoint, less those whose name is `taken`, and what is to be told of them.

    `offers` are what it has, each with the name that stands behind the prefix.
    """
    found: dict[str, ModelSpec] = {}
    collide: list[str] = []
    for name, offer in offers:
        model = f"{endpoint.prefix}/{name}" if endpoint.prefix else name
        if model in taken:
            collide.append(model)
        elif len(model) <= MAX_NAME:
            found.setdefault(model, _spec(model, endpoint, offer, limits))
    return list(found.values()), _told(endpoint, collide)


def _told(endpoint: RemoteEndpoint, collide: Sequence[str]) -> list[str]:
    if not collide:
        return []
    more = f" and {len(collide) - MOST_TOLD} more" if len(collide) > MOST_TOLD else ""
    names = ", ".join(collide[:MOST_TOLD]) + more
    why = f"left out, because other models have these names: {names}"
    return [f"remote {endpoint.name}: {why}; give remotes.{endpoint.name} another prefix"]


def _spec(model: str, endpoint: RemoteEndpoint, offer: Offer, limits: Limits) -> ModelSpec:
    remote = RemoteModel((replace(endpoint.upstream, model=offer.name),))
    return ModelSpec(
        model,
        "remote",
        _tasks(endpoint, offer),
        profiles=(Profile("remote", ()),),
        remote=remote,
        limits=limits,
        context_length=offer.context_length,
        revision=revision_of(remote),
    )


def _tasks(endpoint: RemoteEndpoint, offer: Offer) -> frozenset[Task]:
    if endpoint.tasks:
        return endpoint.tasks
    if endpoint.upstream.dialect == "anthropic":
        return frozenset({Task.CHAT})
    if offer.tasks:
        return frozenset(map(Task, offer.tasks))
    told = (tasks for pattern, tasks in _TOLD_BY_NAME if pattern.search(offer.name))
    return next(told, WRITES)
