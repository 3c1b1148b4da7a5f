"""Chunks of a body that are written, to the byte, as we write them ourselves.

Whatever is written otherwise is left to a parser: that is never wrong, only slower. `_chunks.c`
does the same; `framing.py` takes that where there was a compiler.
"""

from __future__ import annotations

from typing import Final

LAST: Final = b"0\r\n\r\n"
"""How a body in chunks ends."""
USAGE: Final = b'"usage"'
"""What does not pass unseen."""
MOST_DIGITS: Final = 7
"""Hexadecimal digits of a chunk's size, at most."""


def _data_in(data: bytes, at: int) -> tuple[int, int]:
    """Where the data of the chunk at `at` begins, and how long it is; 0, 0 if that is none."""
    begin = data.find(b"\r\n", at, at + MOST_DIGITS + 2) + 2
    try:
        size = int(data[at : begin - 2], 16) if begin > 1 else 0
    except ValueError:
        return 0, 0
    end = begin + size
    is_ours = size > 0 and data[at:begin] == b"%x\r\n" % size and data[end : end + 2] == b"\r\n"
    return (begin, size) if is_ours else (0, 0)


def whole_events(data: bytes) -> tuple[int, int]:
    """How many events, and bytes of them, `data` holds, if it is whole chunks of ours, of which
    each ends with an event and none tells of usage; else 0, 0."""
    if data[-4:] != b"\n\n\r\n" or data.find(USAGE) >= 0:
        return 0, 0
    begin = data.find(b"\r\n") + 2
    size = len(data) - begin - 2
    if size > 2 and data[:begin] == b"%x\r\n" % size:  # one chunk, as it mostly is
        return data.count(b"\n\n", begin), size
    at = events = all_of_them = 0
    while at < len(data):
        begin, size = _data_in(data, at)
        at = begin + size + 2
        if size < 3 or data[at - 4 : at - 2] != b"\n\n":
            return 0, 0
        events += data.count(b"\n\n", begin, at)
        all_of_them += size
    return events, all_of_them


def unframed(data: bytes) -> tuple[bytes, bool] | None:
    """The body in `data`, and whether it ends there, if that is whole chunks of ours, and perhaps
    the end of all; else None."""
    parts: list[bytes] = []
    at = 0
    while at < len(data):
        if data[at:] == LAST:
            return b"".join(parts), True
        begin, size = _data_in(data, at)
        if not size:
            return None
        at = begin + size + 2
        parts.append(data[begin : at - 2])
    return b"".join(parts), False
