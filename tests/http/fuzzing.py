"""Random trouble for a whole server: clients, engines and connections that do as they should not.

Laws of this file:
- Everything comes from one seed, but for how the loop takes turns.
- A seed is something that makes sense (a case of the corpus, an answer of an engine), and what is
  sent is a mutation of it, in random pieces, given up at a random moment.
- After each round everybody has gone, and so must be all that was held for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import re
import signal
import socket
import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.http.corpus.cases import BODY, CHAT, HOST, cases
from tests.http.test_hostile_engine import EVENTS, lies

from modelyard.http.routes import INFERENCE
from modelyard.testing.server import Running

SETTLED_S = 60.0
CLIENTS = 8
MAX_SENT = 300_000
LONGEST_S = 4.0
CHUNK_LINES = re.compile(rb"\r\n[0-9a-fA-F]+\r\n")
"""Framing that may stand inside of a name that is sent in chunks."""
"""A client that has neither an end nor an answer after this leaves."""
TOKENS = (
    b"\r\n", b"\n", b"\r", b"\x00", b"\xff", b":", b";", b" ", b"\t", b"0", b"-1", b"chunked",
    b"identity", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n",
    b"Connection: close\r\n",
    b"Connection: upgrade\r\nUpgrade: websocket\r\n", b"Expect: 100-continue\r\n", b"HTTP/1.0",
    b"GET / HTTP/1.1\r\n\r\n", b"\r\n\r\n", b'"', b"{", b"}", b"[", b"]", b"\\", b"\\u0000",
    b"null", b"1e999", b'"stream": true', b'"model": "m"', b"data: ", b"[DONE]", b"\n\n",
    b"event: error\n",
)  # fmt: skip


@dataclass
class Found:
    """What went wrong, and what was tried."""

    problems: list[str] = field(default_factory=list)
    tried: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)


class Watch(logging.Handler):
    """Errors that the server logs, and exceptions that reach the loop, are findings."""

    def __init__(self, found: Found) -> None:
        super().__init__(logging.ERROR)
        self._found = found

    def emit(self, record: logging.LogRecord) -> None:
        self._found.problems.append(f"logged: {self.format(record)}")

    def unhandled(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self._found.problems.append(f"unhandled: {context.get('message')}: {error!r}")


class Fuzzer:
    """Sends trouble to `server`, which serves `m` (fake) and `h` (hostile)."""

    def __init__(self, server: Running, seed: int) -> None:
        self.server = server
        self.found = Found()
        self._random = random.Random(seed)
        self._requests = [case.data for case in cases() if len(case.data) < 20_000]
        self._answers = ["".join(lie.parts) for lie in lies()]
        self._paths = [*INFERENCE, b"/v1/models", b"/api/models", b"/v1/realtime?model=h"]

    async def round(self, clients: int, *, kills: bool = False) -> None:
        """So many clients at once, then silence, in which everything must come to rest."""
        watch = Watch(self.found)
        loop = asyncio.get_running_loop()
        before = loop.get_exception_handler()
        loop.set_exception_handler(watch.unhandled)
        logging.getLogger().addHandler(watch)
        try:
            for _ in range(0, clients, CLIENTS):
                await asyncio.gather(*(self._client() for _ in range(CLIENTS)))
                if kills and self._random.random() < 0.02:
                    self._kill()
            await self._settle()
        finally:
            logging.getLogger().removeHandler(watch)
            loop.set_exception_handler(before)

    # ------------------------------------------------------------------------------------- trouble

    async def _client(self) -> None:
        kind, data = self._trouble()
        self.found.tried[kind] += 1
        try:
            async with asyncio.timeout(LONGEST_S):
                await self._send(data)
        except (TimeoutError, OSError):
            return
        except RuntimeError as error:  # uvloop's word for a connection that has been closed
            if "closed" not in str(error):
                raise

    def _trouble(self) -> tuple[str, bytes]:
        dice = self._random.random()
        if dice < 0.35:
            data = self._random.choice(self._requests)
            if self._random.random() < 0.3:
                data += self._random.choice(self._requests)
            return "http", self._mutated(data)
        if dice < 0.55:
            return "json", self._framed(self._mutated(self._body()))
        if dice < 0.95:
            return "engine", self._framed(self._wire())
        return "valid", self._framed(self._body())

    def _body(self) -> bytes:
        stream = self._random.choice([True, False])
        text = self._random.choice(["hi", "ä€😀", "x" * 2000, '"\\'])
        asked: dict[str, object] = {
            "model": self._random.choice(["m", "m", "h", "nobody"]),
            "messages": [{"role": "user", "content": text}],
            "prompt": text, "input": [text], "query": text, "documents": [text], "stream": stream,
            "max_tokens": self._random.choice([1, 5, 400]),
        }  # fmt: skip
        if self._random.random() < 0.3:
            asked["stream_options"] = {"include_usage": stream}
        return json.dumps(asked).encode()

    def _wire(self) -> bytes:
        """A request whose engine answers with a mutation of an answer, in random pieces."""
        chance = self._random
        answer = chance.choice(self._answers).encode("latin-1")[:20_000]
        if chance.random() < 0.3:
            events = b"".join(chance.choice(_EVENTS) for _ in range(chance.randrange(1, 9)))
            answer = EVENTS.encode() + b"%x\r\n%b\r\n" % (len(events), events)
            answer += chance.choice([b"0\r\n\r\n", b""])
        if chance.random() < 0.7:
            answer = self._mutated(answer)
        parts = [part.decode("latin-1") for part in self._pieces(answer, chance.randrange(1, 6))]
        end = chance.choice(["stay", "stay", "close", "reset", "silence"])
        wire = {"parts": parts, "end": end}
        asked = {"model": "h", "messages": [], "stream": chance.choice([True, False]), "wire": wire}
        return json.dumps(asked).encode()

    def _framed(self, body: bytes) -> bytes:
        path = CHAT.split(b" ")[1]
        if self._random.random() < 0.3:
            path = self._random.choice(self._paths)
        head = b"POST " + path + b" HTTP/1.1\r\n" + HOST
        if self._random.random() < 0.3:
            pieces = self._pieces(body, 4)
            chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece)
            return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body

    def _mutated(self, data: bytes) -> bytes:
        chance = self._random
        changed = bytearray(data)
        for _ in range(chance.choice([1, 1, 1, 2, 3, 8])):
            at = chance.randrange(len(changed) + 1)
            until = min(len(changed), at + chance.choice([1, 1, 2, 5, 40]))
            match chance.randrange(6):
                case 0:
                    del changed[at:until]
                case 1:
                    changed[at:at] = changed[at:until] * chance.choice([1, 2, 50])
                case 2:
                    changed[at:at] = chance.choice(TOKENS)
                case 3:
                    changed[at:until] = chance.choice(TOKENS)
                case 4 if at < len(changed):
                    changed[at] ^= 1 << chance.randrange(8)
                case _:
                    changed[at:until] = chance.randbytes(until - at)
        return bytes(changed[:MAX_SENT])

    def _pieces(self, data: bytes, count: int) -> list[bytes]:
        cuts = sorted(self._random.randrange(len(data) + 1) for _ in range(count - 1))
        return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]

    # ------------------------------------------------------------------------------- the connection

    async def _send(self, data: bytes) -> None:
        chance = self._random
        pieces = self._pieces(data, chance.choice([1, 1, 2, 5]))
        leaves = chance.random() < 0.4
        patience_s = chance.choice([0.0, 0.001, 0.01, 0.05])
        how = chance.choice(["close", "reset", "half"])
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        try:
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(chance.choice([0, 0, 0.002]))
            if leaves:
                await asyncio.sleep(patience_s)
                if how == "half":
                    writer.write_eof()
                    await asyncio.wait_for(reader.read(), 2)
            else:
                first = await asyncio.wait_for(reader.read(12), 1.5)
                self._check(first, data)
                await asyncio.wait_for(reader.read(MAX_SENT), chance.choice([0.02, 0.5]))
        finally:
            connection = writer.get_extra_info("socket")
            if leaves and how == "reset" and connection is not None:
                linger = struct.pack("ii", 1, 0)
                with contextlib.suppress(OSError):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _check(self, first: bytes, data: bytes) -> None:
        if not first:
            return
        if not first.startswith(b"HTTP/1.1 ") or not first[9:12].isdigit():
            self.found.problems.append(f"{first!r} is no status line, for {data[:500]!r}")
            return
        status = int(first[9:12])
        self.found.statuses[status] += 1
        if status == 500 and b'"h"' not in CHUNK_LINES.sub(b"", data):  # h's engine may say so
            self.found.problems.append(f"500 for {data[:500]!r}")

    def _kill(self) -> None:
        runs = list(self.server.yard.loop.runs.values())
        pids = [run.pid for run in runs if run.pid is not None]
        if pids:
            self.found.tried["kill"] += 1
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._random.choice(pids), signal.SIGKILL)

    # ----------------------------------------------------------------------------------------- rest

    async def _settle(self) -> None:
        """Everybody has left: nothing may be held for them, and a new client is served."""
        try:
            async with asyncio.timeout(SETTLED_S):
                while self.held():
                    await asyncio.sleep(0.02)
        except TimeoutError:
            self.found.problems.append(f"still held after {SETTLED_S:g} s: {self.held()}")
        status, body = await self._plain()
        if status == 502:  # its engine has just been killed
            status, body = await self._plain()
        if status != 200 or b"m: echo" not in body:
            self.found.problems.append(f"a plain request got {status} {body[:200]!r}")

    def held(self) -> dict[str, int]:
        """What the server holds for requests and their clients."""
        gateway, loop = self.server.yard.gateway, self.server.yard.loop
        slots = loop.scheduler.models.values()
        everything = {
            "exchanges": len(gateway.active),
            "connections": len(gateway.connections),
            "leases": sum(slot.in_flight for slot in slots),
            "waiting": loop.waiting,
        }
        return {name: number for name, number in everything.items() if number}

    async def _plain(self) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        head = CHAT + HOST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY)
        writer.write(head + BODY)
        try:
            async with asyncio.timeout(SETTLED_S):
                answer = await reader.read()
        except TimeoutError:
            return 0, b""
        finally:
            writer.close()
        return int(answer[9:12] or b"0"), answer


_EVENTS = (
    b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n',
    b'data: {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}\n\n',
    b'data: {"choices": [{"delta": {"content": "\xc3\xa4"}}], "usage": null}\r\n\r\n',
    b"data: [DONE]\n\n",
    b": comment\n",
    b": comment\n\n",
    b"event: error\ndata: {}\n\n",
    b'data: {"error": {"message": "x"}}\n\n',
    b"data: {not json\n\n",
    b"data:\n\n",
    b"data: [1,2]\n\n",
    b'data: {"usage": "x", "choices": 7}\n\n',
    b"id: 1\rdata: x\r\r",
    b"data: " + b"x" * 5000 + b"\n\n",
    b'data: {"timings": {"prompt_ms": 1.5}}\n\n',
)
