"""How heads are written, and those that are recognised by that, without a parser.

Laws of this file:
- What repeats bytes that a parser has understood means the same as they did. Nothing is recognised
  that no parser has seen, but for the digits of a length.
- Whatever is not recognised is left to a parser: that is never wrong, only slower.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

MAX_LENGTH_DIGITS: Final = 12
END: Final = b"\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*+([0-9]++)[ \t]*+(?=\r\n)", re.IGNORECASE)


def as_lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Header lines as they are written."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


class Template:
    """A head, but for the digits of its `content-length`."""

    __slots__ = ("_begin", "_digits_at", "_end", "_ends_before")

    def __init__(self, begin: bytes, end: bytes) -> None:
        """`begin` and `end` are what stands before and after the digits."""
        self._begin = begin
        self._end = end
        self._digits_at = len(begin)
        self._ends_before = len(begin) + MAX_LENGTH_DIGITS + len(end)

    @classmethod
    def of(cls, data: bytes, lines: int) -> Template | None:
        """The template of the head with which `data` begins: a first line and so many header lines.

        None for a head that is not written as most are: with one length, and with CR LF alone.
        """
        size = data.find(END) + len(END)
        head = data[:size]
        found = _LENGTH.findall(head)
        if len(found) != 1 or not head.count(b"\r\n") == head.count(b"\n") == lines + 2:
            return None
        match = _LENGTH.search(head)
        assert match is not None, "it was found"
        return cls(head[: match.start(1)], head[match.end(1) :])

    def match(self, data: bytes) -> tuple[int, int] | None:
        """If `data` begins with this head: where its body begins, and the length it announces."""
        if not data.startswith(self._begin):
            return None
        at = self._digits_at
        end = data.find(self._end, at, self._ends_before)
        if end < 0:
            return None
        digits = data[at:end]
        return (end + len(self._end), int(digits)) if digits.isdigit() else None


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
