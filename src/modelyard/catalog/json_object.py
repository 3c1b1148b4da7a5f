"""A JSON file of a model, read with suspicion.

Laws of this file:
- A model folder is hostile input: size, depth and number of values are bounded before anything is
  built, so that no file costs more than a fraction of a second and some tens of MiB.
- A value of the wrong kind is a `BadModelFile` that names the file and the key, never a guess.
- `Infinity` and `NaN` are read, because published configurations hold them (Mamba 2 writes
  `"time_step_limit": [0.0, Infinity]`); they are no counts.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, TypeAlias

from modelyard.catalog.errors import BadModelFile

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"

MAX_BYTES: Final = 4 * 2**20
"""Configurations are a few KiB; some list 20,000 labels."""
MAX_DEPTH: Final = 64
MAX_VALUES: Final = 200_000
MAX_COUNT: Final = 2**48

_BRACKETS: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]|[\]}]', re.S)
_LFS: Final = b"version https://git-lfs.github.com/spec/"


class JsonObject:
    """An object of a JSON file whose values are asked for by kind; `where` names it in messages."""

    def __init__(self, path: Path, values: Mapping[str, Json], where: str = "") -> None:
        self.path = path
        self.values = values
        self._where = where

    def __repr__(self) -> str:
        return f"<JsonObject {self.path.name}{self._where and ':'}{self._where} {len(self.values)}>"

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def text(self, key: str) -> str | None:
        """A string. Raises BadModelFile for anything else."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise self._wrong(key, value, "text")
        return value

    def flag(self, key: str) -> bool | None:
        """True or false. Raises BadModelFile for anything else."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def count(self, *keys: str) -> int | None:
        """The first of `keys` that is there, as a number of things.

        Raises BadModelFile for anything but a whole number from 0 to `MAX_COUNT`.
        """
        for key in keys:
            value = self.values.get(key)
            if value is None:
                continue
            number = int(value) if isinstance(value, float) and value.is_integer() else value
            if isinstance(number, bool) or not isinstance(number, int):
                raise self._wrong(key, value, "a count")
            if not 0 <= number <= MAX_COUNT:
                raise self._wrong(key, value, "a count")
            return number
        return None

    def counts(self, key: str) -> tuple[int, ...]:
        """A list of counts, or one; nothing where the key is not there. Raises BadModelFile."""
        value = self.values.get(key)
        entries = value if isinstance(value, list) else [] if value is None else [value]
        numbers = [entry for entry in entries if isinstance(entry, int)]
        if len(numbers) != len(entries) or any(not 0 <= n <= MAX_COUNT for n in numbers):
            raise self._wrong(key, value, "a list of counts")
        return tuple(numbers)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings, or one; nothing where the key is not there. Raises BadModelFile."""
        value = self.values.get(key)
        entries = value if isinstance(value, list) else [] if value is None else [value]
        words = [entry for entry in entries if isinstance(entry, str)]
        if len(words) != len(entries):
            raise self._wrong(key, value, "a list of texts")
        return tuple(words)

    def part(self, *keys: str) -> JsonObject | None:
        """The first of `keys` that is there, as an object. Raises BadModelFile."""
        for key in keys:
            value = self.values.get(key)
            if value is None:
                continue
            if not isinstance(value, dict):
                raise self._wrong(key, value, "an object")
            return JsonObject(self.path, value, f"{self._where}{self._where and '.'}{key}")
        return None

    def _wrong(self, key: str, value: object, wanted: str) -> BadModelFile:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        name = f"{self._where}{self._where and '.'}{key}"
        return BadModelFile(self.path, f"{name} is {shown} where {wanted} belongs")


def read_object(path: Path, *, most_bytes: int = MAX_BYTES) -> JsonObject:
    """The object in the JSON file at `path`. Raises BadModelFile where it cannot be read."""
    value = read_json(path, most_bytes=most_bytes)
    if not isinstance(value, dict):
        raise BadModelFile(path, "it holds no JSON object")
    return JsonObject(path, value)


def read_json(path: Path, *, most_bytes: int = MAX_BYTES) -> Json:
    """What is in the JSON file at `path`. Raises BadModelFile where it cannot be read."""
    return parse_json(path, read_bytes(path, most_bytes))


def read_bytes(path: Path, most_bytes: int) -> bytes:
    """The content of a small file.

    Raises BadModelFile where it cannot be read, is no regular file, has more than `most_bytes`, or
    is a pointer that git left in place of the file.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadModelFile(path, "it is not a regular file")
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise BadModelFile(path, f"it cannot be read: {error.strerror or error}") from error
    if len(content) > most_bytes:
        raise BadModelFile(path, f"it has more than {most_bytes} bytes")
    if is_pointer(content):
        raise pointer_error(path)
    return content


def is_pointer(beginning: bytes) -> bool:
    """Whether a file begins like a git-lfs pointer (git-lfs, docs/spec.md)."""
    return beginning.startswith(_LFS)


def pointer_error(path: Path) -> BadModelFile:
    """The refusal of a git-lfs pointer."""
    return BadModelFile(
        path,
        "it is a git-lfs pointer, not the file itself",
        hint="run `git lfs pull` in its folder, or download the file",
    )


def parse_json(path: Path, content: bytes) -> Json:
    """The value that `content` writes; `path` is for messages. Raises BadModelFile."""
    values = content.count(b",") + content.count(b"[") + content.count(b"{")
    if values > MAX_VALUES:
        raise BadModelFile(path, f"it holds about {values} values; {MAX_VALUES} are accepted")
    if _is_deep(content):
        raise BadModelFile(path, f"its values are nested more than {MAX_DEPTH} deep")
    try:
        value: Json = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadModelFile(path, f"it is no text: byte {error.start} is not UTF-8") from error
    except json.JSONDecodeError as error:
        reason = f"it is no JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        raise BadModelFile(path, reason) from error
    except ValueError as error:  # numbers of more digits than Python converts
        raise BadModelFile(path, "it holds a number of too many digits") from error
    return value


def _is_deep(content: bytes) -> bool:
    if content.count(b"[") + content.count(b"{") <= MAX_DEPTH:
        return False
    return any(depth > MAX_DEPTH for depth in _depths(content))


def _depths(content: bytes) -> Iterator[int]:
    depth = 0
    for match in _BRACKETS.finditer(content):
        first = match[0][:1]
        if first in b"[{":
            depth += 1
            yield depth
        elif first in b"]}":
            depth -= 1
