"""The models that requests may name, as OpenAI's and Anthropic's clients list them.

Laws of this file:
- Answers come from memory; listing wakes nothing.
- What a name resolves to is said: variants name their model, virtual models those they stand for.
- Anthropic's shape is for those who ask in its way: `anthropic-version`, or `x-api-key` without
  `Authorization`. All others get OpenAI's, Codex with what it wants to know besides.
- A key that may not use a model does not see it, and no name that leads only to such models.

Sources: OpenAI's Model needs `id`, `object`, `created` and `owned_by`; what is more, clients
tolerate, and llama-swap and vLLM show, too (`status`, `context_length`, `meta`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from modelyard.core.errors import ModelNotFound
from modelyard.core.names import Names
from modelyard.core.shaping import Shape, VirtualModel
from modelyard.core.specs import ModelSpec, Task
from modelyard.dialects import anthropic, responses_catalog
from modelyard.http.access import Caller, caller_of
from modelyard.runtime.loop import Loop

OWNER = "modelyard"


def routes(yard: Loop, since: float, list_aliases: Callable[[], bool]) -> APIRouter:
    """`/v1/models`. `since` is what models were created at: nobody knows better."""
    router = APIRouter(prefix="/v1", tags=["openai"])
    listing = Listing(yard, int(since))

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

    def __init__(self, yard: Loop, created: int) -> None:
        self._yard = yard
        self._created = created

    def all(self, caller: Caller, *, aliases: bool) -> Iterator[dict[str, Any]]:
        """Models by their ids, each followed by its variants; then the virtual models."""
        slots = self._yard.scheduler.models.values()
        for spec in sorted((slot.spec for slot in slots), key=lambda spec: spec.id):
            if not caller.may_use(spec.id):
                continue
            yield self._shown(spec.id, spec)
            for name, shape in spec.variants.items():
                yield {**self._shown(name, spec, shape), "resolves_to": spec.id}
            for name in spec.aliases if aliases else ():
                yield {**self._shown(name, spec), "resolves_to": spec.id}
        for virtual in self._yard.virtuals.known:
            shown = self._virtual(virtual, caller)
            if shown is not None:
                yield shown

    def one(self, name: str, caller: Caller) -> dict[str, Any]:
        """What is shown of one name. Raises ModelNotFound."""
        names: Names = self._yard.names
        if (virtual := names.virtuals.get(name)) is not None:
            shown = self._virtual(virtual, caller)
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
        if name in spec.variants:
            return {**self._shown(name, spec, spec.variants[name]), "resolves_to": spec.id}
        return self._shown(spec.id, spec)

    def _shown(self, name: str, spec: ModelSpec, shape: Shape | None = None) -> dict[str, Any]:
        shown = {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": OWNER,
            "tasks": sorted(spec.tasks),
            "aliases": list(spec.aliases) if name == spec.id else [],
            "variants": list(spec.variants) if name == spec.id else [],
            "context_length": spec.context_length,
            "status": {"value": self._yard.scheduler.models[spec.id].state},
        }
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
        if shape is not None and shape.max_output_tokens is not None:
            shown["max_output_tokens"] = shape.max_output_tokens
        return shown

    def _virtual(self, virtual: VirtualModel, caller: Caller) -> dict[str, Any] | None:
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
        specs = [yard.names.resolve(name) for name in targets]
        lengths = [spec.context_length for spec in specs if spec.context_length is not None]
        states = [yard.scheduler.models[spec.id].state for spec in specs]
        return {
            "id": virtual.id,
            "object": "model",
            "created": self._created,
            "owned_by": OWNER,
            "tasks": sorted(frozenset[Any].intersection(*(spec.tasks for spec in specs))),
            "aliases": [],
            "variants": [],
            "context_length": min(lengths) if len(lengths) == len(specs) else None,
            "status": {"value": "ready" if "ready" in states else states[0]},
            "resolves_to": targets,
            "choose": virtual.choose,
        }


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
