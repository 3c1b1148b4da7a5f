"""A look into `multipart/form-data`, without taking it apart: the text fields that route a request.

Laws of this file:
- Files are skipped by searching for the boundary; nothing is copied but the fields asked for.
- What is not a form, or names a field twice, is refused: two readers could disagree on it.

Source: RFC 7578, and RFC 2046 5.1 for boundaries.
"""

from __future__ import annotations

import re
from typing import Final

from modelyard.core.errors import InvalidRequest

MAX_PARTS: Final = 100
MAX_PART_HEAD: Final = 8 * 1024
MAX_FIELD: Final = 1024
"""Longest value of a field that is read."""

_BOUNDARY: Final = re.compile(rb';\s*boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.I)
_NAME: Final = re.compile(rb'content-disposition:[^\r\n]*?;\s*name="([^"\r\n]*)"', re.I)


def text_fields(body: bytes, content_type: bytes, wanted: frozenset[str]) -> dict[str, str]:
    """The wanted fields that the form has. Raises InvalidRequest."""
    boundary = _BOUNDARY.search(content_type)
    if not content_type.lower().startswith(b"multipart/form-data") or boundary is None:
        raise InvalidRequest(
            "this route takes multipart/form-data with a boundary",
            hint="send the file and `model` as fields of a form",
        )
    fence = b"--" + (boundary[1] or boundary[2])
    at = body.find(fence)
    if at < 0:
        raise InvalidRequest("the form has no part: its boundary is not in the body")
    found: dict[str, str] = {}
    for _ in range(MAX_PARTS):
        start = at + len(fence)
        if body[start : start + 2] == b"--":
            return found
        at = body.find(b"\r\n" + fence, start)
        if at < 0:
            raise InvalidRequest("the form ends in the middle of a part")
        name, value = _part(body, start, at)
        if name in wanted:
            if name in found:
                raise InvalidRequest(f"the form has more than one field {name!r}", param=name)
            found[name] = value
        at += 2
    raise InvalidRequest(f"the form has more than {MAX_PARTS} parts")


def _part(body: bytes, start: int, end: int) -> tuple[str, str]:
    head_end = body.find(b"\r\n\r\n", start, min(end + 2, start + MAX_PART_HEAD))
    if head_end < 0:
        raise InvalidRequest("a part of the form has no head")
    name = _NAME.search(body, start, head_end + 2)
    if name is None:
        raise InvalidRequest("a part of the form has no name")
    value = body[head_end + 4 : min(end, head_end + 4 + MAX_FIELD)]
    return name[1].decode("utf-8", "replace"), value.decode("utf-8", "replace")


def with_field(body: bytes, content_type: bytes, field: str, value: str) -> bytes:
    """The form with another value in a text field that it has once. Raises InvalidRequest."""
    boundary = _BOUNDARY.search(content_type)
    fence = b"--" + ((boundary[1] or boundary[2]) if boundary else b"")
    at = body.find(fence)
    while at >= 0:
        start = at + len(fence)
        end = body.find(b"\r\n" + fence, start)
        if end < 0:
            break
        head_end = body.find(b"\r\n\r\n", start, end + 2)
        name = _NAME.search(body, start, head_end + 2)
        if name is not None and name[1] == field.encode():
            return body[: head_end + 4] + value.encode() + body[end:]
        at = end + 2
    raise InvalidRequest(f"the form has no field {field!r}", param=field)
