"""Heads that are recognised without a parser, next to what a parser makes of them."""

from __future__ import annotations

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.runtime.framing import MAX_LENGTH_DIGITS, Template, as_lines

LINES = [(b"host", b"h"), (b"Content-Length", b"5"), (b"x-a", b"b")]
HEAD = b"POST /v1/x HTTP/1.1\r\n" + as_lines(LINES) + b"\r\n"


class Heard:
    """What httptools reads."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        self.body += body


def parsed(data: bytes) -> Heard:
    heard = Heard()
    httptools.HttpRequestParser(heard).feed_data(data)
    return heard


def test_a_head_is_known_again_whatever_length_it_announces() -> None:
    template = Template.of(HEAD + b"12345", 3)
    assert template is not None
    again = HEAD.replace(b": 5", b": 1234")

    assert template.match(HEAD + b"54321") == (len(HEAD), 5)
    assert template.match(again + b"abc") == (len(again), 1234)


@pytest.mark.parametrize(
    "other",
    [
        HEAD[:-1],
        HEAD.replace(b"x-a", b"X-a"),
        HEAD.replace(b": 5", b":  5"),
        HEAD.replace(b": 5", b": "),
        HEAD.replace(b": 5", b": +5"),
        HEAD.replace(b": 5", b": 5, 5"),
        HEAD.replace(b": 5", b": 0x5"),
        HEAD.replace(b": 5", b": 5_0"),
        HEAD.replace(b": 5", b": \xd9\xa5"),
        HEAD.replace(b": 5", b": " + b"5" * (MAX_LENGTH_DIGITS + 1)),
        HEAD.replace(b"x-a: b\r\n", b"x-a: b\r\nx-c: d\r\n"),
        b"\r\n" + HEAD,
        b"",
    ],
)
def test_what_is_written_otherwise_is_left_to_the_parser(other: bytes) -> None:
    template = Template.of(HEAD, 3)

    assert template is not None
    assert template.match(other + b"12345") is None


@pytest.mark.parametrize(
    ("head", "lines"),
    [
        (as_lines([(b"transfer-encoding", b"chunked")]), 1),
        (as_lines([(b"content-length", b"5"), (b"content-length", b"5")]), 2),
        (b"content-length: 5\nx: y\r\n", 2),
        (b"x: y\n\r\ncontent-length: 5\r\n", 2),
        (as_lines(LINES), 2),
        (b"x: y\r\n content-length: 5\r\n", 1),
    ],
    ids=["chunked", "two lengths", "bare LF", "LF before", "another number of lines", "folded"],
)
def test_an_unusual_head_is_not_remembered(head: bytes, lines: int) -> None:
    assert Template.of(b"POST / HTTP/1.1\r\n" + head + b"\r\n", lines) is None


def test_a_head_that_has_not_come_to_its_end_is_not_remembered() -> None:
    assert Template.of(HEAD[:-2], 3) is None


NAMES = st.sampled_from([b"x-a", b"Content-Type", b"accept", b"x-content-length"])
VALUES = st.text("abc:;= 0123456789", max_size=12).map(lambda text: text.strip().encode())


@given(
    before=st.lists(st.tuples(NAMES, VALUES), max_size=3),
    after=st.lists(st.tuples(NAMES, VALUES), max_size=3),
    first=st.integers(0, 200),
    second=st.integers(0, 200),
)
def test_what_is_known_again_is_what_the_parser_would_have_read(
    before: list[tuple[bytes, bytes]], after: list[tuple[bytes, bytes]], first: int, second: int
) -> None:
    def request(length: int) -> bytes:
        lines = [*before, (b"content-length", b"%d" % length), *after]
        return b"POST / HTTP/1.1\r\n" + as_lines(lines) + b"\r\n" + b"x" * length

    template = Template.of(request(first), len(before) + len(after) + 1)
    again = request(second)
    heard = parsed(again)
    assert template is not None
    found = template.match(again)

    assert found is not None
    at, length = found
    assert (again[at:], length) == (heard.body, int(dict(heard.headers)[b"content-length"]))
