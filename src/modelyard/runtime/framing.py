"""How heads and chunks are written, and those that are recognised by that, without a parser.

Laws of this file:
- What repeats bytes that a parser has understood means the same as they did. Nothing is recognised
  that no parser has seen, but for the digits of a length.
- Whatever is not recognised is left to a parser: that is never wrong, only slower.
- A chunk is recognised only if it is written, to the byte, as we would write it ourselves
  (`chunks.py`, or the same in C).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

try:
    from modelyard.runtime._chunks import unframed as unframed
    from modelyard.runtime._chunks import whole_events as whole_events
except ImportError:  # nothing was compiled
    from modelyard.runtime.chunks import unframed as unframed
    from modelyard.runtime.chunks import whole_events as whole_events

MAX_LENGTH_DIGITS: Final = 12
END: Final = b"\r\n\r\n"
ZERO: Final = 48
NINE: Final = 57
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*+([0-9]++)[ \t]*+(?=\r\n)", re.IGNORECASE)


def as_chunk(data: bytes) -> bytes:
    """A chunk of a body, as RFC 9112 (7.1) has it, and as we write all of them."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def as_lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Header lines as they are written."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def plain_head(data: bytes, lines: int) -> bytes:
    """The head with which `data` begins: a first line and so many header lines. Empty if it is not
    written as most are, with CR LF alone at the end of each line."""
    head = data[: data.find(END) + len(END)]
    return head if head.count(b"\r\n") == head.count(b"\n") == lines + 2 else b""


class Template:
    """A head, but for the digits of its `content-length`."""

    __slots__ = ("_begin", "_digits_at", "_end")

    def __init__(self, begin: bytes, end: bytes) -> None:
        """`begin` and `end` are what stands before and after the digits."""
        self._begin = begin
        self._end = end
        self._digits_at = len(begin)

    @classmethod
    def of(cls, data: bytes, lines: int) -> Template | None:
        """The template of the head with which `data` begins: a first line and so many header lines.

        None for a head that is not written as most are: with one length, and with CR LF alone.
        """
        head = plain_head(data, lines)
        found = list(_LENGTH.finditer(head))
        if len(found) != 1:
            return None
        return cls(head[: found[0].start(1)], head[found[0].end(1) :])

    def match(self, data: bytes) -> tuple[int, int] | None:
        """If `data` begins with this head: where its body begins, and the length it announces."""
        at = self._digits_at
        if data[:at] != self._begin:
            return None
        length, begin = 0, at
        most = min(len(data), begin + MAX_LENGTH_DIGITS)
        while at < most and ZERO <= data[at] <= NINE:
            length = length * 10 + data[at] - ZERO
            at += 1
        body_at = at + len(self._end)
        return (body_at, length) if at > begin and data[at:body_at] == self._end else None


class AnswerHead:
    """The head of an engine's answer, as far as answers that are written alike share it."""

    __slots__ = ("headers", "is_stream", "lines", "status")

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = status
        self.headers = headers
        """Names are lower-case."""
        self.lines: bytes | None = None
        """What a client gets of the header lines; None until somebody has looked."""
        self.is_stream = False
        """Whether events follow; known from then on, too."""
