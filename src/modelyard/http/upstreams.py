"""What an engine has besides inference: `/upstream/{model}/...` for admins, `/props` and `/slots`.

Laws of this file:
- A lease is held for as long as an answer lasts, so the engine is started or woken and not stopped
  in the middle.
- Routes that control an engine (sleep, shut down, load what somebody names, run code) cannot be
  reached here in any spelling: the scheduler would no longer know what it holds. A path that is
  written in more than one way is refused.
- No credential, cookie or origin of the client reaches the engine.

Sources of the control routes: vLLM (`vllm serve` with VLLM_SERVER_DEV_MODE, LoRA), SGLang
(http_server.py), LMDeploy (api_server.py), llama.cpp (tools/server/README.md: `POST /props`,
`POST /slots/{id}`, `POST /lora-adapters`, `/models/load`), Ollama (`/api/pull`, `/api/create`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Final
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from modelyard.core.errors import Forbidden, InvalidRequest, ModelyardError
from modelyard.http.access import caller_of, resolved
from modelyard.http.answer import kept_of
from modelyard.http.request_head import NOT_FORWARDED
from modelyard.runtime.framing import AnswerHead
from modelyard.runtime.loop import Loop
from modelyard.runtime.upstream import Connection, Headers, Lease

METHODS: Final = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
CONTROL: Final = frozenset({
    "sleep", "wake_up", "wakeup", "is_sleeping", "collective_rpc", "reset_prefix_cache",
    "reset_mm_cache", "reset_encoder_cache", "pause", "resume", "start_profile", "stop_profile",
    "load_lora_adapter", "unload_lora_adapter", "update_weights", "update_weights_from_disk",
    "update_weights_from_tensor", "update_weights_from_distributed", "init_weights_update_group",
    "init_weight_transfer_engine", "release_memory_occupation", "resume_memory_occupation",
    "flush_cache", "pause_generation", "continue_generation", "abort_request", "scale_elastic_ep",
    "is_scaling_elastic_ep", "set_internal_state", "configure_logging", "shutdown", "terminate",
    "distserve", "load", "unload", "pull", "push", "create", "copy", "delete", "blobs",
})  # fmt: skip
"""Names that are part of no path here."""
READ_ONLY: Final = frozenset({"props", "slots", "lora-adapters"})
"""First names of paths that may be looked at and not changed."""
ORDINARY: Final = re.compile(r"[A-Za-z0-9._~-]+(?:/[A-Za-z0-9._~-]+)*/?")
MAX_PARTS: Final = 64
"""Parts of an answer that wait for the client before the engine is held up."""


def routes(yard: Loop) -> APIRouter:
    router = APIRouter(tags=["engines"])

    @router.api_route("/upstream/{model}/{path:path}", methods=METHODS, include_in_schema=False)
    async def upstream(model: str, path: str, request: Request) -> StreamingResponse:
        """Anything an engine has, as it is; the model is started if need be. For admins."""
        written = request.scope.get("raw_path", b"").decode("latin-1").partition("?")[0]
        if not written.endswith(f"/{path}"):
            raise Forbidden("this path is written in a way that engines could read differently")
        return await _passed(yard, model, path, request)

    @router.get("/props")
    async def props(model: str, request: Request) -> StreamingResponse:
        """llama.cpp's own account of a model: template, default settings, context."""
        return await _passed(yard, model, "props", request)

    @router.get("/slots")
    async def slots(model: str, request: Request) -> StreamingResponse:
        """What the slots of a model's llama.cpp are doing."""
        return await _passed(yard, model, "slots", request)

    return router


def refusal(method: str, path: str) -> Forbidden | None:
    """Why a path of an engine is out of reach; None if it is not."""
    if path and not ORDINARY.fullmatch(path):
        return Forbidden("this path is written in a way that engines could read differently")
    names = [name.lower().replace("-", "_") for name in path.strip("/").split("/")]
    if ".." in names or "." in names or CONTROL.intersection(names):
        return Forbidden(
            f"/{path} controls an engine and cannot be reached from outside",
            hint="use `modelyard sleep`, `wake`, `stop` and `assign`",
        )
    first = path.strip("/").partition("/")[0].lower()
    if first in READ_ONLY and method not in ("GET", "HEAD"):
        return Forbidden(f"/{path} can be looked at, not changed")
    return None


