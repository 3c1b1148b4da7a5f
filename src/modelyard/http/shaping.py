"""Requests changed as their model's shape says: bytes to bytes.

Laws of this file:
- Only the top level of a request is taken apart; what is not changed keeps its bytes.
- A shape cannot make a request invalid that was none: what has another type than the shape expects
  is left as it is, for the engine to judge.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from modelyard.core.errors import InvalidRequest
from modelyard.core.shaping import Json, Range, Shape
from modelyard.core.specs import Task

Fields = dict[str, msgspec.Raw]

CAPS: Final = ("max_tokens", "max_completion_tokens", "n_predict")
"""Parameters by which a request bounds its answer."""
CAPPED: Final = frozenset({Task.CHAT, Task.COMPLETION})
"""Tasks whose answers are made of tokens."""

_fields = msgspec.json.Decoder(Fields).decode
_objects = msgspec.json.Decoder(list[Fields]).decode
_encode = msgspec.json.encode


def shaped(body: bytes, shape: Shape | None, task: Task | None, model: str | None) -> bytes:
    """The request with its shape applied, and `model` as the model's name if that is given.

    Raises InvalidRequest for a body that is no JSON object.
    """
    try:
        fields = _fields(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the request body is not a JSON object: {error}") from None
    if shape is not None and shape.changes_body:
        _parameters(fields, shape)
        if shape.max_output_tokens is not None and task in CAPPED:
            _cap(fields, shape.max_output_tokens)
        if shape.system and task is Task.CHAT:
            _begin_with(fields, shape.system)
    if model is not None:
        fields["model"] = _raw(model)
    return _encode(fields)


def _parameters(fields: Fields, shape: Shape) -> None:
    for name in shape.strip:
        fields.pop(name, None)
    for name, value in shape.default.items():
        if name not in fields or bytes(fields[name]) == b"null":
            fields[name] = _raw(value)
    for name, value in shape.set.items():
        fields[name] = _raw(_over(_value(fields[name]), value) if name in fields else value)
    for name, bounds in shape.clamp.items():
        if name in fields:
            fields[name] = _raw(_within(_value(fields[name]), bounds))


def _over(old: Any, new: Json) -> Json:
    """`new`, laid over `old` where both are objects."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{name: _over(old.get(name), value) for name, value in new.items()}}
    return new


def _within(value: Any, bounds: Range) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    least, most = bounds
    if least is not None and value < least:
        return least
    return most if most is not None and value > most else value


def _cap(fields: Fields, most: int) -> None:
    asked = [name for name in CAPS if name in fields and bytes(fields[name]) != b"null"]
    for name in asked:
        value = _value(fields[name])
        if not isinstance(value, int | float) or not 0 <= value <= most:  # -1 asks for no bound
            fields[name] = _raw(most)
    if not asked:
        fields["max_tokens"] = _raw(most)


def _begin_with(fields: Fields, system: str) -> None:
    """Have the conversation begin with this system prompt, before the client's own."""
    try:
        messages = _objects(fields["messages"])
        role = _value(messages[0]["role"]) if messages else None
    except (KeyError, msgspec.DecodeError):
        return
    if role not in ("system", "developer"):
        messages.insert(0, {"role": _raw("system"), "content": _raw(system)})
    else:
        content = _value(messages[0]["content"]) if "content" in messages[0] else ""
        if isinstance(content, list):
            messages[0]["content"] = _raw([{"type": "text", "text": system}, *content])
        elif isinstance(content, str):
            messages[0]["content"] = _raw(f"{system}\n\n{content}" if content else system)
    fields["messages"] = _raw(messages)


def _value(raw: msgspec.Raw) -> Any:
    return msgspec.json.decode(raw)


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(_encode(value))
