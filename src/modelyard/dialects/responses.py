"""OpenAI's Responses as requests for chat completions, and back.

Laws of this file:
- Nothing is stored: every request brings its whole conversation, `store` in an answer is false, and
  what refers to something stored is refused.
- A field that is null counts as absent. What is not known goes on to the engine as it is, unless it
  is chat's own word for something that Responses says otherwise.
- What cannot be done is refused; only wishes that change no answer are ignored (`IGNORED`).

Sources: https://platform.openai.com/docs/api-reference/responses/create and the types of
openai-python; vLLM, llama.cpp and Ollama are stateless in the same way (Ollama's
docs/api/openai-compatibility, ggml-org/llama.cpp tools/server/README.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from modelyard.core.errors import InvalidRequest
from modelyard.dialects import openai, tokens
from modelyard.dialects.base import Asked, Dialect, WholeReply, refused
from modelyard.dialects.responses_input import to_messages, tools_within
from modelyard.dialects.responses_reply import ResponsesReply
from modelyard.dialects.responses_tools import Toolbox, read_tools

IGNORED: Final[Mapping[str, str]] = {
    "access_programs": "a right at OpenAI",
    "client_metadata": "what Codex says of itself",
    "image": "how OpenAI packs images",
    "max_tool_calls": "it bounds tools that OpenAI runs; none run here",
    "metadata": "it is repeated in the answer",
    "prompt_cache_key": "engines find common beginnings by themselves",
    "prompt_cache_options": "as above",
    "prompt_cache_retention": "as above",
    "safety_identifier": "who asks is OpenAI's question",
    "service_tier": "there is one",
    "store": "nothing is stored, and the answer says so",
    "stream_options": "they pad OpenAI's events",
    "truncation": "an input that is too long is refused by the engine, never cut",
    "user": "who asks is OpenAI's question",
}
"""Fields of a request that change no answer here, and why."""

REFUSED: Final[Mapping[str, str]] = {
    "background": "answers are given at once and not kept",
    "context_management": "conversations are not compacted here",
    "conversation": "no conversations are kept here; send the whole input",
    "moderation": "nothing is moderated here",
    "previous_response_id": "no responses are stored here; send the whole input",
    "prompt": "no prompts are stored here; send instructions and input",
}
"""Fields that would change an answer and cannot be honoured."""

CHAT_WORDS: Final[Mapping[str, str]] = {
    "function_call": "tool_choice",
    "functions": "tools",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
}
"""Chat's words for what Responses says otherwise."""

_LOGPROBS: Final = "message.output_text.logprobs"
_ENCRYPTED: Final = "reasoning.encrypted_content"


class _Format(msgspec.Struct):
    type: str
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class _Text(msgspec.Struct):
    format: _Format | None = None
    verbosity: str | None = None


class _Reasoning(msgspec.Struct):
    effort: str | None = None
    summary: str | None = None
    """Ignored: reasoning is given as it is, not in summary."""


class _Request(msgspec.Struct):
    """What is translated; the rest passes."""

    input: Any = None
    instructions: str | None = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: _Text | None = None
    reasoning: _Reasoning | None = None
    max_output_tokens: int | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    metadata: dict[str, str] | None = None


DIALECT: Final = Dialect("responses", openai.error)
"""Error answers are OpenAI's; errors within a stream are the reply's."""


def translate(body: bytes) -> Asked:
    """`POST /v1/responses`. Raises InvalidRequest."""
    try:
        return _translated(body)
    except RecursionError:
        raise InvalidRequest("the request body is nested too deeply") from None


def _translated(body: bytes) -> Asked:
    fields = _fields(body)
    asked = _asked(fields)
    tools = read_tools(asked.tools, asked.tool_choice, tuple(tools_within(asked.input)))
    wanted = _passed(fields) | _parameters(asked, tools)
    wanted["messages"] = _messages(asked)
    reply = ResponsesReply(
        _repeated(fields, asked, tools),
        str(fields.get("model") or ""),
        tools,
        fallback_id=hashlib.sha256(body).hexdigest()[:32],
        wraps_reasoning=_ENCRYPTED in (asked.include or ()),
    )
    return Asked(msgspec.json.encode(wanted), reply)


def count(body: bytes) -> Asked:
    """`POST /v1/responses/input_tokens`: how long the input of the same request is.

    The engine is asked at `tokens.COUNT_PATH`. Raises InvalidRequest.
    """
    chat = msgspec.json.decode(translate(body).body, type=dict[str, Any])
    return Asked(tokens.question(chat), WholeReply(_counted, openai.error))


