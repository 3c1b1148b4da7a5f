"""Chunks that are sent on as they came, next to what a parser makes of them."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.core.errors import ModelyardError
from modelyard.core.specs import Endpoint
from modelyard.runtime.framing import MOST_OF_A_CHUNK, AnswerHead, as_chunk, chunk_data_at
from modelyard.runtime.relay import Relay
from modelyard.runtime.upstream import Connection, Upstream

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"
DATA = st.binary(min_size=1, max_size=40) | st.binary(min_size=250, max_size=300)
EVENTS = st.lists(DATA, min_size=1, max_size=3).map(lambda each: b"\n\n".join(each) + b"\n\n")
CHUNKS = st.one_of(
    EVENTS.map(as_chunk),
    DATA.map(as_chunk),
    DATA.map(lambda data: b"%X;x=1\r\n%b\r\n" % (len(data), data)),  # an extension
    DATA.map(lambda data: b"0%x\r\n%b\r\n" % (len(data), data)),  # a zero before the size
)


class Silent(asyncio.Transport):
    """A transport that nobody reads."""

    def write(self, data: Any) -> None:
        """Nobody gets it."""

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        """There is nothing to close."""


class Told:
    """What a receiver has been told, whichever way it came."""

    def __init__(self, *, takes: list[bool]) -> None:
        self.body = b""
        self.is_over = False
        self.error: ModelyardError | None = None
        self.relay = Relay(self._sent_on, b'"usage"')
        self.takes = takes
        """By read, whether the relay may take it."""

    def answer_begins(self, head: AnswerHead, length: int | None) -> None:
        """The head is always the same."""

    def answer_continues(self, body: bytes, complete: bool) -> None:
        self.body += body
        self.is_over = complete

    def answer_fails(self, error: ModelyardError) -> None:
        self.error = error

    def _sent_on(self, chunk: bytes) -> None:
        data = chunk[chunk.index(b"\r\n") + 2 : -2]
        assert chunk == as_chunk(data)
        assert data.endswith(b"\n\n")
        self.body += data


async def heard(parts: list[bytes], *, takes: list[bool] | None) -> Told:
    """What comes of these reads; without a relay if `takes` is None."""
    told = Told(takes=takes or [])
    connection = Connection(Upstream("m", 1, Endpoint("127.0.0.1", 1), lambda: None))
    connection.connection_made(Silent())
    connection.send(told, b"")
    if takes is not None:
        connection.relay = told.relay
    for part in parts:
        told.relay.is_held = not (told.takes and told.takes.pop())
        connection.data_received(part)
    connection.upstream.retire()
    return told


def cut(data: bytes, places: list[int]) -> list[bytes]:
    at = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [part for a, b in itertools.pairwise(at) if (part := data[a:b])]


@given(st.binary(min_size=1, max_size=MOST_OF_A_CHUNK + 40))
def test_what_is_written_as_a_chunk_is_recognised_as_one(data: bytes) -> None:
    chunk = as_chunk(data)
    at = chunk_data_at(chunk)

    assert (chunk[at:-2] == data) if len(chunk) <= MOST_OF_A_CHUNK else at == 0


@given(st.lists(st.sampled_from([b"\r\n", b"5", b"1a", b"hello", b"\n", b"0", b";", b" ", b"A"])))
def test_nothing_is_recognised_that_we_would_not_write(parts: list[bytes]) -> None:
    data = b"".join(parts)
    at = chunk_data_at(data)

    assert at == 0 or (data == as_chunk(data[at:-2]) and len(data) > at + 2)


@pytest.mark.parametrize(
    "other",
    [
        b"", b"\r\n", LAST, b"0\r\n\r\n\r\n", b"5\r\nhell\r\n", b"5\r\nhello!\r\n", b"5\r\nhello\r",
        b"05\r\nhello\r\n", b"A\r\n0123456789\r\n", b"5;x\r\nhello\r\n", b"+5\r\nhello\r\n",
        b"5\nhello\r\n", b"5\r\nhello\n\n", b"1\r\na\r\n1\r\nb\r\n", b"0x5\r\nhello\r\n",
    ],
)  # fmt: skip
def test_a_chunk_that_is_written_otherwise_is_left_to_the_parser(other: bytes) -> None:
    assert chunk_data_at(other) == 0


@given(
    st.lists(CHUNKS, max_size=8),
    st.lists(st.integers(0, 4000), max_size=6),
    st.lists(st.booleans(), max_size=12),
    st.booleans(),
)
async def test_a_body_is_the_same_whoever_takes_its_chunks(
    chunks: list[bytes], places: list[int], takes: list[bool], as_framed: bool
) -> None:
    """Reads end where chunks end, as engines' writes do, or anywhere."""
    parts = [HEAD, *chunks, LAST] if as_framed else cut(HEAD + b"".join(chunks) + LAST, places)
    plain = await heard(parts, takes=None)
    told = await heard(parts, takes=takes)

    assert (told.body, told.is_over, told.error) == (plain.body, True, None)


async def test_a_chunk_for_each_read_is_sent_on_and_never_parsed() -> None:
    data = [b"data: %d\n\n" % number for number in range(20)]
    told = await heard([HEAD, *map(as_chunk, data), LAST], takes=[True] * 22)

    assert (told.relay.events, told.relay.size) == (20, len(b"".join(data)))
    assert told.is_over


@given(EVENTS)
async def test_events_are_counted_that_are_sent_on(events: bytes) -> None:
    told = await heard([HEAD, as_chunk(events)], takes=[True] * 2)

    assert told.relay.events == events.count(b"\n\n")


@pytest.mark.parametrize("data", [b'data: {"usage": 1}\n\n', b"data: half", b"data: x\n", b"\n"])
async def test_what_concerns_us_goes_the_usual_way(data: bytes) -> None:
    told = await heard([HEAD, as_chunk(data)], takes=[True] * 2)

    assert (told.relay.events, told.body) == (0, data)


@pytest.mark.parametrize("begun", [b"5", b"5\r", b"5\r\nhe", b"0\r\n", b"0\r\nx: y\r\n"])
async def test_what_looks_like_a_chunk_amid_another_is_not_sent_on(
    begun: bytes,
) -> None:
    chunk = as_chunk(b"hello\n\n")
    told = await heard([HEAD, begun, chunk, chunk], takes=[True] * 4)
    plain = await heard([HEAD, begun, chunk, chunk], takes=None)

    assert told.relay.events == 0
    assert (told.body, told.is_over) == (plain.body, plain.is_over)
    assert type(told.error) is type(plain.error)


async def test_no_relay_outlives_its_answer() -> None:
    upstream = Upstream("m", 1, Endpoint("127.0.0.1", 1), lambda: None)
    connection = Connection(upstream)
    connection.connection_made(Silent())
    first, second = Told(takes=[True] * 4), Told(takes=[])
    connection.send(first, b"")
    connection.relay = first.relay
    connection.data_received(HEAD + LAST)
    assert upstream.idle_connection() is connection
    connection.send(second, b"")
    connection.data_received(HEAD)
    connection.data_received(as_chunk(b"for the second alone\n\n"))
    connection.data_received(LAST)
    upstream.retire()

    assert (first.body, first.relay.events) == (b"", 0)
    assert (second.body, second.is_over) == (b"for the second alone\n\n", True)
