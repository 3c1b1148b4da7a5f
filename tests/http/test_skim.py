"""Large bodies, gone through in pieces, next to the decoder that looks at all of them at once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.written_in_c import compiled

from modelyard.core.errors import InvalidRequest
from modelyard.http import openai, skim
from modelyard.http.openai import Peek, peek
from modelyard.http.skim import Skim

NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
SMALL = st.none() | st.booleans() | NUMBERS | st.text(max_size=9)
VALUES = st.recursive(
    SMALL,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=12,
)
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "model": st.text(max_size=12) | st.just('say "a\\"'),
        "messages": VALUES,
        "stream": st.booleans() | st.none(),
        "stream_options": st.fixed_dictionaries({}, optional={"include_usage": st.booleans()}),
        "input": VALUES,
        "temperature": SMALL,
        'odd "key"': VALUES,
    },
)
SPACES = st.sampled_from([(",", ":"), (", ", ": "), (" ,\n ", "\t:\r\n")])


@pytest.fixture(scope="session")
def skip_value(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What goes through values, in C; None where it cannot be compiled, as for users."""
    module = compiled("modelyard.http._skim", tmp_path_factory.mktemp("c"))
    return None if module is None else module.skip_value


@pytest.fixture
def in_pieces(skip_value: Any, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Bodies are gone through by a few bytes; whether they can be."""
    monkeypatch.setattr(skim, "skip_value", skip_value)
    monkeypatch.setattr(skim, "PIECE", 7)
    return skip_value is not None


def gone_through(body: bytes | bytearray) -> Skim:
    one = Skim(body)
    for _ in range(len(body) + 2):
        if not one.go_on():
            return one
    raise AssertionError("it does not end")


def seen_by(body: bytes, one: Skim) -> Peek | str | None:
    try:
        return one.peek()
    except InvalidRequest as error:
        return str(error)


unhurried = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@unhurried
@given(BODIES, SPACES, st.booleans())
def test_pieces_tell_what_the_whole_tells(
    in_pieces: bool, asked: dict[str, Any], separators: tuple[str, str], as_ascii: bool
) -> None:
    text = json.dumps(asked, separators=separators, ensure_ascii=as_ascii)
    body = text.encode("utf-8", "surrogatepass")
    one = gone_through(body)
    told = one.peek()

    plain = in_pieces and bool(asked) and 'odd "key"' not in asked
    assert (told is not None) is plain or told == peek(body)
    if told is not None:
        assert told == peek(body)
        prompt = one.prompt(openai.PREFIX_BYTES)
        named = [asked[key] for key in ("messages", "prompt", "input") if key in asked]
        assert (prompt is None) is (not named)


@unhurried
@given(BODIES, st.integers(0, 400), st.binary(max_size=3))
def test_what_is_no_json_is_never_taken_for_another_request(
    in_pieces: bool, asked: dict[str, Any], place: int, damage: bytes
) -> None:
    """What the engine gets is the body itself: it must not hear of one model and we of another."""
    body = json.dumps(asked).encode()
    body = body[:place] + damage + body[place + 1 :]
    told = seen_by(body, gone_through(body))
    try:
        whole: Peek | None = peek(body)
    except InvalidRequest:
        whole = None
    if isinstance(told, Peek) and whole is not None:
        assert told == whole


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"x", b"{", b"{}", b'{"model"', b'{"model":', b'{"model":"a', b'{"model":"a\\',
        b'{"a":1', b'{"model":"a"b"}',
        b'{"model":"a"} x', b'{"model":"a"]', b'{"model":"a",}', b'{"mod\\u0065l":"a"}',
        b'{"a":[1,2,3', b'{"a":"\\\\', b'{"a":"' + b"\\" * 9,
        b'{"a":' + b"[" * 2000 + b"]" * 2000 + b"}",
        b'{"model":"a"' + b" " * 2000 + b"}", b"{" + b" " * 2000 + b'"model":"a"}',
        b"{" + b'"a":1,' * 1500 + b'"model":"a"}', b'{"model":"' + b"a" * 70_000 + b'"}',
    ],
)  # fmt: skip
def test_what_is_unusual_is_left_to_the_decoder_of_all(in_pieces: bool, body: bytes) -> None:
    assert gone_through(bytearray(body)).peek() is None


@pytest.mark.parametrize("piece", [7, 1024 * 1024])
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_what_is_too_deep_is_left_to_the_decoder_of_all(
    in_pieces: bool, monkeypatch: pytest.MonkeyPatch, piece: int, opening: bytes, closing: bytes
) -> None:
    monkeypatch.setattr(skim, "PIECE", piece)
    for depth, is_seen in ((skim.MOST_DEPTH, in_pieces), (skim.MOST_DEPTH + 1, False)):
        body = b'{"model":"a","x":' + opening * depth + b"1" + closing * depth + b"}"

        assert (gone_through(body).peek() is not None) is is_seen


@pytest.mark.parametrize("member", [b'"model":5', b'"stream":"x"', b'"model":'])
def test_what_the_decoder_refuses_is_refused(in_pieces: bool, member: bytes) -> None:
    one = gone_through(b'{"x":[1],' + member + b"}")
    if in_pieces:
        with pytest.raises(InvalidRequest):
            one.peek()


def test_the_last_of_two_equal_keys_counts(in_pieces: bool) -> None:
    body = b'{"model":"a","model":"b"}'

    assert gone_through(body).peek() == (peek(body) if in_pieces else None)


def test_a_prompt_begins_where_its_value_does(in_pieces: bool) -> None:
    body = b'{"model":"a", "messages":   [1, 2, 3], "input": "x"}'
    one = gone_through(body)

    if in_pieces:
        assert one.prompt(4) == b"[1, "
        assert one.prompt(100) == b"[1, 2, 3]"


@pytest.mark.parametrize("place", [(-1, 1, 0), (9, 1, 0), (0, -1, 0), (0, 1, -1)])
def test_c_refuses_what_is_no_place(skip_value: Any, place: tuple[int, int, int]) -> None:
    if skip_value is not None:
        with pytest.raises(ValueError, match="no place"):
            skip_value(b"12345678", *place, False)
