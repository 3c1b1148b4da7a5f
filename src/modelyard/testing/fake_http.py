"""HTTP/1.1 for fake engines: just enough of it, and nothing that hides what happens on the wire.

Laws of this file:
- Only the standard library is imported: tests start hundreds of engines.
- A connection knows at once when its client is gone, and work for that client ends there.
- Requests come from our own gateway and from tests: framing that neither sends is not understood.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

_MAX_HEAD = 65536
_REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class Fault(Exception):
    """Something to go wrong on the wire, as a flag asks for: the connection ends here."""


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        """What the error calls its type; the status's words if it is not said."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request, read to its end."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    def json(self) -> dict[str, Any]:
        """The body as an object. Raises Refused (400) if it is none."""
        try:
            value = json.loads(self.body)
        except ValueError:
            raise Refused(400, "the body is not JSON") from None
        if not isinstance(value, dict):
            raise Refused(400, "the body is not a JSON object")
        return value


Answer = Callable[["Request", "Wire", asyncio.StreamWriter], Awaitable[None]]
"""Writes the whole answer to one request, or raises Refused before it has written anything."""


class Wire(asyncio.StreamReaderProtocol):
    """A connection that knows at once when its client is gone."""

    def __init__(self, answer: Answer) -> None:
        self.gone = asyncio.Event()
        self._answer = answer
        super().__init__(asyncio.StreamReader(limit=_MAX_HEAD), self._serve)

    def eof_received(self) -> bool | None:
        self.gone.set()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()
        super().connection_lost(exc)

    async def unless_gone(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work`, or cancel it and raise ConnectionResetError when the client goes away."""
        working = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self.gone.wait())
        try:
            await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise ConnectionResetError("the client went away")
            working.result()
        finally:
            for task in (working, gone):
                task.cancel()
            await asyncio.gather(working, gone, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of this connection until it closes."""
        try:
            while await self._request(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, Fault):
            return
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        request = await _read(reader)
        try:
            await self._answer(request, self, writer)
        except Refused as error:
            send_error(writer, error)
        await writer.drain()
        return request.headers.get("connection", "").lower() != "close"


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")
    method, target, _ = first.split(" ", 2)
    pairs = (line.partition(":") for line in lines if line)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    path, _, query = target.partition("?")
    body = await _read_body(reader, headers)
    return Request(method, path, parse_qs(query, keep_blank_values=True), headers, body)


async def _read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(int(headers.get("content-length", "0")))
    body = b""
    while size := int((await reader.readline()).split(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)
    return body


# ---------------------------------------------------------------------------------------- answers


def send(
    writer: asyncio.StreamWriter, status: int, kind: str, body: bytes, surplus: int = 0
) -> None:
    """`surplus` is how many bytes are announced and never come."""
    head = (
        f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(body) + surplus}\r\n\r\n"
    )
    writer.write(head.encode() + body)


def send_json(
    writer: asyncio.StreamWriter, status: int, value: dict[str, Any], *, surplus: int = 0
) -> None:
    send(writer, status, "application/json", json.dumps(value).encode(), surplus)


def send_error(writer: asyncio.StreamWriter, error: Refused) -> None:
    send_json(writer, error.status, error_body(error))


def error_body(error: Refused) -> dict[str, Any]:
    kind = error.kind or _REASONS.get(error.status, "Error")
    said = {"message": str(error), "type": kind, "param": None, "code": error.status}
    return {"error": said}


def begin_events(writer: asyncio.StreamWriter) -> None:
    """The head of a stream of server-sent events; `end_events` must follow."""
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked"
    writer.write(f"{head}\r\n\r\n".encode())


def send_event(writer: asyncio.StreamWriter, text: str) -> None:
    data = f"data: {text}\n\n".encode()
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


def end_events(writer: asyncio.StreamWriter) -> None:
    send_event(writer, "[DONE]")
    writer.write(b"0\r\n\r\n")