async def _passed(yard: Loop, model: str, path: str, request: Request) -> StreamingResponse:
    refused = refusal(request.method, path)
    if refused is not None:
        raise refused
    spec = resolved(yard.names, model, caller_of(request)).spec
    if spec.engine == "remote":
        raise InvalidRequest(f"{model!r} is somebody else's: it has no engine here", param="model")
    body = await request.body()
    lease = await _leased(yard, spec.id)
    answer = _Answer()
    try:
        connection = lease.upstream.idle_connection() or await lease.upstream.connect()
        connection.send(answer, _request(request, path, body, lease))
        answer.connection = connection
        async with asyncio.timeout(spec.limits.response_timeout_s):
            status, headers = await answer.head
    except BaseException:
        answer.abandon()
        lease.close(served=False)
        raise
    return StreamingResponse(
        answer.parts(lease),
        status,
        {name.decode("latin-1"): value.decode("latin-1") for name, value in kept_of(headers)},
    )


async def _leased(yard: Loop, model: str) -> Lease:
    """A lease, after waiting for it if need be. Raises ModelyardError."""
    lease = yard.lease(model)
    if lease is not None:
        return lease
    waiter = _Waiter()
    ticket = yard.wait(model, waiter)
    try:
        return await waiter.lease
    except asyncio.CancelledError:
        yard.leave(model, ticket)
        if waiter.lease.done() and not waiter.lease.cancelled() and not waiter.lease.exception():
            waiter.lease.result().close(served=False)
        raise


def _request(request: Request, path: str, body: bytes, lease: Lease) -> bytes:
    query = [(name, value) for name, value in request.query_params.multi_items()]
    if not request.url.path.startswith("/upstream/"):
        query = [(name, value) for name, value in query if name != "model"]
    asked = urlencode(query)
    target = f"/{path}{'?' if asked else ''}{asked}"
    lines = [
        b"%b: %b\r\n" % (name, value)
        for name, value in request.headers.raw
        if name not in NOT_FORWARDED
    ]
    return b"".join(
        (
            f"{request.method} {target} HTTP/1.1\r\n".encode("ascii"),
            lease.upstream.own_headers,
            *lines,
            b"content-length: %d\r\n\r\n" % len(body),
            body,
        )
    )


class _Waiter:
    """Waits for a grant."""

    def __init__(self) -> None:
        self.lease: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()

    def granted(self, lease: Lease) -> None:
        if self.lease.done():  # whoever waited has gone
            lease.close(served=False)
        else:
            self.lease.set_result(lease)

    def refused(self, error: ModelyardError) -> None:
        if not self.lease.done():
            self.lease.set_exception(error)


class _Answer:
    """An engine's answer on its way into a StreamingResponse."""

    def __init__(self) -> None:
        self.head: asyncio.Future[tuple[int, Headers]] = asyncio.get_running_loop().create_future()
        self.connection: Connection | None = None
        self._parts: asyncio.Queue[bytes | ModelyardError | None] = asyncio.Queue()
        self._is_whole = False

    def answer_begins(self, head: AnswerHead, length: int | None) -> None:  # noqa: ARG002 - see Receiver
        self.head.set_result((head.status, head.headers))

    def answer_continues(self, body: bytes, complete: bool) -> None:
        if body:
            self._parts.put_nowait(body)
        if complete:
            self._is_whole = True
            self._parts.put_nowait(None)
        elif self._parts.qsize() > MAX_PARTS and self.connection is not None:
            self.connection.pause_reading()

    def answer_fails(self, error: ModelyardError) -> None:
        if not self.head.done():
            self.head.set_exception(error)
        else:
            self._parts.put_nowait(error)

    def abandon(self) -> None:
        """Nobody listens any more."""
        self.head.cancel()
        if self.connection is not None and not self._is_whole:
            self.connection.abort()

    async def parts(self, lease: Lease) -> AsyncIterator[bytes]:
        """The body; the lease is given back at its end."""
        try:
            while (part := await self._parts.get()) is not None:
                if isinstance(part, ModelyardError):
                    raise part
                yield part
                if self.connection is not None and self._parts.qsize() < MAX_PARTS // 2:
                    self.connection.resume_reading()
        finally:
            self.abandon()
            lease.close(served=self._is_whole)
