"""Anthropic's Messages API: requests, token counts, errors and the listing of models.

Laws of this file:
- A Messages request becomes a chat request; fields that only change their place keep their value
  as the client wrote it, and fields that nobody here knows go on to the engine.
- A last message of the assistant's is gone on with, not answered: engines are told so.
- Errors that pass by themselves are 529 `overloaded_error`; those that somebody has to mend are
  not.

Source: https://platform.claude.com/docs/en/api/messages, /errors and /models-list
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from modelyard.core.errors import InvalidRequest
from modelyard.dialects import anthropic_options as options
from modelyard.dialects.anthropic_messages import Block, Message, to_openai
from modelyard.dialects.anthropic_reply import Reply, error, error_event, is_passing
from modelyard.dialects.base import Asked, Dialect, Problem, WholeReply, refused
from modelyard.dialects.sse import event
from modelyard.dialects.tokens import counted, question

PATH: Final = "/v1/messages"
"""Where engines that speak this dialect themselves take it."""
COUNT_PATH: Final = "/v1/messages/count_tokens"

MAX_LISTED: Final = 1000
"""The most models of one page that a client may ask for."""
USUALLY_LISTED: Final = 20

OVERLOADED: Final = 529


class _Request(msgspec.Struct):
    """What is said differently in OpenAI's chats."""

    messages: list[Message]
    model: str = ""
    stream: bool | None = None
    system: str | list[Block] | None = None
    tools: list[options.Tool] | None = None
    tool_choice: options.ToolChoice | None = None
    stop_sequences: list[str] | None = None
    thinking: options.Thinking | None = None
    output_config: options.OutputConfig | None = None
    output_format: options.Format | None = None


class _AsCame(msgspec.Struct):
    """Tools with whatever they say beyond the API."""

    tools: list[dict[str, Any]] | None = None


_KNOWN: Final = frozenset(_Request.__struct_fields__) - {"model", "stream"}
_decode = msgspec.json.Decoder(_Request).decode
_decode_tools = msgspec.json.Decoder(_AsCame).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_kwargs = msgspec.json.Decoder(dict[str, Any] | None).decode
_encode = msgspec.json.encode


def translate(body: bytes) -> Asked:
    """A Messages request as engines are asked. Raises InvalidRequest."""
    asked, chat = _chat(body)
    begun = chat["messages"][-1]["content"] if "continue_final_message" in chat else ""
    return Asked(_encode(chat), Reply(asked.model, asked.stop_sequences or (), begun))


def count_tokens(body: bytes) -> Asked:
    """A request to count tokens, as engines are asked at `dialects.tokens.COUNT_PATH`.

    Raises InvalidRequest.
    """
    _, chat = _chat(body)
    return Asked(question(chat), WholeReply(_count, error))


def _count(answer: bytes) -> bytes:
    return _encode({"input_tokens": counted(answer)})


def _chat(body: bytes) -> tuple[_Request, dict[str, Any]]:
    asked, fields, came = _read(body)
    for name, why in options.REFUSED.items():
        if bytes(fields.get(name, b"")) not in (b"", b"null", b"[]", b"{}"):
            raise refused(f"{name} cannot be honoured: {why}", param=name)
    chat: dict[str, Any] = {
        name: value
        for name, value in fields.items()
        if name not in _KNOWN and name not in options.HINTS and name not in options.REFUSED
    }
    messages = chat["messages"] = to_openai(asked.system, asked.messages)
    if messages and messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]:
        chat |= {"continue_final_message": True, "add_generation_prompt": False}
    if asked.stop_sequences:
        chat["stop"] = asked.stop_sequences
    if asked.tools:
        chat["tools"] = options.tools(asked.tools, came)
    if asked.tool_choice is not None:
        chat |= options.tool_choice(asked.tool_choice)
    if asked.output_config is not None:
        chat |= options.output(asked.output_config)
    if asked.output_format is not None:
        chat |= options.answer_format(asked.output_format)
    if asked.thinking is not None:
        chat |= _thinking(options.thinking(asked.thinking), fields)
    return asked, chat


