"""Another name for the model in a request, and not a byte of the rest.

Laws of this file:
- The top-level `model` alone changes; order, spaces, numbers and escapes of everything else reach
  the upstream as the client wrote them. No tree of the body is built: its members are skipped over.
- An object that names a member twice is written anew with one of each, the last: whoever reads the
  first would otherwise serve another model than the one that was asked for.
"""

from __future__ import annotations

import re

import msgspec

_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.encode
_SPACE = rb"[ \t\n\r]*+"
_KEY = re.compile(
    _SPACE + rb"[{,]" + _SPACE + rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"' + _SPACE + rb":" + _SPACE
)


def with_name(body: bytes, name: str) -> bytes:
    """`body`, a JSON object with a `model`, with that set to `name`.

    What is no such object is returned as it is.
    """
    try:
        members = _members(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body
    if "model" not in members:
        return body
    wanted = _encode(name)
    span = _span(body, members)
    if span is None:
        return _encode({**members, "model": name})
    begin, end = span
    return body if body[begin:end] == wanted else b"".join((body[:begin], wanted, body[end:]))


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
