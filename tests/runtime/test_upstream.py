"""Connections to an engine, against a server that answers exactly what a test says."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.core.errors import BadEngineAnswer, EngineDied, ModelyardError
from modelyard.core.specs import Endpoint
from modelyard.runtime.framing import AnswerHead
from modelyard.runtime.upstream import Headers, Lease, Upstream


@dataclass
class Told:
    """A receiver that notes what it is told."""

    status: int = 0
    headers: Headers = field(default_factory=list)
    length: int | None = None
    body: bytes = b""
    error: ModelyardError | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def answer_begins(self, head: AnswerHead, length: int | None) -> None:
        self.status, self.headers, self.length = head.status, head.headers, length

    def answer_continues(self, body: bytes, complete: bool) -> None:
        self.body += body
        if complete:
            self.over.set()

    def answer_fails(self, error: ModelyardError) -> None:
        self.error = error
        self.over.set()


@asynccontextmanager
async def engine(*parts: bytes, close: bool = False) -> AsyncIterator[tuple[Upstream, list[int]]]:
    """An engine that answers every request with these parts, and the breaks it was blamed for."""
    broken: list[int] = []

    handlers: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.current_task())  # type: ignore[arg-type]  # a handler is a task
        with contextlib.suppress(ConnectionError):
            while await reader.read(65536):
                for part in parts:
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0)
                if close:
                    break
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    upstream = Upstream("m", 1, Endpoint("127.0.0.1", port), lambda: broken.append(1))
    try:
        yield upstream, broken
    finally:
        upstream.close()
        server.close()
        if handlers:
            await asyncio.wait(handlers)
        await server.wait_closed()


async def ask(upstream: Upstream) -> Told:
    told = Told()
    connection = upstream.idle_connection() or await upstream.connect()
    connection.send(told, b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
    async with asyncio.timeout(60):
        await told.over.wait()
    return told


OK = b"HTTP/1.1 200 OK\r\n"


async def test_an_answer_with_a_length_ends_at_its_length() -> None:
    async with engine(OK + b"content-length: 5\r\n\r\nhello") as (upstream, broken):
        told = await ask(upstream)

    assert (told.status, told.length, told.body, told.error) == (200, 5, b"hello", None)
    assert broken == []


async def test_an_answer_in_chunks_comes_without_their_framing() -> None:
    chunked = OK + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    async with engine(chunked) as (upstream, _):
        told = await ask(upstream)

    assert (told.length, told.body) == (None, b"abcde")


async def test_an_answer_without_framing_ends_with_the_connection() -> None:
    async with engine(OK + b"\r\nall of it", close=True) as (upstream, broken):
        told = await ask(upstream)

    assert (told.body, told.error) == (b"all of it", None)
    assert broken == []


async def test_an_interim_answer_is_passed_over() -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    async with engine(interim + OK + b"content-length: 2\r\n\r\nok") as (upstream, _):
        told = await ask(upstream)

    assert (told.status, told.body) == (200, b"ok")


async def test_a_connection_is_used_again_while_it_is_fresh() -> None:
    async with engine(OK + b"content-length: 0\r\n\r\n") as (upstream, _):
        await ask(upstream)
        first = upstream.idle_connection()
        assert first is not None
        upstream.finished(first)
        await ask(upstream)
        second = upstream.idle_connection()

        assert first is second


KNOWN = OK + b"content-type: text/plain\r\ncontent-length: 11\r\n\r\nhello world"


@pytest.mark.parametrize("at", range(1, len(KNOWN), 9))
async def test_an_answer_that_begins_as_one_before_is_read_wherever_it_is_cut(at: int) -> None:
    async with engine(KNOWN) as (upstream, _):
        await ask(upstream)
        known = upstream.known
        connection = upstream.idle_connection()
        assert known is not None
        assert connection is not None
        again, told = KNOWN.replace(b": 11", b": 5")[: -len(b" world")], Told()
        connection.send(told, b"")
        connection.data_received(again[:at])
        connection.data_received(again[at:])

    assert (told.status, told.headers[0], told.length) == (200, (b"content-type", b"text/plain"), 5)
    assert (told.body, told.error) == (b"hello", None)


async def test_more_than_was_asked_for_ends_a_connection_whose_answers_are_known() -> None:
    async with engine(KNOWN, KNOWN) as (upstream, broken):
        for _ in range(3):
            told = await ask(upstream)
            assert (told.body, told.error) == (b"hello world", None)

    assert broken == []


async def test_an_engine_that_dies_within_a_known_answer_has_died() -> None:
    async with engine(KNOWN) as (upstream, broken):
        await ask(upstream)
        connection = upstream.idle_connection()
        assert connection is not None
        told = Told()
        connection.send(told, b"")
        connection.data_received(KNOWN[:-3])
        connection.connection_lost(None)

    assert (told.body, broken) == (b"hello wo", [1])
    assert isinstance(told.error, EngineDied)


async def test_a_connection_that_is_no_longer_fresh_is_closed() -> None:
    async with engine(OK + b"content-length: 0\r\n\r\n") as (upstream, _):
        await ask(upstream)
        connection = upstream.idle_connection()
        assert connection is not None
        upstream.finished(connection)
        connection.idle_since -= 10

        assert upstream.idle_connection() is None
        assert not connection.is_open


async def test_a_connection_the_engine_wants_to_close_is_not_pooled() -> None:
    answer = OK + b"content-length: 0\r\nconnection: close\r\n\r\n"
    async with engine(answer) as (upstream, _):
        await ask(upstream)

        assert upstream.idle_connection() is None


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (OK + b"content-length: 9\r\n\r\nshort", EngineDied),
        (OK + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", EngineDied),
        (b"", EngineDied),
        (b"SSH-2.0-OpenSSH_9\r\n", BadEngineAnswer),
        (b"HTTP/1.1 999 Odd\r\ncontent-length: 0\r\n\r\n", BadEngineAnswer),
        (OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n", BadEngineAnswer),
        (OK + b"".join(b"x-%d: y\r\n" % n for n in range(200)) + b"\r\n", BadEngineAnswer),
        (OK + b"x: " + b"y" * 100_000 + b"\r\n\r\n", BadEngineAnswer),
    ],
)
async def test_an_engine_that_breaks_off_or_talks_nonsense_is_blamed(
    answer: bytes, kind: type[ModelyardError]
) -> None:
    async with engine(answer, close=True) as (upstream, broken):
        told = await ask(upstream)

    assert isinstance(told.error, kind)
    assert broken == [1]


async def test_bytes_that_nobody_asked_for_close_the_connection() -> None:
    twice = OK + b"content-length: 0\r\n\r\n" + OK + b"content-length: 0\r\n\r\n"
    async with engine(twice) as (upstream, _):
        told = await ask(upstream)
        await asyncio.sleep(0.05)
        again = await ask(upstream)

    assert told.status == 200
    assert again.error is None


async def test_a_lease_is_given_back_once() -> None:
    returned: list[bool] = []
    upstream = Upstream("m", 1, Endpoint("127.0.0.1", 1), lambda: None)
    lease = Lease(upstream, lambda _, served: returned.append(served))

    lease.close(served=True)
    lease.close(served=False)

    assert returned == [True]


async def test_draining_waits_for_the_last_lease() -> None:
    upstream = Upstream("m", 1, Endpoint("127.0.0.1", 1), lambda: None)
    upstream.leases = 2
    drained = asyncio.ensure_future(upstream.drained())

    upstream.lease_closed()
    await asyncio.sleep(0)
    assert not drained.done()
    upstream.lease_closed()
    await asyncio.wait_for(drained, 60)


BODY = b'data: {"x": "\xe4\xbd\xa0\xe5\xa5\xbd"}\n\ndata: [DONE]\n\n'
WHOLE = OK + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(1, len(WHOLE) - 1), max_size=6, unique=True).map(sorted))
def test_an_answer_is_the_same_wherever_the_network_cuts_it(cuts: list[int]) -> None:
    edges = [0, *cuts, len(WHOLE)]
    parts = [WHOLE[a:b] for a, b in itertools.pairwise(edges)]

    async def body() -> bytes:
        async with engine(*parts) as (upstream, _):
            return (await ask(upstream)).body

    assert asyncio.run(body()) == BODY
