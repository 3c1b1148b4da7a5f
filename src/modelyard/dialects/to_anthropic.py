"""An OpenAI chat request as Anthropic's Messages API takes it, for remote upstreams.

Laws of this file:
- System and developer messages are joined and go first, as Anthropic's own OpenAI endpoint does it
  (platform.claude.com/docs/en/api/openai-sdk); everything else keeps its place. Neighbours of one
  role become one turn.
- What the API has no word for is refused if it changes the answer, and left out if it is a hint
  (`HINTS`). Unknown fields go on as they are, so `thinking`, `top_k` or `service_tier` of
  Anthropic's can be asked through OpenAI's clients.
- Reasoning of earlier turns stays behind: Anthropic takes it only with a signature, which OpenAI's
  messages cannot carry.
- `max_tokens` is required there; a request without one asks for DEFAULT_MAX_TOKENS.

The way back is `to_anthropic_reply`.

Source: https://platform.claude.com/docs/en/api/messages
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from modelyard.core.errors import InvalidRequest
from modelyard.dialects.base import refused
from modelyard.dialects.to_anthropic_reply import Reply

__all__ = ["DEFAULT_MAX_TOKENS", "HINTS", "PATH", "VERSION", "Reply", "reply_to", "request"]

PATH: Final = "/v1/messages"
"""The upstream's route."""
VERSION: Final = "2023-06-01"
"""What the header `anthropic-version` has to say with these requests."""
DEFAULT_MAX_TOKENS: Final = 4096
"""What every model of Anthropic can write; OpenAI's clients need not say how much they want."""

HINTS: Final[Mapping[str, str]] = {
    "stream_options": "usage is always told; `Reply` knows who wants to see it",
    "store": "nothing is stored",
    "metadata": "for OpenAI's own records",
    "user": "sent as metadata.user_id",
    "safety_identifier": "for OpenAI's own records",
    "prompt_cache_key": "where OpenAI looks for a cached prompt",
    "prompt_cache_retention": "how long OpenAI keeps a cached prompt",
    "prediction": "only makes an answer come sooner",
    "seed": "best effort by its own definition, and not to be had here",
    "verbosity": "how wordy OpenAI's models are by nature",
    "parallel_tool_calls": "said within tool_choice",
    "continue_final_message": "a last message of the assistant's is always gone on with",
    "add_generation_prompt": "a last message of the assistant's is always gone on with",
    "thinking_budget_tokens": "how much llama.cpp may think; `effort` is the word there",
}
"""Fields that are left out or said elsewhere, and why that changes no answer."""

_NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "modalities": (["text"],),
    "audio": (),
    "functions": ([],),
    "function_call": (),
    "web_search_options": (),
}
"""Fields without an equal there, and the values of them that ask for nothing. So does null."""

_EFFORTS: Final = {"minimal": "low"}
_DATA: Final = "data:"
_PDF: Final = "application/pdf"


class _Request(msgspec.Struct):
    """What is said differently there."""

    model: str = ""
    stream: bool | None = None
    messages: list[dict[str, Any]] = []
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: str | list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    user: str | None = None
    stream_options: dict[str, Any] | None = None


_decode = msgspec.json.Decoder(_Request).decode
_decode_fields = msgspec.json.Decoder(dict[str, Any]).decode
_KNOWN: Final = frozenset(_Request.__struct_fields__) - {"model", "stream"}


def request(body: bytes) -> bytes:
    """The Messages request that asks the same as this chat request.

    Raises InvalidRequest for what is no chat request and for what cannot be asked there.
    """
    asked, fields = _read(body)
    for name, neutral in _NEUTRAL.items():
        value = fields.get(name)
        if value is not None and value not in neutral:
            raise refused(f"Anthropic's API has nothing like {name}", param=name)
    kept = {
        name: value
        for name, value in fields.items()
        if value is not None and name not in _KNOWN and name not in HINTS and name not in _NEUTRAL
    }
    system, turns = _conversation(asked.messages)
    limit = asked.max_completion_tokens or asked.max_tokens or DEFAULT_MAX_TOKENS
    said: dict[str, Any] = {"max_tokens": limit, "messages": turns}
    if system:
        said["system"] = system
    if asked.stop:
        said["stop_sequences"] = [asked.stop] if isinstance(asked.stop, str) else asked.stop
    if asked.tools:
        said["tools"] = [_tool(tool, at) for at, tool in enumerate(asked.tools)]
    choice = _choice(asked)
    if choice is not None:
        said["tool_choice"] = choice
    if asked.user:
        said["metadata"] = {"user_id": asked.user}
    return msgspec.json.encode(kept | said | _output(asked) | _thinking(asked, fields))


def reply_to(body: bytes, created: int = 0) -> Reply:
    """What turns the answer to such a request back; `body` is the chat request, `created` the
    moment that the answer shall carry, in seconds since the epoch. Raises InvalidRequest.
    """
    asked, _ = _read(body)
    wants_usage = bool((asked.stream_options or {}).get("include_usage"))
    return Reply(asked.model, created=created, wants_usage=wants_usage)


