"""Ollama's listings and orders under /api: tags, show, ps, version, pull, delete.

Laws of this file:
- Answers come from memory and never wake a model.
- An error is `{"error": "..."}`, whatever it is, with the status it has everywhere.
- Bodies are read as JSON whatever their content type says: Ollama's examples send none.
- On the port that is Ollama's own, and only there, `/` says what Ollama says.

Source: github.com/ollama/ollama, server/routes.go and docs/api.md.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from fastapi.routing import APIRoute

from modelyard import __version__, compiled
from modelyard.catalog.found import FoundModel
from modelyard.config.pulling import PullWanted
from modelyard.core.errors import InvalidRequest, ModelNotFound, ModelyardError
from modelyard.core.lifecycle import State
from modelyard.core.specs import ModelSpec
from modelyard.dialects import ollama_listing
from modelyard.dialects.ollama import DIALECT, read_fields
from modelyard.dialects.ollama_answers import LINES, error_body
from modelyard.dialects.ollama_listing import Listed
from modelyard.http import ollama_models, ollama_pull
from modelyard.http.access import caller_of, resolved
from modelyard.http.errors import headers_of, status_of
from modelyard.http.listing import Found, Listing
from modelyard.runtime.loop import Loop
from modelyard.runtime.pulls import Pulls
from modelyard.runtime.removals import Removals

API_VERSION: Final = "0.17.6"
"""The version of Ollama whose API this is: clients refuse to talk to what they think too old."""
GREETING: Final = b"Ollama is running"
_HEAD_TOO: Final = ["GET", "HEAD"]
_NOT_HERE: Final = {
    "/create": "models are files in a folder, or entries of the configuration, and not made here",
    "/copy": "a second name for a model is an `aliases` entry of the configuration",
    "/push": "models are not published from here",
}

PATHS: Final = frozenset(
    f"/api/{name}"
    for name in ("version", "tags", "ps", "show", "pull", "delete", "create", "copy", "push")
)
"""The paths of the routes below, whose errors have Ollama's shape wherever they arise."""


def routes(
    yard: Loop, found: Found, pulls: Pulls, removals: Removals, started_at: float
) -> APIRouter:
    """The routes; `started_at` stands for when models were changed, which nobody notes."""
    router = APIRouter(prefix="/api", tags=["ollama"], route_class=_Route)
    _listings(router, yard, found, started_at)
    _orders(router, yard, pulls, removals)
    return router


def _listings(router: APIRouter, yard: Loop, found: Found, started_at: float) -> None:
    listing = Listing(yard, found, int(started_at))
    files = listing.files

    def listed(
        shown: dict[str, Any], known: Mapping[str | None, FoundModel]
    ) -> tuple[ModelSpec, Listed]:
        """What a name of `Listing` stands for: a virtual one, the first model it leads to."""
        leads_to = shown.get("resolves_to", shown["id"])
        spec = yard.names.resolve(leads_to if isinstance(leads_to, str) else leads_to[0])
        model = ollama_models.listed(spec, known.get(spec.source), started_at)
        return spec, replace(model, name=shown["id"], context_length=shown["context_length"])

    @router.get("/version")
    async def version() -> Response:
        """The version of Ollama's API, and ours; whether our hot path is compiled."""
        ours = {"modelyard": __version__, "compiled": compiled()}
        return _json({"version": API_VERSION, **ours})

    @router.get("/tags")
    async def tags(request: Request) -> Response:
        """Every model that may be asked."""
        known = files()
        names = listing.all(caller_of(request), aliases=False)
        return _json({"models": [ollama_listing.tag(listed(each, known)[1]) for each in names]})

    router.add_api_route("/version", version, methods=["HEAD"], include_in_schema=False)
    router.add_api_route("/tags", tags, methods=["HEAD"], include_in_schema=False)

    @router.get("/ps")
    async def ps(request: Request) -> Response:
        """The models that are ready."""
        known, now, caller = files(), time.time(), caller_of(request)
        shown = []
        for slot in yard.scheduler.models.values():
            if slot.state is State.READY and caller.may_use(slot.spec.id):
                file = known.get(slot.spec.source)
                model = ollama_models.listed(slot.spec, file, started_at)
                shown.append(ollama_models.running(slot.spec, yard.view(slot), model, now))
        return _json({"models": shown})

    @router.post("/show")
    async def show(request: Request) -> Response:
        """One model in full."""
        name, known = _named(read_fields(await request.body())), files()
        caller = caller_of(request)
        try:
            shown = listing.one(spelt(yard, name), caller)
        except ModelNotFound as error:  # of the name that was written: no other is admitted to
            raise caller.unknown(name, error) from None
        spec, model = listed(shown, known)
        return _json(ollama_models.show(spec, known.get(spec.source), model))


def _orders(router: APIRouter, yard: Loop, pulls: Pulls, removals: Removals) -> None:
    @router.post("/pull")
    async def pull(request: Request) -> Response:
        """Fetch a model from a hub, and tell how it goes."""
        fields = read_fields(await request.body())
        name = _named(fields)
        if yard.names.knows(spelt(yard, name)):
            lines = _each(ollama_pull.already_there())
        else:
            lines = ollama_pull.progress(yard, pulls, pulls.start(PullWanted(name)).id)
        if fields.get("stream") is not False:
            return StreamingResponse(_encoded(lines), media_type=LINES.decode())
        last: dict[str, Any] = {}
        async for line in lines:
            last = line
        return _json(last, 200 if "error" not in last else 500)

    @router.delete("/delete")
    async def delete(request: Request) -> Response:
        """Remove a model's files."""
        name = _named(read_fields(await request.body()))
        spec = resolved(yard.names, spelt(yard, name), caller_of(request)).spec
        await removals.remove(spec, force=False, dry_run=False)
        return Response()

    for path, why in _NOT_HERE.items():
        router.add_api_route(path, _refusal(why), methods=["POST"], response_model=None)


def spelt(yard: Loop, name: str) -> str:
    """The name by which a model is known that an Ollama client calls `name`; `name` if none is."""
    names = yard.names
    spellings = (name, *DIALECT.spellings(name))
    return next((each for each in spellings if names.knows(each) or each in names.virtuals), name)


class OllamaPort:
    """ASGI middleware: answers `/` on Ollama's own port, as clients look for it there."""

    def __init__(self, app: Any, port: Callable[[], int | None]) -> None:
        self._app = app
        self._port = port

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        app = self._app
        if scope["type"] == "http" and scope["path"] == "/" and scope["method"] in _HEAD_TOO:
            _, port = scope["server"]
            if port == self._port():
                app = Response(GREETING, media_type="text/plain")
        await app(scope, receive, send)


class _Route(APIRoute):
    """A route whose errors have Ollama's shape."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def shaped(request: Request) -> Response:
            try:
                return await handler(request)
            except ModelyardError as error:
                headers = {name.decode(): value.decode() for name, value in headers_of(error)}
                return Response(error_body(str(error)), status_of(error), headers)

        return shaped


def _refusal(why: str) -> Callable[[], Coroutine[Any, Any, Response]]:
    async def refuse() -> Response:
        return _json({"error": f"not supported by Modelyard: {why}"}, 501)

    return refuse


def _named(fields: dict[str, Any]) -> str:
    name = fields.get("model") or fields.get("name")  # the older word
    if not isinstance(name, str) or not name:
        raise InvalidRequest("model is required", param="model")
    return name


async def _each(lines: Sequence[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    for line in lines:
        yield line


async def _encoded(lines: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    async for line in lines:
        yield msgspec.json.encode(line) + b"\n"


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
