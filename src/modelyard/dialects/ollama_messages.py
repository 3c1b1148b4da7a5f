"""Ollama's messages as OpenAI's.

Laws of this file:
- Every call of a tool has an id here, because OpenAI's results name the call they answer, and
  Ollama's name the tool or nothing: a result belongs to the first unanswered call of its tool, else
  to the first unanswered call.
- An image is base64 without its kind; the first bytes tell it.
- What a message says beyond Ollama's API stays in it.

Source: api/types.go of Ollama (Message, ToolCall).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from modelyard.core.errors import InvalidRequest
from modelyard.dialects.base import refused

_KINDS: Final[Sequence[tuple[bytes, str]]] = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
)
_SNIFFED: Final = 16
"""Base64 characters that tell an image's kind: twelve bytes."""


class Function(msgspec.Struct):
    name: str
    arguments: dict[str, Any] | str | None = None


class ToolCall(msgspec.Struct):
    function: Function
    id: str | None = None


class Message(msgspec.Struct):
    role: str
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


_KNOWN: Final = frozenset(Message.__struct_fields__)


def to_openai(
    messages: Sequence[Message], fields: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The conversation as OpenAI writes it; `fields` are the same messages as they came."""
    calls = _Calls()
    return [
        _extra(each) | _message(message, calls)
        for message, each in zip(messages, fields, strict=True)
    ]


def content(text: str, images: Sequence[str] | None) -> str | list[dict[str, Any]]:
    """A message's content: its text, or its images and text. Raises InvalidRequest."""
    if not images:
        return text
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": _data_url(image, index)}}
        for index, image in enumerate(images)
    ]
    return [*parts, {"type": "text", "text": text}] if text else parts


class _Calls:
    """The calls of tools in a conversation, and which of them have no result yet."""

    def __init__(self) -> None:
        self._count = 0
        self._open: list[tuple[str, str]] = []

    def made(self, name: str, call_id: str | None) -> str:
        """The id of the next call."""
        self._count += 1
        known = call_id or f"call_{self._count}"
        self._open.append((known, name))
        return known

    def answered(self, name: str | None, call_id: str | None) -> str:
        """The id of the call that a result belongs to."""
        fitting = (
            pair for pair in self._open if (pair[0] == call_id if call_id else pair[1] == name)
        )
        pair = next(fitting, None)
        if pair is None and call_id is None and self._open:
            pair = self._open[0]
        if pair is None:  # of a call that is not in the conversation: the engine judges it
            return call_id or self.made(name or "", None)
        self._open.remove(pair)
        return pair[0]


def _extra(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in _KNOWN}


def _message(message: Message, calls: _Calls) -> dict[str, Any]:
    role = message.role.lower()
    shown: dict[str, Any] = {
        "role": role,
        "content": content(message.content or "", message.images),
    }
    if role == "tool":
        shown["tool_call_id"] = calls.answered(message.tool_name, message.tool_call_id)
        if message.tool_name:
            shown["name"] = message.tool_name
    if message.thinking:
        shown["reasoning_content"] = message.thinking
    if message.tool_calls:
        shown["tool_calls"] = [_call(call, calls) for call in message.tool_calls]
    return shown


def _call(call: ToolCall, calls: _Calls) -> dict[str, Any]:
    given = call.function.arguments
    arguments = given if isinstance(given, str) else msgspec.json.encode(given or {}).decode()
    return {
        "id": calls.made(call.function.name, call.id),
        "type": "function",
        "function": {"name": call.function.name, "arguments": arguments},
    }


def _data_url(image: str, index: int) -> str:
    """OpenAI's form of an image. Raises InvalidRequest for what is none."""
    if image.startswith("data:"):
        return image
    try:
        start = base64.b64decode(image[:_SNIFFED], validate=True)
    except (binascii.Error, ValueError):
        raise _no_image(index) from None
    for magic, kind in _KINDS:
        if start.startswith(magic):
            return f"data:{kind};base64,{image}"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return f"data:image/webp;base64,{image}"
    raise _no_image(index)


def _no_image(index: int) -> InvalidRequest:
    return refused(
        f"image {index} of a message is not a PNG, JPEG, WebP, GIF or BMP in base64",
        param="images",
    )
