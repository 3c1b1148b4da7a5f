"""Requests of our own to an engine: control routes and probes. Nothing of a client gets here.

Laws of this file:
- A call that does not end in 2xx within its time is a `ControlFailed` with what the engine said.
- Of an answer no more than `MAX_ANSWER` is read, and it ends where its framing says so: an engine
  may keep the connection open although it was asked to close it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping

from modelyard.core.errors import ModelyardError
from modelyard.core.specs import Call, Endpoint
from modelyard.runtime.dialing import open_streams

MAX_ANSWER = 64 * 1024
MAX_QUOTED = 300


class ControlFailed(ModelyardError):
    """An engine did not do what it was told."""

    code = "control_failed"


class NoAnswer(ControlFailed):
    """An engine took the request and was silent."""


class Unreachable(ControlFailed):
    """An engine took no connection: most likely its end is about to be reported."""


async def call(endpoint: Endpoint, order: Call) -> bytes:
    """Make one call; returns the beginning of what was answered.

    Raises ControlFailed: NoAnswer if the engine was silent for the call's time, Unreachable if it
    never heard of the call.
    """
    try:
        async with asyncio.timeout(order.timeout_s):
            status, answer = await _exchange(endpoint, order)
    except TimeoutError:
        raise NoAnswer(f"{order}: no answer after {order.timeout_s:g} s") from None
    except ConnectionRefusedError as error:
        raise Unreachable(f"{order}: {error}") from None
    except (OSError, ValueError, LookupError, EOFError, asyncio.LimitOverrunError) as error:
        raise ControlFailed(f"{order}: {error or type(error).__name__}") from None
    if not 200 <= status < 300:
        raise ControlFailed(f"{order}: status {status}: {_words(answer)}")
    return answer


async def _exchange(endpoint: Endpoint, order: Call) -> tuple[int, bytes]:
    body = (order.body or "").encode()
    head = [
        f"{order.method} {order.path} HTTP/1.1",
        f"Host: {endpoint.authority}",
        "Connection: close",
        f"Content-Length: {len(body)}",
    ]
    if order.body is not None:
        head.append("Content-Type: application/json")
    reader, writer = await open_streams(endpoint)
    try:
        writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).lower().splitlines()
        fields = dict(line.split(b":", 1) for line in lines if b":" in line)
        return int(first.split()[1]), await _answer(reader, fields)
    finally:
        writer.close()


async def _answer(reader: asyncio.StreamReader, fields: Mapping[bytes, bytes]) -> bytes:
    """The body, as its head frames it (RFC 9112, 6.3)."""
    if b"chunked" in fields.get(b"transfer-encoding", b""):
        body = b""
        while len(body) < MAX_ANSWER and (size := await _chunk_size(reader)):
            body += (await reader.readexactly(min(size, MAX_ANSWER) + 2))[:size]
        return body
    length = fields.get(b"content-length")
    if length is not None:
        return await reader.readexactly(min(int(length), MAX_ANSWER))
    return await reader.read(MAX_ANSWER)


async def _chunk_size(reader: asyncio.StreamReader) -> int:
    return int((await reader.readline()).split(b";")[0], 16)


def _words(answer: bytes) -> str:
    """What an error answer says: the message in it if it is JSON of a usual shape, else all."""
    text = answer.decode("utf-8", "replace").strip()
    try:
        said = json.loads(text)
    except ValueError:
        said = None
    if isinstance(said, dict):
        error = said.get("error", said)
        message = error.get("message") or error.get("detail") if isinstance(error, dict) else error
        text = str(message or text)
    return " ".join(text.split())[:MAX_QUOTED] or "and no words"
