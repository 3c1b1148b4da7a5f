"""The admin API under /api, the model list under /v1, and health: everything but inference.

Laws of this file:
- Answers come from memory: no route here touches an engine, and none waits for one.
- What it says is a value of `core.views`; what it does is an event posted to the loop.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import msgspec
import psutil
from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from starlette.exceptions import HTTPException

from modelyard import __version__, compiled
from modelyard.catalog.found import FoundModel
from modelyard.config.assignment import AssignmentView, Reloaded, Wanted
from modelyard.config.pulling import PULLS
from modelyard.core import admission, leaving
from modelyard.core.errors import InvalidRequest, ModelyardError
from modelyard.core.events import RestartWanted, SleepWanted, StartWanted, StopWanted
from modelyard.core.views import DeviceView, Event, Info, LineView, LogView, ModelView, WaitingView
from modelyard.dialects.anthropic import ANTHROPIC
from modelyard.dialects.base import Dialect
from modelyard.dialects.ollama import DIALECT as OLLAMA
from modelyard.dialects.openai import OPENAI
from modelyard.http import (
    captures,
    keys,
    listing,
    ollama,
    planning,
    requests,
    responses,
    upstreams,
    virtuals,
)
from modelyard.http import pulls as http_pulls
from modelyard.http.access import Access, Caller
from modelyard.http.errors import headers_of, problem_of, status_of
from modelyard.http.gateway import Gateway
from modelyard.http.heads import HeadAsGet
from modelyard.http.origin import Door
from modelyard.http.routes import INFERENCE
from modelyard.runtime.config_file import ConfigFile
from modelyard.runtime.loop import Loop
from modelyard.runtime.pulls import Pulls
from modelyard.runtime.removals import Removals

MAX_LOG_LINES = 2000


@dataclass(slots=True)
class Facts:
    """What the admin API tells of the server that the loop does not know."""

    url: str
    config_path: str | None
    models_dirs: Sequence[str]
    answered: Callable[[], int]
    """Inference requests answered so far."""
    problems: list[str] = field(default_factory=list)
    started_at: float = field(default_factory=time.time)
    found: Callable[[], Sequence[FoundModel]] = tuple
    """What the catalog knows of the models in the folders."""
    reserve_mib: int = 0
    """What stays free on every device."""
    list_aliases: bool = False
    """Whether `/v1/models` lists aliases as models of their own."""
    ollama_port: int | None = None
    """Port on which the server looks like Ollama."""


def build(
    yard: Loop,
    facts: Facts,
    gateway: Gateway,
    file: ConfigFile,
    pulls: Pulls,
    removals: Removals,
) -> FastAPI:
    """The ASGI application behind every route that is not inference."""
    app = FastAPI(
        title="Modelyard",
        version=__version__,
        description="One OpenAI-compatible endpoint for every model you own.",
    )
    app.include_router(_health())
    app.include_router(
        listing.routes(yard, facts.found, facts.started_at, lambda: facts.list_aliases)
    )
    app.include_router(virtuals.routes(yard))
    app.include_router(upstreams.routes(yard))
    app.include_router(responses.routes())
    app.include_router(_server(yard, facts, gateway, pulls))
    app.include_router(_orders(yard))
    app.include_router(_configuration(yard, file))
    app.include_router(planning.routes(yard, facts.found, facts.reserve_mib))
    app.include_router(http_pulls.routes(yard, pulls, removals))
    app.include_router(ollama.routes(yard, facts.found, pulls, removals, facts.started_at))
    app.include_router(_models(yard))
    app.add_middleware(ollama.OllamaPort, port=lambda: facts.ollama_port)
    app.add_middleware(HeadAsGet)
    app.include_router(keys.routes(gateway.access, file))
    app.include_router(requests.routes(lambda: gateway.active, gateway.records))
    app.include_router(captures.routes(gateway.captures))
    app.add_middleware(_AtTheDoor, door=gateway.door, access=gateway.access)
    app.add_exception_handler(ModelyardError, _modelyard_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    return app


def _health() -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/health")
    @router.get("/v1/health")
    @router.get("/api/health")
    async def health() -> dict[str, str]:
        """Whether the server is up. Never touches a model."""
        return {"status": "ok", "version": __version__}

    return router


def _server(yard: Loop, facts: Facts, gateway: Gateway, pulls: Pulls) -> APIRouter:
    router = APIRouter(prefix="/api", tags=["server"])
    process = psutil.Process(os.getpid())

    @router.get("/info")
    async def info() -> Info:
        """The server itself: where it listens, what it serves, how it is doing."""
        slots = yard.scheduler.models.values()
        now = time.time()
        return Info(
            version=__version__,
            compiled=compiled(),
            pid=process.pid,
            url=facts.url,
            started_at=facts.started_at,
            uptime_s=round(now - facts.started_at, 3),
            config_path=facts.config_path,
            models_dirs=list(facts.models_dirs),
            models=len(slots),
            ready=sum(slot.state == "ready" for slot in slots),
            in_flight=sum(slot.in_flight for slot in slots),
            queued=yard.waiting,
            requests=facts.answered(),
            memory_mib=process.memory_info().rss >> 20,
            loads=yard.loads,
            stops=yard.stops,
            sleeps=yard.sleeps,
            wakes=yard.wakes,
            estimates_off_s=yard.scheduler.forecasts.error_s(),
            problems=[*facts.problems, *yard.virtuals.problems(yard.names)],
        )

    @router.get("/waiting")
    async def waiting() -> list[WaitingView]:
        """Every request that waits for a model: its place, why it waits, and what comes next."""
        named = {each.ticket: each.record.named for each in gateway.active}
        return [replace(view, named=named.get(view.ticket, "")) for view in yard.view_waiting()]

    @router.get("/devices")
    async def devices() -> list[DeviceView]:
        """The devices, what replicas may hold there, and what they claim."""
        return yard.view_devices()

    @router.get("/events")
    async def events(
        topics: Annotated[str, Query(description="comma-separated; all if empty")] = "",
    ) -> Response:
        """Live news as server-sent events: `models`, `removed`, `log:<model>`, `pulls`, `lost`."""
        wanted = [topic for topic in topics.split(",") if topic] or None

        async def stream() -> AsyncIterator[bytes]:
            with yard.broadcast.subscribe(wanted) as news:
                for slot in yard.scheduler.models.values():
                    if news.wants("models"):
                        yield _sse(Event("models", yard.view(slot)))
                if news.wants(PULLS):
                    for pull in pulls.views():
                        yield _sse(Event(PULLS, pull))
                async for event in news:
                    yield _sse(event)

        return StreamingResponse(stream(), media_type="text/event-stream")

    return router


def _models(yard: Loop) -> APIRouter:
    router = APIRouter(prefix="/api/models", tags=["models"])

    def view(model: str) -> ModelView:
        return yard.view(yard.scheduler.models[yard.names.resolve(model).id])

    @router.get("")
    async def models() -> list[ModelView]:
        """Every model and its state."""
        return [yard.view(slot) for slot in yard.scheduler.models.values()]

    @router.get("/{model:path}/logs")
    async def logs(
        model: str, lines: Annotated[int, Query(ge=1, le=MAX_LOG_LINES)] = 200
    ) -> LogView:
        """The newest lines of the model's running or last engine."""
        return yard.view_log(yard.names.resolve(model).id, lines)

    @router.get("/{model:path}/logs/follow")
    async def follow(
        model: str, lines: Annotated[int, Query(ge=0, le=MAX_LOG_LINES)] = 200
    ) -> Response:
        """The newest lines and all later ones as server-sent events, over any number of runs."""
        model_id = yard.names.resolve(model).id
        return StreamingResponse(_follow(yard, model_id, lines), media_type="text/event-stream")

    @router.get("/{model:path}")
    async def model(model: str) -> ModelView:
        """One model, by its id or an alias."""
        return view(model)

    return router