def _counted(answer: bytes) -> bytes:
    counted = tokens.counted(answer)
    return msgspec.json.encode({"object": "response.input_tokens", "input_tokens": counted})


def _fields(body: bytes) -> dict[str, Any]:
    try:
        fields = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.ValidationError:
        raise InvalidRequest("the request body is not a JSON object") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the request body is not valid JSON: {error}") from None
    return {name: value for name, value in fields.items() if value is not None}


def _asked(fields: Mapping[str, Any]) -> _Request:
    for name, why in REFUSED.items():
        if fields.get(name):
            raise refused(f"`{name}` cannot be honoured: {why}", param=name)
    for name, meant in CHAT_WORDS.items():
        if name in fields:
            raise refused(
                f"`{name}` belongs to /v1/chat/completions", param=name, hint=f"say `{meant}` here"
            )
    if fields.get("n", 1) != 1:
        raise refused("a response has one answer", param="n")
    try:
        return msgspec.convert(fields, _Request)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the request is not what this route expects: {error}") from None


def _messages(asked: _Request) -> list[dict[str, Any]]:
    messages = [] if asked.input is None else to_messages(asked.instructions, asked.input)
    if not messages:
        raise refused("there is no input", param="input")
    return messages


def _passed(fields: Mapping[str, Any]) -> dict[str, Any]:
    known = {*_Request.__struct_fields__, *IGNORED, *REFUSED}
    return {name: value for name, value in fields.items() if name not in known}


def _parameters(asked: _Request, tools: Toolbox) -> dict[str, Any]:
    """Everything but the words, in chat's terms."""
    wanted: dict[str, Any] = {}
    if tools.functions:
        wanted["tools"] = tools.functions
        if tools.choice is not None:
            wanted["tool_choice"] = tools.choice
        if asked.parallel_tool_calls is not None:
            wanted["parallel_tool_calls"] = asked.parallel_tool_calls
    if asked.max_output_tokens is not None:
        wanted["max_tokens"] = asked.max_output_tokens
    if asked.reasoning is not None and asked.reasoning.effort is not None:
        wanted["reasoning_effort"] = asked.reasoning.effort
    if asked.top_logprobs or _LOGPROBS in (asked.include or ()):
        wanted["logprobs"] = True
        wanted["top_logprobs"] = asked.top_logprobs or 0
    return wanted | _text_parameters(asked.text or _Text())


def _text_parameters(text: _Text) -> dict[str, Any]:
    wanted: dict[str, Any] = {}
    if text.verbosity is not None:
        wanted["verbosity"] = text.verbosity
    form = text.format
    match form.type if form is not None else "text":
        case "text":
            return wanted
        case "json_object":
            return wanted | {"response_format": {"type": "json_object"}}
        case "json_schema" if form is not None and form.schema is not None:
            schema: dict[str, Any] = {"name": form.name or "answer", "schema": form.schema}
            optional = {"strict": form.strict, "description": form.description}
            schema |= {name: value for name, value in optional.items() if value is not None}
            return wanted | {"response_format": {"type": "json_schema", "json_schema": schema}}
        case "json_schema":
            raise refused("a format of type json_schema needs a `schema`", param="text.format")
        case kind:
            raise refused(f"no engine writes the format {kind!r}", param="text.format")


def _repeated(
    fields: Mapping[str, Any], asked: _Request, tools: Toolbox
) -> Mapping[str, msgspec.Raw]:
    """What a response says of its request, encoded once for all the events that hold it."""
    form = fields.get("text", {}).get("format") or {"type": "text"}
    repeated: dict[str, Any] = {
        "background": False,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "max_tool_calls": fields.get("max_tool_calls"),
        "metadata": asked.metadata or {},
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "previous_response_id": None,
        "prompt_cache_key": fields.get("prompt_cache_key"),
        "reasoning": {"effort": None, "summary": None} | fields.get("reasoning", {}),
        "safety_identifier": fields.get("safety_identifier"),
        "service_tier": "default",
        "store": False,
        "temperature": fields.get("temperature"),
        "text": fields.get("text", {}) | {"format": form},
        "tool_choice": fields.get("tool_choice", "auto"),
        "tools": tools.offered,
        "top_logprobs": asked.top_logprobs or 0,
        "top_p": fields.get("top_p"),
        "truncation": "disabled",
        "user": fields.get("user"),
    }
    return {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in repeated.items()}
