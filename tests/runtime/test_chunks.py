"""Chunks that are sent on as they came, next to what a parser makes of them."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.written_in_c import compiled

from modelyard.core.errors import BadEngineAnswer, ModelyardError
from modelyard.core.specs import Endpoint
from modelyard.runtime import chunks
from modelyard.runtime.framing import AnswerHead, as_chunk
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
        self.relay = Relay(self._sent_on)
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
        read = chunks.unframed(chunk)
        assert read is not None
        assert not read[1]
        assert read[0].endswith(b"\n\n")
        self.body += read[0]


async def heard(parts: list[bytes], *, takes: list[bool] | None, is_known: bool = False) -> Told:
    """What comes of these reads; without a relay if `takes` is None. `is_known` says that an
    answer with such a head came before."""
    told = Told(takes=takes or [])
    connection = Connection(Upstream("m", 1, Endpoint("127.0.0.1", 1), lambda: None))
    connection.connection_made(Silent())
    if is_known:
        connection.send(Told(takes=[]), b"")
        connection.data_received(HEAD + LAST)
        assert connection.upstream.idle_connection() is connection
        assert connection.upstream.known_stream is not None
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


@pytest.fixture(scope="session")
def in_c(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The functions as they are in C; in Python where they cannot be compiled, as for users."""
    return compiled("modelyard.runtime._chunks", tmp_path_factory.mktemp("c")) or chunks


PIECES = st.lists(
    st.sampled_from([b"\r\n", b"5", b"1a", b"hello", b"\n", b"\n\n", b"0", b";", b" ", b"A", b"_"])
    | CHUNKS
    | st.just(LAST),
    max_size=6,
).map(b"".join)


@given(PIECES)
def test_c_and_python_read_the_same(in_c: Any, data: bytes) -> None:
    assert in_c.whole_events(data) == chunks.whole_events(data)
    assert in_c.unframed(data) == chunks.unframed(data)


@given(
    st.lists(EVENTS, min_size=1, max_size=3),
    st.sampled_from([b'"usage"', b'"usag', b"sage", b'usage"', b'x"usage":', b"g"]),
    st.integers(0, 400),
)
def test_c_and_python_find_the_same_word(
    in_c: Any, events: list[bytes], word: bytes, place: int
) -> None:
    first = events[0][:place] + word + events[0][place:]
    data = b"".join(map(as_chunk, [first, *events[1:]]))

    assert in_c.whole_events(data) == chunks.whole_events(data)
    if b'"usage"' in data:
        assert chunks.whole_events(data) == (0, 0)


@given(st.lists(DATA, min_size=1, max_size=4), st.booleans())
def test_what_is_written_as_chunks_is_read_as_such(parts: list[bytes], is_last: bool) -> None:
    data = b"".join(map(as_chunk, parts)) + (LAST if is_last else b"")

    assert chunks.unframed(data) == (b"".join(parts), is_last)


@given(PIECES)
def test_nothing_is_recognised_that_we_would_not_write(data: bytes) -> None:
    told = chunks.unframed(data)
    if told is None:
        return
    rest = data.removesuffix(LAST) if told[1] else data
    again = b""
    while rest:
        size = int(rest[: rest.index(b"\r\n")], 16)
        chunk = as_chunk(rest[rest.index(b"\r\n") + 2 :][:size])
        assert rest.startswith(chunk)
        assert size > 0
        again, rest = again + chunk, rest[len(chunk) :]
    assert again + (LAST if told[1] else b"") == data


@pytest.mark.parametrize(
    "other",
    [
        b"\r\n", b"0\r\n\r\n\r\n", b"5\r\nhell\r\n", b"5\r\nhello!\r\n", b"5\r\nhello\r",
        b"05\r\nhello\r\n", b"A\r\n0123456789\r\n", b"5;x\r\nhello\r\n", b"+5\r\nhello\r\n",
        b"5\nhello\r\n", b"5\r\nhello\n\n", b"0x5\r\nhello\r\n", b"0_5\r\nhello\r\n",
        b"5\r\nhello\r\n0\r\n", b"5", b"5\r", b"ffffffff\r\nx\r\n", b"0\r\nx: y\r\n\r\n",
        b"fffffff\r\nx\r\n", b"-5\r\nhello\r\n", b" 5\r\nhello\r\n",
    ],
)  # fmt: skip
def test_a_chunk_that_is_written_otherwise_is_left_to_the_parser(in_c: Any, other: bytes) -> None:
    for functions in (chunks, in_c):
        assert functions.unframed(other) is None
        assert functions.whole_events(other) == (0, 0)