def _orders(yard: Loop) -> APIRouter:
    router = APIRouter(prefix="/api/models", tags=["models"])

    def view(model: str) -> ModelView:
        return yard.view(yard.scheduler.models[yard.names.resolve(model).id])

    @router.post("/{model:path}/start", status_code=202)
    async def start(model: str) -> ModelView:
        """Have the model running. Answers at once; `/api/events` tells how it goes."""
        spec, scheduler = yard.names.resolve(model), yard.scheduler
        slot = scheduler.models[spec.id]
        obstacle = admission.obstacle(scheduler.models, scheduler.devices, slot)
        if obstacle is not None:
            raise obstacle
        yard.post(StartWanted(spec.id))
        return view(model)

    @router.post("/{model:path}/stop", status_code=202)
    async def stop(model: str) -> ModelView:
        """Let requests in flight end, then stop the engine. Waiting requests are refused."""
        yard.post(StopWanted(yard.names.resolve(model).id))
        return view(model)

    @router.post("/{model:path}/restart", status_code=202)
    async def restart(model: str) -> ModelView:
        """Replace the engine by a fresh one. Waiting requests wait on."""
        yard.post(RestartWanted(yard.names.resolve(model).id))
        return view(model)

    @router.post("/{model:path}/sleep", status_code=202)
    async def sleep(
        model: str,
        level: Annotated[int, Query(ge=1, le=leaving.STOP, description="3 stops")] = 2,
    ) -> ModelView:
        """Let requests in flight end, then put the engine to sleep. Waiting requests wake it."""
        spec = yard.names.resolve(model)
        if level == leaving.STOP:
            yard.post(StopWanted(spec.id))
        elif level in spec.sleep:
            yard.post(SleepWanted(spec.id, level))
        else:
            can = ", ".join(str(known) for known in sorted(spec.sleep)) or "none"
            raise InvalidRequest(
                f"the engine of {spec.id!r} cannot sleep at level {level}; its levels: {can}",
                hint="level 3 stops any model; `sleep` in the configuration declares levels",
            )
        return view(model)

    @router.post("/{model:path}/wake", status_code=202)
    async def wake(model: str) -> ModelView:
        """Have a sleeping model awake, or a stopped one started."""
        return await start(model)

    return router


