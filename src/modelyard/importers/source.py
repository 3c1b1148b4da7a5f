"""Reads a file of unknown kind: bounded, whatever its encoding, and never a special file.

Laws of this file:
- A regular file of at most `MAX_BYTES` is read; a pipe or a device would block or never end.
- Text is UTF-8 (with or without a mark), UTF-16 with a mark, or GBK, in which Chinese Windows
  saves batch files. What is none of them, or holds control characters, is binary and refused.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from pathlib import Path

from modelyard.importers.errors import CannotImport

MAX_BYTES = 512 * 1024
SQLITE_MAGIC = b"SQLite format 3\0"
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f\ud800-\udfff]")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@dataclass(frozen=True, slots=True)
class Source:
    """A file that is to be imported. `text` is empty for a database and for a folder."""

    path: Path
    text: str = ""
    is_database: bool = False
    is_folder: bool = False

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def folder(self) -> Path:
        """Where relative paths of the source start; absolute."""
        return self.path.absolute().parent


def read_source(path: Path) -> Source:
    """The content of `path`. Raises CannotImport."""
    try:
        if path.is_dir():
            return Source(path, is_folder=True)
        if not path.is_file():
            what = "is not a regular file" if path.exists() else "does not exist"
            raise CannotImport(f"{path}: {what}", hint="name the file to import")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CannotImport(f"{path}: cannot be read: {reason}") from error
    if content.startswith(SQLITE_MAGIC):
        return Source(path, is_database=True)
    if len(content) > MAX_BYTES:
        text = f"{path}: is larger than {MAX_BYTES // 1024} KiB; no configuration needs that"
        raise CannotImport(text, hint="name the configuration itself")
    return Source(path, decode(content, str(path)))


def decode(content: bytes, where: str) -> str:
    """The text in `content`, with plain line ends. Raises CannotImport."""
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return _checked(content[len(mark) :], encoding, where)
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return _checked(content, "gb18030", where)  # GBK and everything that it left out
    return _checked(content, "utf-8", where)


def _checked(content: bytes, encoding: str, where: str) -> str:
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        hint = "save it as UTF-8"
        raise CannotImport(f"{where}: is neither UTF-8 nor GBK text", hint=hint) from error
    found = _CONTROLS.search(text)
    if found:
        line = text.count("\n", 0, found.start()) + 1
        raise CannotImport(
            f"{where}:{line}: holds the character U+{ord(found[0]):04X}, so it is no text",
            hint="name a configuration file",
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")
