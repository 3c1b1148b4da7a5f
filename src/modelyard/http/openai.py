"""OpenAI's dialect on the hot path: look into a request, ask for usage, shape engines' errors.

Laws of this file:
- A request body is looked into, not taken apart: three fields are decoded, the rest is skipped and
  reaches the engine as the client wrote it.
"""

from __future__ import annotations

import zlib
from typing import Final

import msgspec

from modelyard.core.errors import InvalidRequest
from modelyard.dialects.base import Problem
from modelyard.http import forms

PREFIX_BYTES = 1024
MAX_QUOTED = 2000
"""Characters of an engine's error text that are passed on."""
FORM_FIELDS: Final = frozenset({"model", "stream"})


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


class Peek(msgspec.Struct, frozen=True):
    """What the gateway must know of a request."""

    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether the client asked for a usage event in its stream."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class _EngineDetail(msgspec.Struct):
    message: str = ""
    code: str | int | None = None
    param: str | None = None


class _EngineError(msgspec.Struct):
    """The error shapes engines use: an object, or only a text."""

    error: _EngineDetail | str | None = None
    message: str | None = None
    detail: str | None = None


class _Prompt(msgspec.Struct, frozen=True):
    """What engines compute a prefix of, as the client wrote it."""

    messages: msgspec.Raw | None = None
    prompt: msgspec.Raw | None = None
    input: msgspec.Raw | None = None


_decode_prompt = msgspec.json.Decoder(_Prompt).decode
_decode_request = msgspec.json.Decoder(Peek).decode
_decode_error = msgspec.json.Decoder(_EngineError).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def peek(body: bytes | bytearray) -> Peek:
    """The named model and whether a stream is wanted. Raises InvalidRequest."""
    try:
        seen = _decode_request(body)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the request body is not what this route expects: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the request body is not valid JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest("the request body is nested too deeply") from None
    if not seen.model:
        raise _no_model()
    return seen


def peek_form(body: bytes, content_type: bytes) -> Peek:
    """The same of a form. Raises InvalidRequest."""
    fields = forms.text_fields(body, content_type, FORM_FIELDS)
    if not fields.get("model"):
        raise _no_model()
    return Peek(fields["model"], fields.get("stream", "").casefold() in ("true", "1"))


def _no_model() -> InvalidRequest:
    return InvalidRequest(
        "the request names no model",
        param="model",
        hint="put the id of a model from /v1/models into `model`",
    )


def asking_for_usage(body: bytes | bytearray, seen: Peek) -> bytes:
    """The request for a stream, so that its last event tells the usage."""
    if body[:1] == b"{" and b'"stream_options"' not in body:
        return b'{"stream_options":{"include_usage":true},' + body[1:]
    options: dict[str, msgspec.Raw] = {}
    try:
        fields = _decode_fields(body)
        if seen.stream_options is not None:
            options = _decode_fields(fields["stream_options"])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # in what `peek` passed over
        raise InvalidRequest(f"the request body is not valid JSON: {error}") from None
    options["include_usage"] = msgspec.Raw(b"true")
    fields["stream_options"] = msgspec.Raw(msgspec.json.encode(options))
    return msgspec.json.encode(fields)


def prefix(body: bytes | bytearray) -> int | None:
    """A hash of the beginning of a prompt, by which like ones find the same replica.

    None for a request without a prompt. The beginning is PREFIX_BYTES of the JSON text of the
    messages, the prompt or the input: where conversations differ early, they part here.
    """
    try:
        asked = _decode_prompt(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    for part in (asked.messages, asked.prompt, asked.input):
        if part is not None:
            return zlib.crc32(bytes(part)[:PREFIX_BYTES])
    return None


def engine_problem(status: int, body: bytes, request_id: str) -> Problem:
    """An engine's own error answer, whatever shape it had."""
    message, code, param = "", None, None
    try:
        said = _decode_error(body)
        if isinstance(said.error, _EngineDetail):
            message, param = said.error.message, said.error.param
            code = said.error.code if isinstance(said.error.code, str) else None
        else:
            message = said.error or said.message or said.detail or ""
    except (msgspec.DecodeError, UnicodeDecodeError):
        message = body.decode("utf-8", "replace").strip()
    message = message[:MAX_QUOTED] or f"the engine answered with status {status}"
    return Problem(status, message, code, param, request_id)