def _configuration(yard: Loop, file: ConfigFile) -> APIRouter:
    router = APIRouter(prefix="/api", tags=["configuration"])

    @router.post("/reload")
    async def reload() -> Reloaded:
        """Read the configuration file anew. Models follow it at once; what else has changed and
        needs a restart of the server is listed."""
        return await file.reload()

    @router.get("/models/{model:path}/assignment")
    async def assignment(model: str) -> AssignmentView:
        """The devices and options that were assigned to a model by command."""
        return file.assignment(yard.names.resolve(model))

    @router.put("/models/{model:path}/assignment")
    async def assign(model: str, wanted: Wanted) -> AssignmentView:
        """Add to what is assigned to a model, and write it into the configuration file. An engine
        that runs otherwise is renewed once its requests are done."""
        return await file.assign(yard.names.resolve(model), wanted)

    @router.delete("/models/{model:path}/assignment")
    async def clear(model: str) -> AssignmentView:
        """Take back all that is assigned to a model."""
        return await file.clear(yard.names.resolve(model))

    return router


async def _follow(yard: Loop, model: str, lines: int) -> AsyncIterator[bytes]:
    topic = f"log:{model}"
    with yard.broadcast.subscribe([topic]) as news:
        last = (0, 0)
        for line in yard.view_log(model, lines).lines:
            last = (line.run, line.number)
            yield _sse(Event(topic, line))
        async for event in news:
            if not isinstance(event.data, LineView) or (event.data.run, event.data.number) > last:
                yield _sse(event)


def _sse(event: Event) -> bytes:
    return b"data: " + msgspec.json.encode(event) + b"\n\n"


class _AtTheDoor:
    """ASGI middleware: the same rules for hosts, origins and keys as on the hot path."""

    def __init__(self, app: Any, door: Door, access: Access) -> None:
        self._app = app
        self._door = door
        self._access = access

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        origin = headers.get(b"origin")
        app, granted = self._app, []
        try:
            self._door.check(headers.get(b"host"), origin)
            if origin is not None:
                granted = self._door.cors.headers(origin)
            if scope["method"] == "OPTIONS" and origin is not None:
                preflight = self._door.cors.preflight(origin, headers)
                if preflight is not None:
                    granted, app = preflight, Response(status_code=204)
            if app is self._app:
                scope.setdefault("state", {})["caller"] = self._visitor(scope, headers)
        except ModelyardError as error:
            app = _answer(error, scope["path"])

        async def send_granted(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *granted]
            await send(message)

        await app(scope, receive, send_granted if granted else send)

    def _visitor(self, scope: Any, headers: dict[bytes, bytes]) -> Caller:
        names = (b"authorization", b"x-api-key", b"api-key")
        credential = next((headers[name] for name in names if headers.get(name)), b"")
        client = scope.get("client")
        host = client[0] if client else ""
        return self._access.visitor(scope["method"], scope["path"], credential, host)


def _answer(error: ModelyardError, path: str, usual: Dialect = OPENAI) -> Response:
    """The error in the dialect of those who ask at this path, `usual` where several do."""
    headers = {name.decode(): value.decode() for name, value in headers_of(error)}
    route = INFERENCE.get(path.encode())
    dialect = route.dialect if route is not None else usual
    if path in ollama.PATHS:
        dialect = OLLAMA
    return Response(dialect.error(problem_of(error)), status_of(error), headers)


async def _modelyard_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ModelyardError)
    path = request.url.path
    is_anthropic = path.startswith("/v1/") and listing.speaks_anthropic(request)
    return _answer(error, path, ANTHROPIC if is_anthropic else OPENAI)


async def _http_error(request: Request, error: Exception) -> Response:
    """Starlette's own 404 and 405, in the same shape as every other error."""
    assert isinstance(error, HTTPException)
    path, method = request.url.path, request.method
    if error.status_code == 405 or path.encode() in INFERENCE:
        told = InvalidRequest(f"{method} is not a way to use {path}; use POST")
        told.code = "method_not_allowed"
    else:
        told = InvalidRequest(f"there is no route {method} {path}", hint="see /docs for all routes")
        told.code = "not_found"
    return _answer(told, path)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = "; ".join(
        f"{'.'.join(str(part) for part in problem['loc'][1:])}: {problem['msg']}"
        for problem in error.errors()
    )
    return _answer(InvalidRequest(problems), request.url.path)
