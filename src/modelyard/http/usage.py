"""What an answer says of its tokens, read in passing.

Laws of this file:
- Answers may be cut anywhere. What is kept to bridge a cut is bounded.
- A usage event that the client did not ask for is taken out of its stream, and nothing else is.

Source: OpenAI's streams (a last chunk with empty `choices` where `stream_options.include_usage` is
set).
"""

from __future__ import annotations

import re
from typing import Final

from modelyard.http.counts import BRIDGE, note_timings, note_usage, note_whole
from modelyard.http.record import Record
from modelyard.runtime.chunks import USAGE

MAX_HELD: Final = 1024 * 1024
"""Longest unfinished event that is held back; a longer one passes unseen."""

_NO_CHOICES: Final = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_NO_USAGE: Final = re.compile(rb',\s*"usage"\s*:\s*null')


class WholeTap:
    """Reads the usage of an answer that comes as one JSON document."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._tail = b""

    def feed(self, data: bytes) -> None:
        """The next part of the answer."""
        window = self._tail + data if self._tail else data
        note_whole(self._record, window)
        self._tail = window[-BRIDGE:]


class StreamTap:
    """Reads the usage of an event stream, and takes out what the client did not ask for."""

    def __init__(self, record: Record, *, hides: bool) -> None:
        self._record = record
        self._hides = hides
        self._rest = b""
        """The beginning of an event whose end has not come."""
        self.events = 0
        """Those that have come, but for one that tells usage and nothing else."""

    @property
    def holds(self) -> bool:
        """Whether an event has begun and not ended."""
        return bool(self._rest)

    def feed(self, data: bytes) -> bytes:
        """The next part of the stream; returns what is sent on."""
        if data.find(USAGE) < 0 and not self._rest and data.endswith(b"\n\n"):
            self.events += data.count(b"\n\n")
            return data
        whole = self._rest + data if self._rest else data
        cut = _end_of_events(whole)
        events, rest = whole[:cut], whole[cut:]
        self.events += events.count(b"\ndata:") + events.startswith(b"data:")
        shown = events
        if USAGE in events:  # llama.cpp's timings stand beside it
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
        if USAGE in rest:
            rest = self._look_into(rest)
        return rest if self._hides else b""

    def _look_into(self, events: bytes) -> bytes:
        """Note what each event says of usage, and leave out those that say nothing else."""
        separator = b"\r\n\r\n" if b"\r\n\r\n" in events else b"\n\n"
        shown = []
        for event in events.split(separator):
            at = event.rfind(USAGE)
            if at >= 0:
                told = note_usage(self._record, event, at)
                if told and _NO_CHOICES.search(event):
                    self.events -= 1
                    continue
                if not told and self._hides:
                    event = _NO_USAGE.sub(b"", event)
            shown.append(event)
        return separator.join(shown)


def _end_of_events(data: bytes) -> int:
    """Where the last complete event ends; 0 if none is complete."""
    if data.endswith(b"\n\n"):
        return len(data)
    after_lf, after_crlf = data.rfind(b"\n\n"), data.rfind(b"\r\n\r\n")
    return max(after_lf + 2 if after_lf >= 0 else 0, after_crlf + 4 if after_crlf >= 0 else 0)
