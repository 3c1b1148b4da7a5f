"""The models that requests may name, as OpenAI's and Anthropic's clients list them.

Laws of this file:
- Answers come from memory; listing wakes nothing.
- What is told of a name holds for whatever it resolves to: of a virtual model the tasks and
  capabilities that all of those have that it stands for, and the shortest context of them.
- What a name resolves to is said: variants name their model, virtual models those they stand for.
- Anthropic's shape is for those who ask in its way: `anthropic-version`, or `x-api-key` without
  `Authorization`. All others get OpenAI's, Codex with what it wants to know besides.
- A key that may not use a model does not see it, and no name that leads only to such models.

Sources: OpenAI's Model needs `id`, `object`, `created` and `owned_by`; what is more, clients
tolerate, and others show, too: `context_length`, `name` as OpenRouter has it
(openrouter.ai/docs, list available models), `max_model_len` as vLLM (its ModelCard), `meta.n_ctx`
as llama.cpp's server, `status` as llama-swap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from modelyard.catalog.found import FoundModel
from modelyard.core.errors import ModelNotFound
from modelyard.core.lifecycle import State
from modelyard.core.names import Names
from modelyard.core.shaping import VirtualModel
from modelyard.core.specs import ModelSpec, Task
from modelyard.dialects import anthropic, responses_catalog
from modelyard.http.access import Caller, caller_of
from modelyard.http.capabilities import capabilities, context_of
from modelyard.runtime.loop import Loop

OWNER = "modelyard"

Found = Callable[[], Sequence[FoundModel]]
"""What the catalog knows of the models in the folders."""
Files = Mapping[str | None, FoundModel]
"""The same by their place."""


def routes(yard: Loop, found: Found, since: float, list_aliases: Callable[[], bool]) -> APIRouter:
    """`/v1/models`. `since` is what models were created at: nobody knows better."""
    router = APIRouter(prefix="/v1", tags=["openai"])
    listing = Listing(yard, found, int(since))

    @router.get("/models")
    async def models(
        request: Request,
        limit: str | None = None,
        after_id: str | None = None,
        before_id: str | None = None,
    ) -> Response:
        """Every model a request may name, as far as the key may use it."""
        data = list(listing.all(caller_of(request), aliases=list_aliases()))
        if not speaks_anthropic(request):
            shown: dict[str, Any] = {"object": "list", "data": data}
            if responses_catalog.QUERY in request.query_params:
                shown["models"] = _as_codex(data)
            return JSONResponse(shown)
        listed = [_as_anthropic(each) for each in data]
        page = anthropic.models(listed, limit=limit, after_id=after_id, before_id=before_id)
        return Response(page, media_type="application/json")

    @router.get("/models/{model:path}")
    async def model(model: str, request: Request) -> Response:
        """One model, by its id, an alias, a variant, or a virtual model's name."""
        shown = listing.one(model, caller_of(request))
        if not speaks_anthropic(request):
            return JSONResponse(shown)
        return Response(anthropic.model(_as_anthropic(shown)), media_type="application/json")

    return router


def speaks_anthropic(request: Request) -> bool:
    """Whether a request for a listing is one of Anthropic's clients'."""
    headers = request.headers
    return "anthropic-version" in headers or (
        "x-api-key" in headers and "authorization" not in headers
    )