def _read(body: bytes) -> tuple[_Request, dict[str, msgspec.Raw], Sequence[dict[str, Any]]]:
    """A request, its fields as they were written, and its tools with all they say."""
    try:
        return _decode(body), _decode_fields(body), _decode_tools(body).tools or ()
    except msgspec.ValidationError as problem:
        raise InvalidRequest(f"the request is no Messages request: {problem}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise InvalidRequest(f"the request body is not valid JSON: {problem}") from None
    except RecursionError:
        raise InvalidRequest("the request body is nested too deeply") from None


def _thinking(said: dict[str, Any], fields: Mapping[str, msgspec.Raw]) -> dict[str, Any]:
    """What the client tells the template itself comes first."""
    own = fields.get("chat_template_kwargs")
    if own is None or "chat_template_kwargs" not in said:
        return said
    try:
        kwargs = _decode_kwargs(own) or {}
    except msgspec.DecodeError as problem:
        raise InvalidRequest(f"chat_template_kwargs: {problem}") from None
    return said | {"chat_template_kwargs": said["chat_template_kwargs"] | kwargs}


def status(problem: Problem) -> int:
    """The status of an error: Anthropic's clients know 529 as `not now`."""
    return OVERLOADED if is_passing(problem) else problem.status


ANTHROPIC: Final = Dialect(
    "anthropic",
    error,
    heartbeat=event(b'{"type":"ping"}', "ping"),
    request_id_header=b"request-id",
    status=status,
    error_event=error_event,
)

# ------------------------------------------------------------------------------------------ listing


@dataclass(frozen=True, slots=True)
class Listed:
    """A model as Anthropic lists it."""

    id: str
    display_name: str
    created: float = 0
    """Seconds since the epoch; 0 where nobody knows."""
    max_input_tokens: int | None = None


def model(listed: Listed) -> bytes:
    """One model, as `GET /v1/models/{id}` answers."""
    return _encode(_model(listed))


def models(
    listed: Sequence[Listed],
    *,
    limit: str | None = None,
    after_id: str | None = None,
    before_id: str | None = None,
) -> bytes:
    """A page of models, as `GET /v1/models` answers; the rest are the query's own words.

    Raises InvalidRequest.
    """
    size = _size(limit)
    shown, more = listed, False
    if after_id:
        shown = shown[_place(listed, after_id, "after_id") + 1 :]
    if before_id:
        shown = shown[: _place(shown, before_id, "before_id")]
        shown, more = shown[-size:], len(shown) > size
    else:
        shown, more = shown[:size], len(shown) > size
    page = {
        "data": [_model(each) for each in shown],
        "has_more": more,
        "first_id": shown[0].id if shown else None,
        "last_id": shown[-1].id if shown else None,
    }
    return _encode(page)


def _size(limit: str | None) -> int:
    if not limit:
        return USUALLY_LISTED
    if not limit.isdecimal() or len(limit) > 4 or not 1 <= int(limit) <= MAX_LISTED:
        raise refused(f"limit: {limit!r} is no number from 1 to {MAX_LISTED}", param="limit")
    return int(limit)


def _place(listed: Sequence[Listed], wanted: str, word: str) -> int:
    for at, each in enumerate(listed):
        if each.id == wanted:
            return at
    raise refused(f"{word}: there is no model {wanted!r} here", param=word)


def _model(listed: Listed) -> dict[str, Any]:
    made = datetime.fromtimestamp(listed.created, UTC).isoformat().replace("+00:00", "Z")
    shown: dict[str, Any] = {
        "type": "model",
        "id": listed.id,
        "display_name": listed.display_name,
        "created_at": made,
        "lifecycle": "active",
    }
    if listed.max_input_tokens is not None:
        shown["max_input_tokens"] = listed.max_input_tokens
    return shown