def _read(body: bytes) -> tuple[_Request, dict[str, Any]]:
    try:
        return _decode(body), _decode_fields(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the request body is no chat request: {error}") from None


# ------------------------------------------------------------------------------------- conversation


def _conversation(messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """The system prompt and the turns. Raises InvalidRequest."""
    system: list[str] = []
    turns: list[dict[str, Any]] = []
    for at, message in enumerate(messages):
        where = f"messages[{at}]"
        role = message.get("role")
        if role in ("system", "developer"):
            system += [_text(part, where) for part in _parts(message.get("content"), where)]
        elif role == "user":
            _add(turns, "user", _parts(message.get("content"), where))
        elif role == "assistant":
            _add(turns, "assistant", _said(message, where))
        elif role == "tool":
            _add(turns, "user", [_result(message, where)])
        else:
            raise refused(
                f"{where}: there is no role {role!r} in Anthropic's API", param=f"{where}.role"
            )
    return "\n".join(system), turns


def _text(part: Mapping[str, Any], where: str) -> str:
    if part["type"] != "text":
        raise refused(f"{where}: a system message is text there", param=where)
    return str(part["text"])


def _add(turns: list[dict[str, Any]], role: str, blocks: list[dict[str, Any]]) -> None:
    if turns and turns[-1]["role"] == role:
        turns[-1]["content"] += blocks
    elif blocks:
        turns.append({"role": role, "content": blocks})


def _said(message: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """What an assistant's message says and calls."""
    blocks = _parts(message.get("content"), where)
    for call in message.get("tool_calls") or ():
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise refused(f"{where}: only calls of functions can be sent there", param=where)
        blocks.append(
            {
                "type": "tool_use",
                "id": call.get("id", ""),
                "name": function.get("name", ""),
                "input": _arguments(function.get("arguments"), where),
            }
        )
    return blocks


def _arguments(text: object, where: str) -> dict[str, Any]:
    """The arguments of a call as an object: there they are no text."""
    if not text:
        return {}
    try:
        return _decode_fields(str(text))
    except msgspec.DecodeError as error:
        raise refused(
            f"{where}: the arguments of a call are no JSON object: {error}", param=where
        ) from None


def _result(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    parts = _parts(message.get("content"), where)
    only = parts[0].get("text") if len(parts) == 1 else None
    return {
        "type": "tool_result",
        "tool_use_id": message.get("tool_call_id", ""),
        "content": parts if only is None else only,
    }


def _parts(content: object, where: str) -> list[dict[str, Any]]:
    """A message's content as blocks. Empty texts are left out: the API refuses them."""
    if content is None or content == "":
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise refused(f"{where}.content is neither text nor parts", param=f"{where}.content")
    blocks = [_part(part, f"{where}.content[{at}]") for at, part in enumerate(content)]
    return [block for block in blocks if block.get("text") != ""]


def _part(part: object, where: str) -> dict[str, Any]:
    match part:
        case {"type": "text", "text": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "refusal", "refusal": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            return {"type": "image", "source": _source(url)}
        case {"type": "file", "file": {"file_data": str(url)}} if url.startswith(_DATA + _PDF):
            return {"type": "document", "source": _source(url)}
    kind = part.get("type") if isinstance(part, dict) else part
    raise refused(f"{where}: a part {kind!r} cannot be sent to Anthropic's API", param=where)


def _source(url: str) -> dict[str, Any]:
    if not url.startswith(_DATA):
        return {"type": "url", "url": url}
    head, _, data = url.removeprefix(_DATA).partition(",")
    return {"type": "base64", "media_type": head.partition(";")[0], "data": data}


# ------------------------------------------------------------------------------------------ options


def _tool(tool: Mapping[str, Any], at: int) -> dict[str, Any]:
    match tool:
        case {"type": "function", "function": {"name": str(name), **function}}:
            schema = function.get("parameters") or {"type": "object", "properties": {}}
            shown = {"name": name, "input_schema": schema}
            for key in ("description", "strict"):
                if function.get(key) is not None:
                    shown[key] = function[key]
            return shown
    where = f"tools[{at}]"
    raise refused(f"{where}: only functions can be sent to Anthropic's API", param=where)


def _choice(asked: _Request) -> dict[str, Any] | None:
    """Which tools may or must be called."""
    match asked.tool_choice:
        case None | "auto":
            choice = {"type": "auto"}
        case "required":
            choice = {"type": "any"}
        case "none":
            return {"type": "none"}
        case {"type": "function", "function": {"name": str(name)}}:
            choice = {"type": "tool", "name": name}
        case other:
            raise refused(f"tool_choice {other!r} cannot be asked there", param="tool_choice")
    if asked.parallel_tool_calls is False and asked.tools:
        return {**choice, "disable_parallel_tool_use": True}
    return choice if asked.tool_choice is not None else None


def _output(asked: _Request) -> dict[str, Any]:
    """How hard the model thinks and which form its answer has."""
    config: dict[str, Any] = {}
    effort = asked.reasoning_effort
    if effort and effort != "none":
        config["effort"] = _EFFORTS.get(effort, effort)
    match asked.response_format:
        case None | {"type": "text"}:
            pass
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            config["format"] = {"type": "json_schema", "schema": schema}
        case _:
            raise refused(
                "Anthropic's API writes JSON by a schema only",
                param="response_format",
                hint="use the type json_schema",
            )
    return {"output_config": config} if config else {}


def _thinking(asked: _Request, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the model thinks aloud; what the client says in Anthropic's own words comes first."""
    kwargs = dict(asked.chat_template_kwargs or {})
    wanted = kwargs.pop("enable_thinking", None)
    kwargs.pop("reasoning_effort", None)
    if kwargs:
        names = ", ".join(sorted(kwargs))
        raise refused(f"there is no template that takes {names}", param="chat_template_kwargs")
    if fields.get("thinking") is not None:
        return {}
    if wanted is False or asked.reasoning_effort == "none":
        return {"thinking": {"type": "disabled"}}
    return {"thinking": {"type": "adaptive"}} if wanted is True else {}
