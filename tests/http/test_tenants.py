"""Nobody ever receives a byte that was meant for somebody else.

Each request carries a tag of its own; a fake engine's answer repeats the prompt word by word, so
every word of an answer must be the tag of its request. Connections on both sides are shared, used
again, and broken off at any moment. MODELYARD_TENANT_REQUESTS sets how many requests there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
from collections import Counter
from dataclasses import dataclass, field

import pytest
from tests.conftest import Serve
from tests.http.corpus.cases import HOST

from modelyard.testing.server import Running, fake_model

pytestmark = [pytest.mark.usefixtures("nothing_left"), pytest.mark.timeout(3600)]

REQUESTS = int(os.environ.get("MODELYARD_TENANT_REQUESTS", "1500"))
TENANTS = 24
TAG = re.compile(rb"tag-[0-9a-f]+-[0-9]+")


@dataclass
class Tenant:
    """One client with its own connection, which it uses until it breaks it off."""

    number: int
    server: Running
    seed: int
    seen: Counter[str] = field(default_factory=Counter)
    leaks: list[str] = field(default_factory=list)
    asked: int = 0

    async def live(self, requests: int) -> None:
        chance = random.Random(self.seed + self.number)
        while self.asked < requests:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
            try:
                while self.asked < requests and await self._ask(reader, writer, chance):
                    pass
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, chance: random.Random
    ) -> bool:
        """One or more requests; False if the connection is broken off or was closed."""
        tags = [self._tag(chance) for _ in range(chance.choice([1, 1, 1, 2, 5]))]
        writer.write(b"".join(self._request(tag, chance) for tag in tags))
        leaves = chance.random() < 0.25
        if leaves:
            await asyncio.sleep(chance.choice([0, 0.0005, 0.003]))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.002):
                    self._look(await reader.read(chance.choice([1, 300, 5000])), tags)
            self.seen["left"] += 1
            return False
        for tag in tags:
            body = await _answer(reader)
            self._look(body, [tag])
            self.seen["whole" if tag in body else "without its tag"] += 1
        return True

    def _tag(self, chance: random.Random) -> bytes:
        self.asked += 1
        return b"tag-%x-%d" % (chance.getrandbits(64), self.number)

    def _request(self, tag: bytes, chance: random.Random) -> bytes:
        words = " ".join([tag.decode()] * chance.choice([1, 3, 40]))
        asked = {
            "model": chance.choice(["one", "two"]),
            "messages": [{"role": "user", "content": words}],
            "max_tokens": chance.choice([4, 10, 60]),
            "stream": chance.random() < 0.5,
        }
        body = json.dumps(asked).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body

    def _look(self, received: bytes, mine: list[bytes]) -> None:
        own = {tag.rpartition(b"-")[0] for tag in mine}
        for found in TAG.findall(received):
            if found.rpartition(b"-")[0] not in own:
                self.leaks.append(f"{found!r} in an answer to {mine!r}")


async def _answer(reader: asyncio.StreamReader) -> bytes:
    """The body of one answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    assert head.startswith(b"http/1.1 200"), head
    length = re.search(rb"content-length: (\d+)", head)
    if length is not None:
        return await reader.readexactly(int(length[1]))
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)
    return body


async def test_nobody_ever_receives_what_was_meant_for_somebody_else(serve: Serve) -> None:
    models = (fake_model(name, "--tokens", "20") for name in ("one", "two"))
    async with serve(*models) as server:
        tenants = [Tenant(number, server, seed=5) for number in range(TENANTS)]
        await asyncio.gather(*(tenant.live(REQUESTS // TENANTS) for tenant in tenants))
        async with asyncio.timeout(60):
            while server.yard.gateway.active:
                await asyncio.sleep(0.01)
        leases = [slot.in_flight for slot in server.yard.loop.scheduler.models.values()]
    seen = sum((tenant.seen for tenant in tenants), Counter[str]())

    assert [leak for tenant in tenants for leak in tenant.leaks] == []
    assert (seen["without its tag"], set(leases)) == (0, {0})
    assert min(seen["whole"], seen["left"]) > 0
