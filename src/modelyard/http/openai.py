"""OpenAI's dialect on the hot path: look into a request, shape errors and events.

Laws of this file:
- A request body is looked into, not taken apart: two fields are decoded, the rest is skipped and
  reaches the engine as the client wrote it.
"""

from __future__ import annotations

import zlib

import msgspec

from modelyard.core.errors import InvalidRequest, ModelyardError
from modelyard.http.errors import openai_body, openai_error

PREFIX_BYTES = 1024
MAX_QUOTED = 2000
"""Characters of an engine's error text that are passed on."""


class Peek(msgspec.Struct, frozen=True):
    """What the gateway must know of a request."""

    model: str | None = None
    stream: bool | None = False


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


def peek(body: bytes | bytearray) -> Peek:
    """The named model and whether a stream is wanted. Raises InvalidRequest."""
    try:
        seen = _decode_request(body)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the request body is not what this route expects: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the request body is not valid JSON: {error}") from None
    if not seen.model:
        raise InvalidRequest(
            "the request names no model",
            param="model",
            hint="put the id of a model from /v1/models into `model`",
        )
    return seen


def prefix(body: bytes | bytearray) -> int | None:
    """A hash of the beginning of a prompt, by which like ones find the same replica.

    None for a request without a prompt. The beginning is PREFIX_BYTES of the JSON text of the
    messages, the prompt or the input: where conversations differ early, they part here.
    """
    try:
        asked = _decode_prompt(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    for part in (asked.messages, asked.prompt, asked.input):
        if part is not None:
            return zlib.crc32(bytes(part)[:PREFIX_BYTES])
    return None


def error_event(error: ModelyardError) -> bytes:
    """An error inside a stream: OpenAI's clients raise on a data event with an `error` object."""
    return b"data: " + openai_error(error) + b"\n\n"


def engine_error(status: int, body: bytes) -> bytes:
    """An engine's own error answer, in OpenAI's shape whatever shape it had."""
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
    return openai_body(status, message, code, param)
