"""Server-sent events, read from bytes that are cut anywhere, and written.

Laws of this file:
- Lines end with LF, CR LF or CR; an event ends with an empty line; `data` lines of one event are
  joined by LF; comments and unknown fields are skipped
  (https://html.spec.whatwg.org/multipage/server-sent-events.html).
- An event that grows past MAX_EVENT_BYTES is an error, not memory.
"""

from __future__ import annotations

from typing import Final

from modelyard.dialects.base import MAX_EVENT_BYTES, UnreadableAnswer

DONE: Final = b"[DONE]"


class EventReader:
    """Collects the data of events from the parts of a stream."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._held = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The data of each event that is complete by now. Raises UnreadableAnswer."""
        whole = self._rest + data
        # A CR at the very end may be the first half of a CR LF: it waits for what follows.
        held_back = b"\r" if whole.endswith(b"\r") else b""
        if held_back:
            whole = whole[:-1]
        *lines, rest = whole.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = rest + held_back
        events = []
        for line in lines:
            if not line:
                if self._data:
                    events.append(b"\n".join(self._data))
                self._data = []
                self._held = 0
            elif line.startswith(b"data:"):
                value = line[5:]
                self._data.append(value[1:] if value.startswith(b" ") else value)
                self._held += len(value)
        if self._held + len(self._rest) > MAX_EVENT_BYTES:
            raise UnreadableAnswer(f"an event of it is larger than {MAX_EVENT_BYTES} bytes")
        return events


def event(data: bytes, name: str | None = None) -> bytes:
    """One event of one line of data."""
    named = b"" if name is None else b"event: %b\n" % name.encode()
    return b"%bdata: %b\n\n" % (named, data)
