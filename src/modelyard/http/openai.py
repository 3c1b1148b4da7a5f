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
from modelyard.runtime.upstream import Buffer

PREFIX_BYTES = 1024
LARGE_BODY = 256 * 1024
"""A body of more bytes is not copied: that would hold up everybody else."""
MAX_QUOTED = 2000
"""Characters of an engine's error text that are passed on."""
FORM_FIELDS: Final = frozenset({"model", "stream"})


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


class Peek(msgspec.Struct, frozen=True):
    """What the gateway must know of a request."""

    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | msgspec.UnsetType | None = msgspec.UNSET

    @property
    def wants_usage(self) -> bool:
        """Whether the client asked for a usage event in its stream."""
        options = self.stream_options
        return isinstance(options, StreamOptions) and bool(options.include_usage)


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
    """The named model, if one is named, and whether a stream is wanted. Raises InvalidRequest."""
    try:
        seen = _decode_request(body)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the request body is not what this route expects: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the request body is not valid JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest("the request body is nested too deeply") from None
    return seen


def peek_form(body: bytes, content_type: bytes) -> Peek:
    """The same of a form, which has to name a model. Raises InvalidRequest."""
    fields = forms.text_fields(body, content_type, FORM_FIELDS)
    if not fields.get("model"):
        raise no_model()
    return Peek(fields["model"], fields.get("stream", "").casefold() in ("true", "1"))


def no_model() -> InvalidRequest:
    """The refusal of a request that names no model, where it is not plain which one is meant."""
    return InvalidRequest(
        "the request names no model",
        param="model",
        hint="put the id of a model from /v1/models into `model`",
    )


def asking_for_usage(body: bytes | bytearray, seen: Peek) -> tuple[bytes, Buffer]:
    """The request for a stream, in two parts, so that its last event tells the usage."""
    if seen.wants_usage:
        return b"", body
    if len(body) > LARGE_BODY:  # it takes too long to be searched
        says_nothing = seen.stream_options is msgspec.UNSET
    else:
        says_nothing = b'"stream_options"' not in body
    if says_nothing and body[:1] == b"{":
        rest = memoryview(body)[1:] if len(body) > LARGE_BODY else body[1:]
        return b'{"stream_options":{"include_usage":true},', rest
    options: dict[str, msgspec.Raw] = {}
    try:
        fields = _decode_fields(body)
        if isinstance(seen.stream_options, StreamOptions):
            options = _decode_fields(fields["stream_options"])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # in what `peek` passed over
        raise InvalidRequest(f"the request body is not valid JSON: {error}") from None
    options["include_usage"] = msgspec.Raw(b"true")
    fields["stream_options"] = msgspec.Raw(msgspec.json.encode(options))
    return b"", msgspec.json.encode(fields)


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
