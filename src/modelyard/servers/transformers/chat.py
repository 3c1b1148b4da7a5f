"""Chat and base models: `transformers serve`, made to look like one model with a name.

Laws of this file:
- The server is transformers' own, unchanged. It is started through its command-line class, and
  what it hands to uvicorn gets a front put before it.
- It is pinned to one model and calls it by its path; it would refuse any other name. The front puts
  that in the place of the name that a client used, and the name back into the answer, so that no
  path of this machine gets out.
- Only inference, health and the list of models are reachable: `/load_model` and `/reset` would let
  anybody change what is loaded.

Facts: transformers 5.23, cli/serve.py and cli/serving (`_resolve_model` refuses other names than
the pinned one; `ModelManager` splits ids at `@`, so the model is named by the folder that the
process works in).
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec
import uvicorn

from modelyard.servers.lifeline import (
    EXIT_FAILED,
    Unusable,
    announce,
    leave,
    restore_signals,
)
from modelyard.servers.transformers.chat_answers import (
    Answer,
    Message,
    Receive,
    Send,
    refuse,
    send_json,
)
from modelyard.servers.transformers.errors import Refused
from modelyard.servers.transformers.process import listen
from modelyard.servers.transformers.settings import ChatSettings

Asgi = Callable[[Message, Receive, Send], Awaitable[None]]

PINNED: Final = "."
INFERENCE: Final = frozenset({"/v1/chat/completions", "/v1/completions"})
MAX_QUOTED: Final = 300
_OURS: Final = frozenset({"max_body_bytes", "threads"})


def serve_chat(
    folder: str, names: tuple[str, ...], host: str, port: int, settings: ChatSettings
) -> NoReturn:
    """Load the model, then serve it until the process is ended. Raises Unusable and OSError."""
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise Unusable(f"{folder} is not the folder of a model: it has no config.json")
    listen(host, port).close()  # a port that is taken is told before the model is loaded
    os.chdir(path)
    announce("phase: starting transformers")
    from transformers.cli.serve import Serve
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        raise Unusable("chat needs what `pip install 'modelyard[transformers]'` installs")
    announce("phase: loading weights")
    with _fronted(lambda app: Front(app, names, settings.max_body_bytes)):
        try:
            Serve(PINNED, **_arguments(settings), host=host, port=port, log_level="error")
        except Exception as error:  # the library raises anything; a person gets it in one line
            leave(EXIT_FAILED, f"the model could not be served: {type(error).__name__}: {error}")
    leave(EXIT_FAILED, "transformers serve ended by itself")


def _arguments(settings: ChatSettings) -> dict[str, Any]:
    named = {
        name: value
        for name, value in msgspec.structs.asdict(settings).items()
        if value is not None and name not in _OURS
    }
    if "chat_template_kwargs" in named:
        named["chat_template_kwargs"] = json.dumps(named["chat_template_kwargs"])
    return named


@contextmanager
def _fronted(front: Callable[[Asgi], Asgi]) -> Iterator[None]:
    """Within the block, what uvicorn is given gets `front`, and signals stay the kernel's."""
    config, capture = uvicorn.Config.__init__, uvicorn.Server.capture_signals

    def with_front(self: uvicorn.Config, app: Asgi, **rest: Any) -> None:
        announce("ready")
        config(self, front(app), **{**rest, "log_config": None, "access_log": False})

    @contextmanager
    def without_signals(_: uvicorn.Server) -> Iterator[None]:
        restore_signals()
        yield

    uvicorn.Config.__init__ = with_front  # type: ignore[method-assign, assignment]
    uvicorn.Server.capture_signals = without_signals  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        uvicorn.Config.__init__ = config  # type: ignore[method-assign]
        uvicorn.Server.capture_signals = capture  # type: ignore[method-assign]


class Front:
    """An ASGI application before transformers' own."""

    def __init__(self, app: Asgi, names: tuple[str, ...], max_body_bytes: int) -> None:
        self._app = app
        self._names = names
        self._most = max_body_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, method = scope["path"], scope["method"]
        if method == "GET" and path == "/health":
            await self._app(scope, receive, send)
        elif method == "GET" and path == "/v1/models":
            facts = {"object": "model", "owned_by": "modelyard"}
            data = [{"id": name, **facts} for name in self._names]
            await send_json(send, 200, {"object": "list", "data": data})
        elif method == "POST" and path in INFERENCE:
            try:
                body = await self._body(receive)
            except Refused as refused:
                await refuse(send, refused)
                return
            if body is not None:
                await self._inference(scope, body, receive, send)
        else:
            error = Refused(f"there is no route {method} {path} here", status=404, code="not_found")
            await refuse(send, error)

    async def _inference(
        self, scope: Message, body: dict[str, Any], receive: Receive, send: Send
    ) -> None:
        asked_for = body.pop("model", None)
        name = asked_for if asked_for in self._names else self._names[0]
        options = body.pop("stream_options", None)
        tells_usage = isinstance(options, dict) and options.get("include_usage") is True
        whole = json.dumps({**body, "model": PINNED}).encode()
        headers = [each for each in scope["headers"] if not each[0].startswith(b"content-")]
        headers.append((b"content-length", b"%d" % len(whole)))
        headers.append((b"content-type", b"application/json"))  # FastAPI reads no other as JSON
        pending: list[Message] = [{"type": "http.request", "body": whole}]

        async def next_message() -> Message:
            return pending.pop() if pending else await receive()

        answer = Answer(send, name, tells_usage=tells_usage)
        failed = ""
        try:
            await self._app({**scope, "headers": headers}, next_message, answer)
        except Exception as error:  # the library raises anything; a client waits for an answer
            text = " ".join(str(error).split())[:MAX_QUOTED]
            failed = f"transformers failed: {type(error).__name__}: {text}"
            announce(f"a request failed: {failed}")
        await answer.end(failed)

    async def _body(self, receive: Receive) -> dict[str, Any] | None:
        """The request's JSON; None if the client has gone. Raises Refused."""
        whole = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            whole += message.get("body", b"")
            if len(whole) > self._most:
                raise Refused(f"the body is larger than {self._most} bytes", status=413)
            if not message.get("more_body"):
                break
        try:
            body = json.loads(whole)
        except (ValueError, RecursionError) as error:
            raise Refused(f"the body is not JSON: {error}") from None
        if not isinstance(body, dict):
            raise Refused("the body must be a JSON object")
        _check_messages(body.get("messages"))
        return body


def _check_messages(messages: object) -> None:
    """What transformers takes for granted of a chat. Raises Refused."""
    if messages is None:
        return
    if not isinstance(messages, list) or not messages:
        raise Refused("messages must be a list with at least one message", param="messages")
    for at, each in enumerate(messages):
        if not isinstance(each, dict) or not isinstance(each.get("role"), str):
            raise Refused(f"messages[{at}] must be an object with a role", param="messages")