class Listing:
    """What is shown of every name."""

    def __init__(self, yard: Loop, found: Found, created: int) -> None:
        self._yard = yard
        self._found = found
        self._created = created

    def files(self) -> Files:
        """What the catalog knows of models, by the source of each."""
        return {str(each.source): each for each in self._found()}

    def all(self, caller: Caller, *, aliases: bool) -> Iterator[dict[str, Any]]:
        """Models by their ids, each followed by its variants; then the virtual models."""
        slots, files = self._yard.scheduler.models.values(), self.files()
        for spec in sorted((slot.spec for slot in slots), key=lambda spec: spec.id):
            if not caller.may_use(spec.id) or not self._yard.names.knows(spec.id):
                continue  # not for this caller, or on its way out
            yield self._shown(spec.id, spec, files)
            for name in (*spec.variants, *(spec.aliases if aliases else ())):
                if self._means(name, spec):
                    yield self._shown(name, spec, files)
        for virtual in self._yard.names.virtuals.values():
            shown = self._virtual(virtual, caller, files)
            if shown is not None:
                yield shown

    def _means(self, name: str, spec: ModelSpec) -> bool:
        """Whether one of the model's names means it, and not another model with that id."""
        names = self._yard.names
        return names.knows(name) and names.resolve(name).id == spec.id != name

    def one(self, name: str, caller: Caller) -> dict[str, Any]:
        """What is shown of one name. Raises ModelNotFound."""
        names: Names = self._yard.names
        if (virtual := names.virtuals.get(name)) is not None:
            shown = self._virtual(virtual, caller, self.files())
            if shown is None:
                raise caller.unknown(name)
            return shown
        try:
            meaning = names.meaning(name)
        except ModelNotFound as error:
            raise caller.unknown(name, error) from None
        spec = meaning.spec
        if not caller.may_use(spec.id):
            raise caller.unknown(name)
        return self._shown(name if name in spec.variants else spec.id, spec, self.files())

    def _shown(self, name: str, spec: ModelSpec, files: Files) -> dict[str, Any]:
        """What is shown of a model under one of its names."""
        is_id, slot = name == spec.id, self._yard.scheduler.models.get(spec.id)
        auto = self._yard.view(slot).auto if spec.auto and slot is not None else None
        length = None if spec.auto and auto is None else context_of(spec) or None
        shown: dict[str, Any] = {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": OWNER,
            "name": name,
            "tasks": sorted(spec.tasks),
            "capabilities": capabilities(spec, files.get(spec.source)),
            "aliases": list(spec.aliases) if is_id else [],
            "variants": list(spec.variants) if is_id else [],
            "context_length": spec.context_length,
            "status": {"value": State.STOPPED if slot is None else slot.state},
            **_context(auto.context if auto is not None else length),
        }
        if not is_id:
            shown["resolves_to"] = spec.id
        if spec.price is not None:
            price = spec.price
            cached = price.input if price.cached_input is None else price.cached_input
            shown["price"] = {
                "input": str(price.input),
                "output": str(price.output),
                "cached_input": str(cached),
                "per": price.per,
                "currency": price.currency,
            }
        shape = self._yard.names.meaning(name).shape
        if shape is not None and shape.max_output_tokens is not None:
            shown["max_output_tokens"] = shape.max_output_tokens
        return shown

    def _virtual(
        self, virtual: VirtualModel, caller: Caller, files: Files
    ) -> dict[str, Any] | None:
        """A virtual model; None if the caller may use none of those that it stands for."""
        yard = self._yard
        targets = [
            target.model
            for target in virtual.targets_in(yard.virtuals.mode)
            if yard.names.knows(target.model)
            and caller.may_use(yard.names.resolve(target.model).id)
        ]
        if not targets:
            return None
        each = [self._shown(name, yard.names.resolve(name), files) for name in targets]
        states = [one["status"]["value"] for one in each]
        return {
            "id": virtual.id,
            "object": "model",
            "created": self._created,
            "owned_by": OWNER,
            "name": virtual.id,
            "tasks": _shared(one["tasks"] for one in each),
            "capabilities": _shared(one["capabilities"] for one in each),
            "aliases": [],
            "variants": [],
            "context_length": _least(one["context_length"] for one in each),
            "status": {"value": "ready" if "ready" in states else states[0]},
            **_context(_least(one.get("max_model_len") for one in each)),
            "resolves_to": targets,
            "choose": virtual.choose,
        }


def _context(length: int | None) -> dict[str, Any]:
    """The context that a model runs with, where it is known, in the words of other servers."""
    return {} if length is None else {"max_model_len": length, "meta": {"n_ctx": length}}


def _shared(words: Iterable[list[str]]) -> list[str]:
    """The words that all lists have, in the order of the first."""
    first, *others = words
    return [word for word in first if all(word in other for other in others)]


def _least(lengths: Iterable[int | None]) -> int | None:
    """The least of them; None if one is not known."""
    known = list(lengths)
    numbers = [length for length in known if length is not None]
    return min(numbers) if len(numbers) == len(known) else None


def _as_anthropic(shown: dict[str, Any]) -> anthropic.Listed:
    return anthropic.Listed(shown["id"], shown["id"], shown["created"], shown["context_length"])


def _as_codex(data: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return responses_catalog.catalog(
        [
            responses_catalog.Known(each["id"], each["context_length"])
            for each in data
            if Task.CHAT in each["tasks"]
        ]
    )
