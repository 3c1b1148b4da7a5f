"""Walks forward through a model file in a small window, within bounds.

Laws of this file:
- The file is read, never mapped: a file that shrinks while it is mapped would kill the process.
- No step leaves the file or its first 128 MiB, and none costs more than what it covers.
- What is refused is named with its place in the file.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final, NoReturn, Protocol

from modelyard.catalog.errors import BadModelFile

MAX_HEADER_BYTES: Final = 128 * 2**20
"""Ten times the header of a model with a vocabulary of 260,000 tokens."""
MAX_KEPT_BYTES: Final = 4 * 2**20
"""What names and kept values of one header may hold in memory, roughly."""
MAX_ARRAY_STRINGS: Final = 2_000_000
"""Strings in all arrays of one header; the largest vocabularies and merge lists have 800,000."""

_WINDOW_BYTES: Final = 256 * 1024


class Readable(Protocol):
    def seek(self, offset: int, /) -> int: ...

    def read(self, size: int, /) -> bytes | None: ...


_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")


class Scanner:
    """Walks forward through a file in a small window, and refuses to leave the file."""

    def __init__(self, file: Readable, path: Path, file_bytes: int) -> None:
        self._file = file
        self.path = path
        self.file_bytes = file_bytes
        self._window = b""
        self._window_start = 0
        self._at = 0
        self._kept = 0
        self._array_strings = 0

    @property
    def position(self) -> int:
        return self._window_start + self._at

    def fail(self, reason: str) -> NoReturn:
        raise BadModelFile(self.path, reason)

    def u32(self, what: str) -> int:
        return int(_U32.unpack(self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack(self.take(8, what))[0])

    def take(self, size: int, what: str) -> bytes:
        self._want(size, what)
        start = self._at
        self._at = start + size
        return self._window[start : self._at]

    def skip(self, size: int, what: str) -> None:
        self._check_inside(size, what)
        self._at += size

    def skip_strings(self, count: int, what: str) -> None:
        """Walk over `count` strings by their lengths alone; vocabularies have hundreds of
        thousands, so nothing is built for each."""
        self._array_strings += count
        if self._array_strings > MAX_ARRAY_STRINGS:
            self.fail(f"{what} has {count} strings; all arrays may have {MAX_ARRAY_STRINGS}")
        length_at = _U64.unpack_from
        window, at = self._window, self._at
        safe = len(window) - 8
        for _ in range(count):
            if at > safe:
                self._at = at
                self._want(8, what)
                window, at = self._window, self._at
                safe = len(window) - 8
            at += 8 + length_at(window, at)[0]
        self._at = at
        self._check_inside(0, what)

    def keep(self, n_bytes: int, what: str) -> None:
        """Account for something the header will hold in memory."""
        self._kept += n_bytes + 64
        if self._kept > MAX_KEPT_BYTES:
            self.fail(f"the names and values before {what} fill more than 4 MiB")

    def _check_inside(self, size: int, what: str) -> None:
        end = self.position + size
        if end > MAX_HEADER_BYTES:
            self.fail(f"{what} at byte {self.position} reaches past the first 128 MiB of the file")
        if end > self.file_bytes:
            self.fail(
                f"the file is truncated: {what} at byte {self.position} needs {size} bytes"
                f" and the file has {self.file_bytes}"
            )

    def _want(self, size: int, what: str) -> None:
        """Have `size` bytes in the window, from the position on."""
        if self._at + size <= len(self._window):
            return
        self._check_inside(size, what)
        start = self.position
        self._file.seek(start)
        parts: list[bytes] = []
        missing = max(size, _WINDOW_BYTES)
        while missing > 0:
            part = self._file.read(missing)
            if not part:
                break
            parts.append(part)
            missing -= len(part)
        self._window, self._window_start, self._at = b"".join(parts), start, 0
        if len(self._window) < size:
            self.fail(f"the file became shorter while {what} at byte {start} was read")
