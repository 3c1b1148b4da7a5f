"""What an answer says of its tokens, read in passing.

Laws of this file:
- Nothing is decoded but the `usage` and `timings` objects themselves: they are found by their key,
  which cannot stand inside a JSON string, whose quotes are escaped.
- Answers may be cut anywhere. What is kept to bridge a cut is bounded.
- A usage event that the client did not ask for is taken out of its stream, and nothing else is.

Sources: OpenAI's usage (`prompt_tokens`, ...; a last chunk with empty `choices` where
`stream_options.include_usage` is set), Anthropic's (`input_tokens` without those read from a cache,
`output_tokens`), llama.cpp's `timings` (tools/server/README.md).
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from modelyard.http.record import Record

BRIDGE: Final = 2048
"""Bytes of an answer's end that are kept to find what is cut in two."""
MAX_HELD: Final = 1024 * 1024
"""Longest unfinished event that is held back; a longer one passes unseen."""

_OBJECT = rb"\s*+:\s*+(\{(?:[^{}]++|\{[^{}]*+\})*+\})"
_USAGE: Final = re.compile(rb'"usage"' + _OBJECT)
_TIMINGS: Final = re.compile(rb'"timings"' + _OBJECT)
_NO_CHOICES: Final = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_NO_USAGE: Final = re.compile(rb',\s*"usage"\s*:\s*null')


class _Details(msgspec.Struct):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    audio_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Timings(msgspec.Struct):
    prompt_n: int | None = None
    predicted_n: int | None = None
    cache_n: int | None = None
    prompt_ms: float | None = None
    predicted_ms: float | None = None


_decode_usage = msgspec.json.Decoder(_Usage).decode
_decode_timings = msgspec.json.Decoder(_Timings).decode


class WholeTap:
    """Reads the usage of an answer that comes as one JSON document."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._tail = b""

    def feed(self, data: bytes) -> bytes:
        """The next part of the answer; returns what is sent on: all of it."""
        window = self._tail + data if self._tail else data
        note_whole(self._record, window)
        self._tail = window[-BRIDGE:]
        return data


class StreamTap:
    """Reads the usage of an event stream, and takes out what the client did not ask for."""

    def __init__(self, record: Record, *, hides: bool) -> None:
        self._record = record
        self._hides = hides
        self._rest = b""
        """The beginning of an event whose end has not come."""

    def feed(self, data: bytes) -> bytes:
        """The next part of the stream; returns what is sent on."""
        if b'"usage"' not in data and not self._rest and data.endswith(b"\n\n"):  # nearly always
            self._record.parts += data.count(b"\n\n")
            return data
        whole = self._rest + data if self._rest else data
        cut = _end_of_events(whole)
        events, rest = whole[:cut], whole[cut:]
        self._record.parts += events.count(b"\ndata:") + events.startswith(b"data:")
        shown = events
        if b'"usage"' in events:  # llama.cpp's timings stand beside it
            shown = self._look_into(events)
            note_timings(self._record, events)
        if not self._hides:
            self._rest = rest if len(rest) <= MAX_HELD else b""
            return data
        if len(rest) > MAX_HELD:
            shown, rest = shown + rest, b""
        self._rest = rest
        return shown

    def end(self) -> bytes:
        """What is still held back when the stream is over."""
        rest, self._rest = self._rest, b""
        if b'"usage"' in rest:
            rest = self._look_into(rest)
        return rest if self._hides else b""

    def _look_into(self, events: bytes) -> bytes:
        """Note what each event says of usage, and leave out those that say nothing else."""
        separator = b"\r\n\r\n" if b"\r\n\r\n" in events else b"\n\n"
        shown = []
        for event in events.split(separator):
            at = event.rfind(b'"usage"')
            if at >= 0:
                told = note_usage(self._record, event, at)
                if told and _NO_CHOICES.search(event):
                    self._record.parts -= 1
                    continue
                if not told and self._hides:
                    event = _NO_USAGE.sub(b"", event)
            shown.append(event)
        return separator.join(shown)


def note_whole(record: Record, data: bytes) -> None:
    """Put what a JSON answer, or the end of one, tells into the record."""
    at = data.rfind(b'"usage"')
    if at >= 0:
        note_usage(record, data, at)
    if data.find(b'"timings"', -BRIDGE) >= 0:
        note_timings(record, data[-BRIDGE:])


def note_usage(record: Record, data: bytes, at: int) -> bool:
    """Put the usage object at `at` into the record; whether there is one that can be read."""
    found = _USAGE.match(data, at)
    if found is None:
        return False
    try:
        said = _decode_usage(found[1])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    _note_prompt(record, said)
    completion = said.output_tokens if said.completion_tokens is None else said.completion_tokens
    if completion is not None:
        record.completion_tokens = completion
    details = said.completion_tokens_details or said.output_tokens_details
    if details is not None:
        record.reasoning_tokens = details.reasoning_tokens or 0
        record.audio_tokens += details.audio_tokens or 0
    return True


def _note_prompt(record: Record, said: _Usage) -> None:
    if said.prompt_tokens is not None:
        record.prompt_tokens = said.prompt_tokens
    elif said.input_tokens is not None:
        aside = (said.cache_read_input_tokens or 0) + (said.cache_creation_input_tokens or 0)
        record.prompt_tokens = said.input_tokens + aside
    elif said.total_tokens is not None:  # rerank answers tell nothing else
        record.prompt_tokens = said.total_tokens
    if said.cache_read_input_tokens is not None:
        record.cached_tokens = said.cache_read_input_tokens
    details = said.prompt_tokens_details or said.input_tokens_details
    if details is not None:
        record.cached_tokens = details.cached_tokens or 0
        record.audio_tokens = details.audio_tokens or 0


def note_timings(record: Record, data: bytes) -> None:
    """Put llama.cpp's own figures into the record; its counts only where no usage was told."""
    found = _TIMINGS.search(data)
    if found is None:
        return
    try:
        said = _decode_timings(found[1])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    record.prompt_ms, record.predicted_ms = said.prompt_ms, said.predicted_ms
    if not record.prompt_tokens and said.prompt_n is not None:
        record.cached_tokens = said.cache_n or 0
        record.prompt_tokens = said.prompt_n + record.cached_tokens
    if not record.completion_tokens and said.predicted_n is not None:
        record.completion_tokens = said.predicted_n


def _end_of_events(data: bytes) -> int:
    """Where the last complete event ends; 0 if none is complete."""
    if data.endswith(b"\n\n"):
        return len(data)
    after_lf, after_crlf = data.rfind(b"\n\n"), data.rfind(b"\r\n\r\n")
    return max(after_lf + 2 if after_lf >= 0 else 0, after_crlf + 4 if after_crlf >= 0 else 0)
