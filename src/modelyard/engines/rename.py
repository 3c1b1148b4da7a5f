"""Other names in a request: for the model, and not a byte of the rest; and for parameters.

Laws of this file:
- The top-level `model` alone changes; order, spaces, numbers and escapes of everything else reach
  the upstream as the client wrote them. No tree of the body is built: its members are skipped over.
- An object that names a member twice is written anew with one of each, the last: whoever reads the
  first would otherwise serve another model than the one that was asked for.
- A form (RFC 7578), in which recordings and images come, has its field `model` replaced wherever it
  stands, for the same reason. Its boundary is taken from its first line.
- A parameter under another name keeps the bytes of its value. Who has written both names means the
  new one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.encode
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises of text that is no JSON, or nested too deep."""
MAX_DELIMITER = len(b"\r\n--") + 70
"""A boundary has at most 70 characters (RFC 2046, 5.1.1)."""
MAX_PART_HEAD = 8192
_MODEL_FIELD = re.compile(
    rb'^content-disposition:[ \t]*form-data;(?:[^\r\n]*;)?[ \t]*name="?model"?[ \t]*(?:;|\r?$)',
    re.IGNORECASE | re.MULTILINE,
)
_SPACE = rb"[ \t\n\r]*+"
_KEY = re.compile(
    _SPACE + rb"[{,]" + _SPACE + rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"' + _SPACE + rb":" + _SPACE
)


def with_name(body: bytes, name: str) -> bytes:
    """`body`, a JSON object or a form with a `model`, with that set to `name`.

    What is neither is returned as it is.
    """
    if body.startswith(b"--"):
        return _in_form(body, name)
    try:
        members = _members(body)
    except UNREADABLE:
        return body
    if "model" not in members:
        return body
    wanted = _encode(name)
    span = _span(body, members)
    if span is None:
        return _encode({**members, "model": name})
    begin, end = span
    return body if body[begin:end] == wanted else b"".join((body[:begin], wanted, body[end:]))


def with_parameters(body: bytes, names: Mapping[str, str]) -> bytes:
    """`body`, a JSON object, with its top-level members called as `names` says: old to new.

    It is returned as it is where it has none of them, and where it is no JSON object.
    """
    try:
        members = _members(body)
    except UNREADABLE:
        return body
    if not names.keys() & members.keys():
        return body
    renamed: dict[str, msgspec.Raw] = {}
    for name, value in members.items():
        new = names.get(name, name)
        if new == name or new not in members:
            renamed[new] = value
    return _encode(renamed)


def _in_form(body: bytes, name: str) -> bytes:
    """A form with its field `model` set to `name`."""
    delimiter = b"\r\n" + body[: body.find(b"\r\n")]
    if not len(b"\r\n--") < len(delimiter) <= MAX_DELIMITER:
        return body
    parts: list[bytes | memoryview] = []
    whole = memoryview(body)
    copied, at = 0, 0
    while (head_ends := body.find(b"\r\n\r\n", at)) >= 0:
        value = head_ends + 4
        end = body.find(delimiter, value - 2)
        if end < 0:
            break  # cut off: the engine says so
        if _MODEL_FIELD.search(body, at, min(head_ends, at + MAX_PART_HEAD)) and end >= value:
            parts += (whole[copied:value], name.encode())
            copied = end
        at = end + len(delimiter)
    return b"".join((*parts, whole[copied:])) if parts else body


def _span(body: bytes, members: dict[str, msgspec.Raw]) -> tuple[int, int] | None:
    """Where the value of `model` stands; None if the members are not simply one after another."""
    at = 0
    found = None
    for key, value in members.items():
        before = _KEY.match(body, at)
        if before is None or not body.startswith(memoryview(value).tobytes(), before.end()):
            return None
        at = before.end() + len(memoryview(value))
        if key == "model":
            found = before.end(), at
    return found if body[at:].strip() == b"}" else None
