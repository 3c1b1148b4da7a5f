"""Usage is read from answers that are cut anywhere, and hidden from whoever did not ask."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.http.record import Record
from modelyard.http.usage import MAX_HELD, StreamTap, WholeTap

USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 5},
    "completion_tokens_details": {"reasoning_tokens": 3},
}
CHUNKS = [
    {"choices": [{"index": 0, "delta": {"content": 'say "usage": {"prompt_tokens": 99}'}}]},
    {"choices": [{"index": 0, "delta": {"content": "\n\ndata: x"}}], "usage": None},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
]
LAST = {"choices": [], "usage": USAGE, "timings": {"prompt_ms": 1.5, "predicted_ms": 20.25}}


def record() -> Record:
    return Record("req-1", 0.0, "/v1/chat/completions")


def events(chunks: list[object], end: str = "\n\n") -> bytes:
    lines = [f"data: {json.dumps(chunk)}{end}" for chunk in chunks]
    return ("".join(lines) + f"data: [DONE]{end}").encode()


def fed(tap: StreamTap, data: bytes, cuts: list[int]) -> bytes:
    bounds = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    parts = [data[a:b] for a, b in itertools.pairwise(bounds)]
    return b"".join(tap.feed(part) for part in parts) + tap.end()


@given(st.lists(st.integers(0, 10_000), max_size=12), st.sampled_from(["\n\n", "\r\n\r\n"]))
def test_a_usage_event_that_nobody_asked_for_is_taken_out_wherever_it_is_cut(
    cuts: list[int], end: str
) -> None:
    seen = record()
    shown = fed(StreamTap(seen, hides=True), events([*CHUNKS, LAST], end), cuts)

    expected = events(CHUNKS, end).replace(b', "usage": null', b"")
    assert shown == expected
    assert (seen.prompt_tokens, seen.completion_tokens) == (12, 7)
    assert (seen.cached_tokens, seen.reasoning_tokens) == (5, 3)
    assert (seen.prompt_ms, seen.predicted_ms) == (1.5, 20.25)


@given(st.lists(st.integers(0, 10_000), max_size=12))
def test_a_stream_whose_client_asked_passes_untouched(cuts: list[int]) -> None:
    seen = record()
    data = events([*CHUNKS, LAST])

    assert fed(StreamTap(seen, hides=False), data, cuts) == data
    assert (seen.prompt_tokens, seen.completion_tokens) == (12, 7)


def test_parts_count_what_a_cut_stream_has_sent() -> None:
    seen = record()
    tap = StreamTap(seen, hides=True)
    tap.feed(events(CHUNKS[:2])[: -len("data: [DONE]\n\n")])

    assert tap.events == 2
    assert not seen.completion_tokens


def test_an_event_without_end_is_not_kept_without_bound() -> None:
    tap = StreamTap(record(), hides=True)
    sent = sum(len(tap.feed(b"data: " + b"x" * 65536)) for _ in range(64))

    assert sent >= 64 * 65536 - MAX_HELD - 65536


@given(st.lists(st.integers(0, 5_000), max_size=6), st.booleans())
def test_the_usage_of_a_whole_answer_is_found_wherever_it_is_cut(
    cuts: list[int], first: bool
) -> None:
    told = {"usage": USAGE} if first else {}
    answer = {**told, "data": [{"embedding": [0.25] * 300}], "usage": USAGE}
    data = json.dumps(answer).encode()
    seen = record()
    tap = WholeTap(seen)
    bounds = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]

    for begin, end in itertools.pairwise(bounds):
        tap.feed(data[begin:end])

    assert (seen.prompt_tokens, seen.completion_tokens) == (12, 7)


@pytest.mark.parametrize(
    ("usage", "prompt", "cached"),
    [
        ({"input_tokens": 4, "cache_read_input_tokens": 6, "output_tokens": 1}, 10, 6),
        ({"input_tokens": 4, "input_tokens_details": {"cached_tokens": 2}}, 4, 2),
        ({"total_tokens": 31}, 31, 0),
        ({"prompt_tokens": None, "completion_tokens": None}, 0, 0),
        ({"prompt_tokens": "many"}, 0, 0),
    ],
)
def test_other_dialects_count_their_own_way(
    usage: dict[str, object], prompt: int, cached: int
) -> None:
    seen = record()
    WholeTap(seen).feed(json.dumps({"usage": usage}).encode())

    assert (seen.prompt_tokens, seen.cached_tokens) == (prompt, cached)


@pytest.mark.parametrize(
    "data",
    [
        b'"usage": {',
        b'"usage": {{{{',
        b'"usage"',
        b'"usage": {"prompt_tokens": 1e999}',
        b"\xff" * 99,
    ],
)
def test_what_is_no_usage_is_no_harm(data: bytes) -> None:
    seen = record()

    WholeTap(seen).feed(data)
    assert seen.prompt_tokens == 0
