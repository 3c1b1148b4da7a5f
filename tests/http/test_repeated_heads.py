"""Requests whose head comes again and again on one connection, cut anywhere."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.conftest import Serve
from tests.http.corpus.cases import CHAT, HOST

from modelyard.testing.server import Running, fake_model

pytestmark = pytest.mark.usefixtures("nothing_left")

HEAD = CHAT + HOST + b"X-A: b\r\n"


def ask(tag: str, head: bytes = HEAD) -> bytes:
    """A request for an answer that repeats `tag`; bodies differ in length."""
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": tag}]}).encode()
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, *parts: bytes) -> None:
        for part in parts:
            self._writer.write(part)
            await self._writer.drain()
            await asyncio.sleep(0.002)

    async def answer(self) -> tuple[int, str]:
        """Status and what was said."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None, head
        answer = json.loads(await self._reader.readexactly(int(length[1])))
        error = answer.get("error")
        said = error["code"] if error else answer["choices"][0]["message"]["content"]
        return int(head.split()[1]), said.split()[-1]


@asynccontextmanager
async def connected(server: Running) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        await writer.wait_closed()


async def test_each_request_is_answered_for_itself_wherever_it_is_cut(serve: Serve) -> None:
    async with serve(fake_model("m", "--tokens", "4")) as server, connected(server) as client:
        await client.send(ask("first"))
        assert await client.answer() == (200, "first")
        whole = ask("second")
        wrong = []
        for at in range(1, len(whole), 7):
            tag = f"tag-{at}-{'x' * (at % 11)}"
            data = ask(tag)
            await client.send(data[:at], data[at:])
            answered = await client.answer()
            if answered != (200, tag):
                wrong.append((at, answered))

    assert wrong == []


async def test_many_that_come_at_once_are_answered_in_their_order(serve: Serve) -> None:
    tags = [f"tag-{number}" for number in range(12)]
    async with serve(fake_model("m", "--tokens", "4")) as server, connected(server) as client:
        await client.send(ask("first"))
        await client.answer()
        data = b"".join(ask(tag) for tag in tags)
        cut = len(ask(tags[0])) + 30  # the next one has begun
        await client.send(data[:cut], data[cut:])
        answers = [await client.answer() for _ in tags]

    assert answers == [(200, tag) for tag in tags]


async def test_a_head_that_differs_means_what_it_says(serve: Serve) -> None:
    other = HEAD.replace(b"/v1/chat/completions", b"/v1/embeddings")
    async with serve(fake_model("m", "--tokens", "4")) as server, connected(server) as client:
        answers = []
        for data in (ask("a"), ask("b"), ask("c", other), ask("d"), ask("e")):
            await client.send(data)
            answers.append(await client.answer())

    assert answers == [(200, "a"), (200, "b"), (400, "wrong_task"), (200, "d"), (200, "e")]


async def test_a_repeated_head_with_too_long_a_body_is_refused(serve: Serve) -> None:
    async with (
        serve(fake_model("m", "--tokens", "4"), max_body_bytes=1000) as server,
        connected(server) as client,
    ):
        await client.send(ask("a"))
        assert await client.answer() == (200, "a")
        await client.send(ask("b" * 2000))
        refused = await client.answer()

    assert refused == (413, "request_too_large")


async def test_a_client_that_leaves_within_a_repeated_body_leaves_nothing(serve: Serve) -> None:
    async with serve(fake_model("m", "--tokens", "4")) as server:
        async with connected(server) as client:
            await client.send(ask("a"))
            await client.answer()
            await client.send(ask("b")[:-5])
        async with asyncio.timeout(60):
            while server.yard.gateway.active:
                await asyncio.sleep(0.01)
        record = server.yard.gateway.records.newest(1)[0]

    assert (record.status, record.error) == (499, "client_left")


@pytest.mark.parametrize("cut", [0, 9], ids=["in one part", "in two"])
async def test_a_fault_of_ours_on_a_repeated_head_is_told(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    async with serve(fake_model("m", "--tokens", "4")) as server, connected(server) as client:
        await client.send(ask("a"))
        assert await client.answer() == (200, "a")
        monkeypatch.setattr(server.yard.loop, "lease", fail)
        data = ask("b")
        await client.send(data[: len(data) - cut], data[len(data) - cut :])
        told = await client.answer()
        held = server.yard.gateway.active

    assert (told, held) == ((500, "internal_error"), set())