@pytest.mark.parametrize("wrong", ["text", None, 5, bytearray(b"5\r\nhello\r\n")])
def test_the_functions_in_c_take_bytes_alone(in_c: Any, wrong: object) -> None:
    if in_c is not chunks:
        for function in (in_c.whole_events, in_c.unframed):
            with pytest.raises(TypeError, match="takes bytes"):
                function(wrong)


@given(
    st.lists(CHUNKS, max_size=8),
    st.lists(st.integers(0, 4000), max_size=6),
    st.lists(st.booleans(), max_size=12),
    st.booleans(),
    st.booleans(),
)
async def test_a_body_is_the_same_whoever_takes_its_chunks(
    framed: list[bytes], places: list[int], takes: list[bool], as_framed: bool, is_known: bool
) -> None:
    """Reads end where chunks end, as engines' writes do, or anywhere."""
    parts = [HEAD, *framed, LAST] if as_framed else cut(HEAD + b"".join(framed) + LAST, places)
    plain = await heard(parts, takes=None)
    told = await heard(parts, takes=takes, is_known=is_known)

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


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize(
    "begun", [b"5", b"5\r", b"5\r\n", b"5\r\nhe", b"5;x\r\n", b"0\r\n", b"0\r\nx: y\r\n"]
)
async def test_what_looks_like_a_chunk_amid_another_is_not_sent_on(
    begun: bytes, is_known: bool
) -> None:
    chunk = as_chunk(b"hello\n\n")
    told = await heard([HEAD, begun, chunk, chunk], takes=[True] * 4, is_known=is_known)
    plain = await heard([HEAD, begun, chunk, chunk], takes=None)

    assert told.relay.events == 0
    assert (told.body, told.is_over) == (plain.body, plain.is_over)
    assert type(told.error) is type(plain.error)


@pytest.mark.parametrize(
    "parts",
    [
        [HEAD + b"5\r\nhello\r\n" + LAST],
        [HEAD, b"5\r\nhello\r\n" + LAST],
        [HEAD, b"5\r\nhe", b"llo\r\n", LAST],
        [HEAD + b"5;x\r\nhello\r\n", LAST],
        [HEAD, b"5\r\nhello\r\n0\r\nx: y\r\n\r\n"],
    ],
)
async def test_a_connection_is_used_again_after_an_answer_whose_head_came_before(
    parts: list[bytes],
) -> None:
    upstream = Upstream("m", 1, Endpoint("127.0.0.1", 1), lambda: None)
    connection = Connection(upstream)
    connection.connection_made(Silent())
    statuses: list[int] = []
    upstream.answered = statuses.append
    for _ in range(3):
        told = Told(takes=[])
        connection.send(told, b"")
        for part in parts:
            connection.data_received(part)
        assert (told.body, told.is_over, told.error) == (b"hello", True, None)
        assert upstream.idle_connection() is connection
    upstream.retire()

    assert statuses == [200] * 3


async def test_what_follows_the_end_of_such_an_answer_is_nobodys() -> None:
    told = await heard([HEAD, b"5\r\nhello\r\n" + LAST + b"HTTP"], takes=None, is_known=True)

    assert (told.body, told.is_over) == (b"hello", True)


async def test_an_answer_whose_head_came_before_and_that_is_no_http_fails() -> None:
    told = await heard([HEAD, b"5\r\nhello\r\n", b"xyz\r\n"], takes=None, is_known=True)

    assert isinstance(told.error, BadEngineAnswer)
    assert told.body == b"hello"


@pytest.mark.parametrize(
    "head",
    [
        HEAD.replace(b"chunked", b"gzip, chunked"),
        HEAD.replace(b"200 OK", b"201 Created"),
        HEAD.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"),
    ],
)
async def test_only_plain_heads_of_streams_are_known_again(head: bytes) -> None:
    upstream = Upstream("m", 1, Endpoint("127.0.0.1", 1), lambda: None)
    connection = Connection(upstream)
    connection.connection_made(Silent())
    connection.send(Told(takes=[]), b"")
    connection.data_received(head)
    connection.close()

    assert upstream.known_stream is None


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
