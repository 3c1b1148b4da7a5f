"""What `transformers serve` answers, as OpenAI's clients expect it.

Laws of this file:
- A stream is passed on event by event, as it comes; anything else is held until it is whole.
- The model goes by the name that the client used, errors have OpenAI's shape, and usage comes in a
  chunk of its own before `[DONE]`, for those who asked for it (OpenAI's API reference,
  `stream_options`); transformers 5.23 puts it into the last chunk and sends no `[DONE]`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from modelyard.servers.transformers.errors import Refused

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_DONE: Final = b"[DONE]"
_DATA: Final = b"data: "
_END: Final = b"\n\n"


class Answer:
    """Stands where the application would send; `end` is called when it has returned."""

    def __init__(self, send: Send, name: str, *, tells_usage: bool) -> None:
        self._send = send
        self._name = name
        self._tells_usage = tells_usage
        self._status = 500
        self._is_stream = False
        self._rest = b""
        self._last: dict[str, Any] = {}
        """The latest chunk, without its choices."""
        self._usage: object = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kinds = [value for key, value in message["headers"] if key.lower() == b"content-type"]
            self._is_stream = any(b"text/event-stream" in value for value in kinds)
            self._status = message["status"]
            if self._is_stream:
                await self._send(message)
            return
        self._rest += message.get("body", b"")
        if self._is_stream:
            *events, self._rest = self._rest.split(_END)
            out = b"".join(self._event(event) for event in events)
            await self._send({"type": "http.response.body", "body": out, "more_body": True})

    async def end(self, failed: str = "") -> None:
        """Send what is left; `failed` says what the application raised."""
        if self._is_stream:
            last = self._failure(failed) if failed else self._usage_chunk()
            last += _DATA + _DONE + _END
            await self._send({"type": "http.response.body", "body": last})
            return
        if self._status < 400 and not failed:
            said = _object(self._rest)
            await send_json(self._send, self._status, said and {**said, "model": self._name})
            return
        await refuse(self._send, Refused(failed or _told(self._rest), status=self._status))

    def _event(self, event: bytes) -> bytes:
        text = event.removeprefix(_DATA).strip()
        if text == _DONE:
            return b""
        said = _object(text)
        if said is None or "choices" not in said:
            return event + _END
        self._usage = said.pop("usage", None) or self._usage
        said["model"] = self._name
        self._last = {name: value for name, value in said.items() if name != "choices"}
        return _DATA + _json(said) + _END

    def _usage_chunk(self) -> bytes:
        if not self._tells_usage or self._usage is None:
            return b""
        return _DATA + _json({**self._last, "choices": [], "usage": self._usage}) + _END

    def _failure(self, failed: str) -> bytes:
        return _DATA + _json(shaped(Refused(failed, status=500))) + _END


def shaped(refused: Refused) -> dict[str, Any]:
    """An error as OpenAI writes it."""
    error = {
        "message": refused.message,
        "type": refused.kind,
        "param": refused.param,
        "code": refused.code,
    }
    return {"error": error}


async def refuse(send: Send, refused: Refused) -> None:
    await send_json(send, refused.status, shaped(refused))


async def send_json(send: Send, status: int, said: object) -> None:
    body = _json(said)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _told(body: bytes) -> str:
    """The words of an error of FastAPI's."""
    said = _object(body)
    told = said.get("detail", said) if said is not None else body.decode("utf-8", "replace")
    return told if isinstance(told, str) else json.dumps(told)


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        said = json.loads(text)
    except ValueError:
        return None
    return said if isinstance(said, dict) else None


def _json(said: object) -> bytes:
    return json.dumps(said, ensure_ascii=False).encode("utf-8", "replace")
