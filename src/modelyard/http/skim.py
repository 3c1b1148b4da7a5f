"""Looks into a request body that is too large to be looked into at once.

Laws of this file:
- The body is gone through in pieces: whoever calls lets others be served between two of them.
- Only what the gateway must know is decoded, and nothing is refused here: what is no JSON object,
  or an unusual one, is left to the decoder that looks at all of it (`openai.peek`).
"""

from __future__ import annotations

import re
from typing import Final

from modelyard.http.openai import Peek, peek

try:
    from modelyard.http._skim import skip_value
except ImportError:  # nothing was compiled: Python alone would take longer than the decoder
    skip_value = None  # type: ignore[assignment]

PIECE: Final = 1024 * 1024
"""Bytes that are gone through at a time; a millisecond or two."""
MOST_MEMBERS: Final = 1000
MOST_DEPTH: Final = 512
"""Deeper than this nothing is gone into; also in `_skim.c`."""
MOST_DECODED: Final = 64 * 1024
"""Bytes of the values that are decoded."""
DECODED: Final = (b"model", b"stream", b"stream_options")
PROMPTS: Final = (b"messages", b"prompt", b"input")
# Between tokens at the top; more white space than this is unusual, and would be read in one go.
_FIRST: Final = re.compile(rb"[ \t\r\n]{0,999}+\{")
_KEY: Final = re.compile(rb'[ \t\r\n]{0,999}+"([^"\\\x00-\x1f]{0,256})"[ \t\r\n]{0,999}+:')
_NEXT: Final = re.compile(rb"[ \t\r\n]{0,999}+([,}])")
_LAST: Final = re.compile(rb"[ \t\r\n]{0,999}+\Z")


class Skim:
    """One body, from its beginning to its end."""

    def __init__(self, body: bytes | bytearray) -> None:
        self._body = body
        self._members: dict[bytes, tuple[int, int]] = {}
        """Where the value of each key stands."""
        self._key = b""
        self._begin = 0
        """Where the value begins that is gone through."""
        self._at = 0
        self._depth = 0
        self._in_string = False
        self._count = 0
        self._is_usual = skip_value is not None
        first = _FIRST.match(body)
        if first is None or not self._begins_member(first.end()):
            self._is_usual = False

    def go_on(self) -> bool:
        """Go through the next piece; whether there is more."""
        end = self._at + PIECE
        while self._is_usual and self._at < end:
            self._at, self._depth, self._in_string, has_ended = skip_value(
                self._body, self._at, end - self._at, self._depth, self._in_string
            )
            if not has_ended:
                self._is_usual = self._at < len(self._body) and self._depth <= MOST_DEPTH
            elif self._ends_member():
                return False
        return self._is_usual

    def peek(self) -> Peek | None:
        """What the gateway must know of the request, when all has been gone through; None if that
        was not to be found. Raises InvalidRequest."""
        if not self._is_usual:
            return None
        spans = {key: self._members[key] for key in DECODED if key in self._members}
        if sum(end - begin for begin, end in spans.values()) > MOST_DECODED:
            return None
        said = [b'"%b":%b' % (key, bytes(self._body[slice(*span)])) for key, span in spans.items()]
        return peek(b"{%b}" % b",".join(said))

    def prompt(self, size: int) -> bytes | None:
        """The first bytes of what engines compute a prefix of; None without a prompt."""
        for key in PROMPTS:
            if key in self._members:
                begin, end = self._members[key]
                return bytes(self._body[begin : min(end, begin + 2 * size)]).lstrip()[:size]
        return None

    def _begins_member(self, at: int) -> bool:
        """Find the key at this place; whether there is one."""
        found = _KEY.match(self._body, at)
        self._count += 1
        if found is None or self._count > MOST_MEMBERS:
            return False
        self._key, self._at = found[1], found.end()
        self._begin, self._depth, self._in_string = self._at, 0, False
        return True

    def _ends_member(self) -> bool:
        """Note the value that has ended, and go to the next one; whether that was the last."""
        self._members[self._key] = self._begin, self._at
        found = _NEXT.match(self._body, self._at)
        if found is None:
            self._is_usual = False
        elif found[1] == b",":
            self._is_usual = self._begins_member(found.end())
        else:
            self._is_usual = _LAST.match(self._body, found.end()) is not None
            return self._is_usual
        return False
