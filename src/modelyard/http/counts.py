"""What an engine tells of tokens and times, put into a request's record.

Laws of this file:
- Nothing is decoded but the `usage` and `timings` objects themselves: they are found by their key,
  which cannot stand inside a JSON string, whose quotes are escaped.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from modelyard.http.record import Record
from modelyard.http.told import Usage, decode_timings, decode_usage

BRIDGE: Final = 2048
"""Bytes of an answer's end in which `timings` are looked for."""

_OBJECT = rb"\s*+:\s*+(\{(?:[^{}]++|\{[^{}]*+\})*+\})"
_USAGE: Final = re.compile(rb'"usage"' + _OBJECT)
_TIMINGS: Final = re.compile(rb'"timings"' + _OBJECT)


def note_whole(record: Record, data: bytes) -> None:
    """Put what a JSON answer, or the end of one, tells into the record."""
    at = data.rfind(b'"usage"')
    if at >= 0:
        note_usage(record, data, at)
    if data.find(b'"timings"', -BRIDGE) >= 0:
        note_timings(record, data[-BRIDGE:])


def note_usage(record: Record, data: bytes, at: int) -> bool:
    """Put the usage object at `at` into the record; whether there is one that can be read."""
    told = _flat_object(data, at + len(b'"usage"'))
    if not told:
        found = _USAGE.match(data, at)
        if found is None:
            return False
        told = found[1]
    try:
        said = decode_usage(told)
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


def _flat_object(data: bytes, at: int) -> bytes:
    """The object after a key that ends at `at`, if it holds no other, as most do; else empty."""
    begin, end = data.find(b"{", at), data.find(b"}", at)
    if begin < 0 or end < begin:
        return b""
    if data[at:begin].strip() != b":" or data.find(b"{", begin + 1, end) >= 0:
        return b""
    return data[begin : end + 1]


def _note_prompt(record: Record, said: Usage) -> None:
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
        said = decode_timings(found[1])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    record.prompt_ms, record.predicted_ms = said.prompt_ms, said.predicted_ms
    if not record.prompt_tokens and said.prompt_n is not None:
        record.cached_tokens = said.cache_n or 0
        record.prompt_tokens = said.prompt_n + record.cached_tokens
    if not record.completion_tokens and said.predicted_n is not None:
        record.completion_tokens = said.predicted_n
