"""An engine with a WebSocket and without a model: it says again what it is told.

Laws of this file:
- Only the standard library is imported, and nothing of it knows WebSockets: a client's library is
  tested against this, not against itself.
- What a text message asks for is done: `flood N` sends N bytes, `die` ends the process, `leave`
  closes the connection without a word, `deaf` stops reading. Any other message comes back with the
  model's name before it.

Source: RFC 6455 (4.2.2 the handshake, 5.2 frames, 5.5 control frames).
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import os
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
PATH = "/v1/realtime"
TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
PART = 64 * 1024


@dataclass(frozen=True, slots=True)
class FakeRealtime:
    """The server: one instance for one process."""

    model: str
    wrong_accept: bool = False
    refuses: int = 0
    """Status of every handshake's answer; 0 accepts them."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.split("\r\n")
            pairs = (line.partition(":") for line in lines if line)
            headers = {name.lower(): value.strip() for name, _, value in pairs}
            path = first.split(" ")[1].partition("?")[0]
            if path != PATH:
                writer.write(_plain(200 if path == "/health" else 404))
            elif self.refuses:
                writer.write(_plain(self.refuses))
            else:
                writer.write(self._handshake(headers, first))
                await self._talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    def _handshake(self, headers: dict[str, str], first: str) -> bytes:
        key = headers["sec-websocket-key"] + GUID
        if self.wrong_accept:
            key = "another"
        digest = hashlib.sha1(key.encode(), usedforsecurity=False).digest()
        accept = base64.b64encode(digest).decode()
        lines = [
            "HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade",
            f"Sec-WebSocket-Accept: {accept}", f"X-Asked: {first}", "Server: fake",
        ]  # fmt: skip
        protocols = headers.get("sec-websocket-protocol", "")
        if protocols:
            lines.append(f"Sec-WebSocket-Protocol: {protocols.partition(',')[0]}")
        seen = " ".join(sorted(headers)).encode()
        return "\r\n".join([*lines, "", ""]).encode() + frame(TEXT, b"headers " + seen)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            kind, data = await read_frame(reader)
            if kind == CLOSE:
                writer.write(frame(CLOSE, data[:2]))
                return
            if kind == PING:
                writer.write(frame(PONG, data))
            elif kind in (TEXT, BINARY) and not await self._obey(kind, data, writer):
                return
            await writer.drain()

    async def _obey(self, kind: int, data: bytes, writer: asyncio.StreamWriter) -> bool:
        """Do what a message asks for; False if that ends the connection."""
        word, _, number = data[:40].decode("latin-1").partition(" ")
        if kind == TEXT and word == "flood":
            for _ in range(int(number) // PART):
                writer.write(frame(BINARY, bytes(PART)))
                await writer.drain()
        elif kind == TEXT and word == "die":
            os._exit(3)
        elif kind == TEXT and word == "leave":
            return False
        elif kind == TEXT and word == "deaf":
            await asyncio.Event().wait()
        else:
            writer.write(frame(kind, self.model.encode() + b": " + data))
        return True


def frame(kind: int, data: bytes) -> bytes:
    """A whole message as a server sends it: unmasked."""
    if len(data) < 126:
        return struct.pack("!BB", 0x80 | kind, len(data)) + data
    if len(data) < 65536:
        return struct.pack("!BBH", 0x80 | kind, 126, len(data)) + data
    return struct.pack("!BBQ", 0x80 | kind, 127, len(data)) + data


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """A whole message as a client sends it: masked, in one frame."""
    first, second = await reader.readexactly(2)
    length = second & 0x7F
    if length == 126:
        (length,) = struct.unpack("!H", await reader.readexactly(2))
    elif length == 127:
        (length,) = struct.unpack("!Q", await reader.readexactly(8))
    mask = await reader.readexactly(4)
    masked = await reader.readexactly(length)
    whole = mask * (length // 4 + 1)
    number = int.from_bytes(masked, "big") ^ int.from_bytes(whole[:length], "big")
    return first & 0x0F, number.to_bytes(length, "big")


def _plain(status: int) -> bytes:
    head = f"HTTP/1.1 {status} Said\r\nContent-Length: 2\r\nConnection: close\r\n\r\n"
    return head.encode() + b"ok"


async def run(args: argparse.Namespace) -> None:
    engine = FakeRealtime(args.model, args.wrong_accept, args.refuses)
    server = await asyncio.start_server(engine.serve, "127.0.0.1", args.port)
    print(f"{args.model}: listening", flush=True)
    async with server:
        await server.serve_forever()


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True, metavar="NAME")
    parser.add_argument("--wrong-accept", action="store_true", help="answer another handshake")
    parser.add_argument("--refuses", type=int, default=0, metavar="STATUS")
    asyncio.run(run(parser.parse_args(argv)))


if __name__ == "__main__":
    main(sys.argv[1:])
