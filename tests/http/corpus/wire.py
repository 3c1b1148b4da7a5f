"""Raw bytes to a server and the answers that come back, in order."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer as it stood on the wire."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Conversation:
    """What a server said on one connection."""

    answers: list[Answered] = field(default_factory=list)
    interim: list[int] = field(default_factory=list)
    """Statuses below 200."""
    trouble: str = ""
    """What was wrong with its bytes, if anything was."""

    @property
    def statuses(self) -> list[int]:
        return [answer.status for answer in self.answers]


async def converse(port: int, data: bytes, *, wanted: int, then: bytes = b"") -> Conversation:
    """Send `data`; read `wanted` answers, then send `then`, and read until the server closes.

    A server that neither answers nor closes within a minute is told of in `trouble`.
    """
    heard = Conversation()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    try:
        async with asyncio.timeout(_SECONDS):
            writer.write(data)
            while len(heard.answers) < wanted and await _answer(reader, heard):
                pass
            if then and not heard.trouble and len(heard.answers) == wanted:
                writer.write(then)
            while await _answer(reader, heard):
                pass
    except TimeoutError:
        heard.trouble = "the connection stays open and nothing comes"
    except ConnectionResetError:
        heard.trouble = heard.trouble or "reset"
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return heard


async def _answer(reader: asyncio.StreamReader, heard: Conversation) -> bool:
    """Read one answer; False at the end of the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            heard.trouble = f"bytes that are no answer: {error.partial[:80]!r}"
        return False
    first, *lines = head.decode("latin-1").split("\r\n")
    if not first.startswith("HTTP/1.1 "):
        heard.trouble = f"no status line: {first!r}"
        return False
    status = int(first.split()[1])
    if status < 200:
        heard.interim.append(status)
        return True
    pairs = (line.partition(":") for line in lines if line)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    try:
        body = await _body(reader, headers)
    except (asyncio.IncompleteReadError, ValueError) as error:
        heard.trouble = f"the body is cut: {error}"
        return False
    heard.answers.append(Answered(status, headers, body))
    return True


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
        return body
    return await reader.readexactly(int(headers.get("content-length", "0")))
