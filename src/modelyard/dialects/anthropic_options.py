"""What a Messages request asks beside its messages, as OpenAI says it.

Laws of this file:
- What would change the answer and cannot be had is refused; what is a mere hint is left out, and
  `HINTS` says why. Unknown fields go on to the engine as they are.
- Tools that Anthropic itself runs (web search, code execution) or has a schema of its own for are
  refused: no other model knows them.

Source: https://platform.claude.com/docs/en/api/messages
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from modelyard.dialects.base import refused

HINTS: Final[Mapping[str, str]] = {
    "cache_control": "engines find a cached beginning by themselves",
    "context_management": "allows to forget; nothing is forgotten here",
    "diagnostics": "asks why a cache was missed",
    "inference_geo": "it is computed where the model is",
    "metadata": "who asks is no business of the engine's",
    "service_tier": "there is one",
    "speed": "there is one",
    "user_profile_id": "who asks is no business of the engine's",
    "workspace_id": "for Anthropic's own records",
}
"""Fields of a request that are left out, and why that changes no answer."""

REFUSED: Final[Mapping[str, str]] = {
    "container": "there is no container to run code in",
    "mcp_servers": "tools of MCP servers are called by the client, not here",
    "n": "an answer is one message",
}
"""Fields that no engine can honour, and why. Null and empty ask for nothing."""

_TOOL_HINTS: Final = frozenset(
    {"cache_control", "eager_input_streaming", "defer_loading", "allowed_callers"}
)
"""Of a tool: when its description or its input is sent. Every tool is shown from the beginning, and
only the model calls it."""


class Tool(msgspec.Struct):
    name: str
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class ToolChoice(msgspec.Struct):
    type: str
    name: str = ""
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct):
    type: str
    budget_tokens: int | None = None


class Format(msgspec.Struct):
    type: str
    schema: dict[str, Any] | None = None


class OutputConfig(msgspec.Struct):
    effort: str | None = None
    format: Format | None = None


_TOOL_FIELDS: Final = frozenset(Tool.__struct_fields__)


def tools(given: Sequence[Tool], fields: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Functions; `fields` are the same tools as they came. Raises InvalidRequest."""
    shown = []
    for at, (tool, came) in enumerate(zip(given, fields, strict=True)):
        if tool.type not in (None, "custom"):
            raise refused(
                f"tools.{at}: the tool {tool.type!r} is one that only Anthropic's own models and "
                "servers know",
                param=f"tools.{at}.type",
                hint="describe it as a tool of your own, with an input_schema",
            )
        function: dict[str, Any] = {
            name: value
            for name, value in came.items()
            if name not in _TOOL_FIELDS and name not in _TOOL_HINTS
        }
        function["name"] = tool.name
        if tool.description is not None:
            function["description"] = tool.description
        function["parameters"] = tool.input_schema or {"type": "object", "properties": {}}
        if tool.strict is not None:
            function["strict"] = tool.strict
        shown.append({"type": "function", "function": function})
    return shown


def tool_choice(given: ToolChoice) -> dict[str, Any]:
    """Which tools may or must be called, and whether several at once. Raises InvalidRequest."""
    choice: str | dict[str, Any]
    match given.type:
        case "auto" | "none":
            choice = given.type
        case "any":
            choice = "required"
        case "tool" if given.name:
            choice = {"type": "function", "function": {"name": given.name}}
        case _:
            raise refused(
                f"tool_choice.type: {given.type!r} is not one of auto, any, tool (with a name), "
                "none",
                param="tool_choice",
            )
    one = {"parallel_tool_calls": False} if given.disable_parallel_tool_use else {}
    return {"tool_choice": choice, **one}


def thinking(given: Thinking) -> dict[str, Any]:
    """Whether the model thinks aloud. Raises InvalidRequest.

    Templates that can switch it read `enable_thinking` (Qwen, GLM); of the engines, llama.cpp
    bounds it by `thinking_budget_tokens`. Thinking that is `adaptive` is left to the model and its
    template.
    """
    match given.type:
        case "enabled":
            bound = (
                {}
                if given.budget_tokens is None
                else {"thinking_budget_tokens": given.budget_tokens}
            )
            return {"chat_template_kwargs": {"enable_thinking": True}, **bound}
        case "disabled":
            return {"chat_template_kwargs": {"enable_thinking": False}}
        case "adaptive" | "between_tools":
            return {}
    raise refused(
        f"thinking.type: {given.type!r} is not one of enabled, disabled, adaptive, between_tools",
        param="thinking",
    )


def output(given: OutputConfig) -> dict[str, Any]:
    """How hard the model thinks, and which form its answer has. Raises InvalidRequest."""
    said: dict[str, Any] = {}
    if given.effort is not None:
        said["reasoning_effort"] = given.effort
    if given.format is not None:
        said |= answer_format(given.format)
    return said


def answer_format(given: Format) -> dict[str, Any]:
    """The form of the answer. Raises InvalidRequest."""
    if given.type != "json_schema" or given.schema is None:
        raise refused(
            f"output_config.format: {given.type!r} is not a json_schema with its schema",
            param="output_config.format",
        )
    form = {"name": "answer", "schema": given.schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": form}}
