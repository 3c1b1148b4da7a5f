"""The tools of a Responses request as functions of a chat, and the way back.

Laws of this file:
- Engines know functions only. A custom tool becomes a function of one string, `input`; a search for
  tools that the client does becomes a function `tool_search`; the tools of a namespace get its name
  in front, as `namespace__tool`. `Toolbox.called` knows who was meant.
- Tools may also stand in the input, where a client adds or has found some; they are offered, too.
- Tools that run on OpenAI's servers do not run here. Where a model may do without (`DROPPED`) they
  are not offered, and are missing from the `tools` of the answer; what they would have shown the
  model (`NOT_HERE`) cannot be left out, so those are refused.

Sources: https://platform.openai.com/docs/api-reference/responses/create (tools, tool_choice);
openai/codex, codex-rs/tools/src/tool_spec.rs and responses_api.rs: Codex offers `function`,
`custom`, `namespace`, `tool_search` and, unless told otherwise, `web_search`. llama.cpp leaves out
what is no function (ggml-org/llama.cpp#23041).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

import msgspec

from modelyard.core.errors import InvalidRequest
from modelyard.dialects.base import refused

DROPPED: Final[Mapping[str, str]] = {
    "web_search": "the model answers without looking at the web",
    "web_search_2025_08_26": "an older name of the same",
    "web_search_preview": "an older name of the same",
    "web_search_preview_2025_03_11": "an older name of the same",
    "image_generation": "the model answers in words",
}
"""Hosted tools that a model may always do without, and what it does then."""

NOT_HERE: Final = frozenset(
    {
        "apply_patch",
        "code_interpreter",
        "computer",
        "computer_use",
        "computer_use_preview",
        "file_search",
        "local_shell",
        "mcp",
        "programmatic_tool_calling",
        "shell",
    }
)
"""Tools of OpenAI's that no engine here has."""

INPUT: Final = "input"
"""The one parameter of a function that stands for a custom tool."""
SEARCH: Final = "tool_search"

Kind = Literal["function", "custom", "tool_search"]


@dataclass(frozen=True, slots=True)
class Called:
    """The tool that a client knows."""

    name: str
    namespace: str | None = None
    kind: Kind = "function"

    @property
    def function(self) -> str:
        """Its name as an engine knows it."""
        return function_name(self.name, self.namespace)


def function_name(name: str, namespace: str | None) -> str:
    """A tool's name as an engine knows it."""
    if not namespace:
        return name
    return f"{namespace}{name}" if namespace.endswith("__") else f"{namespace}__{name}"


@dataclass(frozen=True, slots=True)
class Toolbox:
    """What one request offers its model."""

    functions: list[dict[str, Any]] = field(default_factory=list)
    """For the engine, in the shape of chat completions."""
    offered: list[dict[str, Any]] = field(default_factory=list)
    """What of the client's `tools` the model is offered, as the client wrote it."""
    choice: Any = None
    """The engine's `tool_choice`; None to leave it out."""
    by_function: Mapping[str, Called] = field(default_factory=dict)

    def called(self, function: str) -> Called:
        """Who is meant by the name a model calls. One that it made up is passed on."""
        return self.by_function.get(function) or Called(function)


class _Function(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Format(msgspec.Struct):
    type: str = "text"
    syntax: str | None = None
    definition: str | None = None


class _Custom(msgspec.Struct):
    name: str
    description: str | None = None
    format: _Format | None = None


class _Search(msgspec.Struct):
    description: str | None = None
    parameters: dict[str, Any] | None = None


class _Namespace(msgspec.Struct):
    name: str
    tools: list[dict[str, Any]]


class _Choice(msgspec.Struct):
    type: str = "function"
    name: str | None = None
    namespace: str | None = None
    mode: str = "auto"
    tools: list[_Choice] = []


_T = TypeVar("_T")


def read_tools(tools: Any, choice: Any, later: Sequence[tuple[str, Any]] = ()) -> Toolbox:
    """The `tools` and `tool_choice` of a request; None where it has none. Raises InvalidRequest.

    `later` are the tools in its input, each list with its place. Those may come more than once.
    """
    shelf = _Shelf()
    shelf.add([] if tools is None else tools, "tools", once=True)
    for where, more in later:
        shelf.add(more, where, once=False)
    return _chosen(Toolbox(shelf.functions, shelf.offered, None, shelf.by_function), choice)


class _Shelf:
    """Tools as they are read."""

    def __init__(self) -> None:
        self.functions: list[dict[str, Any]] = []
        self.offered: list[dict[str, Any]] = []
        self.by_function: dict[str, Called] = {}

    def add(self, tools: Any, where: str, *, once: bool) -> None:
        """Put these tools to the others; `once` refuses a name that is there already."""
        for index, tool in enumerate(read_as(tools, list[dict[str, Any]], where)):
            place = f"{where}[{index}]"
            found = _functions_of(tool, place)
            if found:
                self.offered.append(tool)
            for called, function in found:
                name = called.function
                if name not in self.by_function:
                    self.by_function[name] = called
                    self.functions.append(function)
                elif once:
                    raise refused(f"two tools are called {name!r}", param=place)


def arguments_of(custom_input: str) -> str:
    """What a function that stands for a custom tool is called with, as JSON."""
    return msgspec.json.encode({INPUT: custom_input}).decode()


def custom_input_of(arguments: str) -> str:
    """What a custom tool gets; the arguments as they are if the model did not keep to the form."""
    try:
        read = msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        return arguments
    if isinstance(read, dict) and isinstance(read.get(INPUT), str):
        return str(read[INPUT])
    return arguments


def _functions_of(tool: dict[str, Any], where: str) -> list[tuple[Called, dict[str, Any]]]:
    kind = str(tool.get("type"))
    match kind:
        case "function":
            return [_function(read_as(tool, _Function, where), None)]
        case "custom":
            return [_custom(read_as(tool, _Custom, where), None)]
        case "namespace":
            return _namespace(read_as(tool, _Namespace, where), where)
        case "tool_search" if tool.get("execution") == "client":
            return [_search(read_as(tool, _Search, where))]
    if kind in DROPPED:
        return []
    known = kind in NOT_HERE or kind == SEARCH
    what = f"the tool {kind!r} is not here" if known else f"{kind!r} is no kind of tool known here"
    raise refused(what, param=where, hint="models are offered functions and custom tools")


def _namespace(namespace: _Namespace, where: str) -> list[tuple[Called, dict[str, Any]]]:
    found = []
    for index, tool in enumerate(namespace.tools):
        inside = f"{where}.tools[{index}]"
        match str(tool.get("type")):
            case "function":
                found.append(_function(read_as(tool, _Function, inside), namespace.name))
            case "custom":
                found.append(_custom(read_as(tool, _Custom, inside), namespace.name))
            case kind if kind not in DROPPED:
                raise refused(f"the tool {kind!r} is not here", param=inside)
    return found


def _function(tool: _Function, namespace: str | None) -> tuple[Called, dict[str, Any]]:
    called = Called(tool.name, namespace)
    # A function without parameters is one that takes none; some engines want the schema anyway.
    parameters = tool.parameters or {"type": "object", "properties": {}}
    function: dict[str, Any] = {"name": called.function, "parameters": parameters}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return called, {"type": "function", "function": function}


def _search(tool: _Search) -> tuple[Called, dict[str, Any]]:
    _, function = _function(_Function(SEARCH, tool.description, tool.parameters), None)
    return Called(SEARCH, None, "tool_search"), function


def _custom(tool: _Custom, namespace: str | None) -> tuple[Called, dict[str, Any]]:
    called = Called(tool.name, namespace, "custom")
    said = [tool.description] if tool.description else []
    form = tool.format
    if form is not None and form.definition:
        said.append(
            f"`{INPUT}` follows this {form.syntax or form.type} grammar:\n{form.definition}"
        )
    parameters = {
        "type": "object",
        "properties": {INPUT: {"type": "string", "description": "The whole input, as it is."}},
        "required": [INPUT],
        "additionalProperties": False,
    }
    function = {
        "name": called.function,
        "description": "\n\n".join(said),
        "parameters": parameters,
    }
    return called, {"type": "function", "function": function}


def _chosen(box: Toolbox, choice: Any) -> Toolbox:
    if choice is None or isinstance(choice, str):
        return _with_mode(box, choice)
    read = read_as(choice, _Choice, "tool_choice")
    if read.type == "allowed_tools":
        return _allowed(box, read)
    if read.type not in ("function", "custom"):
        raise refused(f"the tool {read.type!r} cannot be chosen here", param="tool_choice")
    name = _offered(box, read.name, read.namespace, "tool_choice")
    return _with_choice(box, {"type": "function", "function": {"name": name}})


def _with_mode(box: Toolbox, mode: str | None) -> Toolbox:
    if mode not in (None, "auto", "none", "required"):
        raise refused(f"{mode!r} is none of auto, none, required", param="tool_choice")
    if box.functions:
        return _with_choice(box, mode)
    if mode == "required":
        raise refused("a tool is required and none is offered", param="tool_choice")
    return box  # engines refuse a choice among no tools


def _with_choice(box: Toolbox, choice: Any) -> Toolbox:
    return Toolbox(box.functions, box.offered, choice, box.by_function)


def _allowed(box: Toolbox, choice: _Choice) -> Toolbox:
    names = {
        _offered(box, tool.name, tool.namespace, "tool_choice.tools")
        for tool in choice.tools
        if tool.type not in DROPPED
    }
    functions = [each for each in box.functions if each["function"]["name"] in names]
    return _with_mode(Toolbox(functions, box.offered, None, box.by_function), choice.mode)


def _offered(box: Toolbox, name: str | None, namespace: str | None, where: str) -> str:
    function = function_name(name or "", namespace)
    if function not in box.by_function:
        raise refused(f"no tool is called {function!r}", param=where)
    return function


def read_as(value: Any, shape: type[_T], where: str) -> _T:
    """A part of a request in its shape. Raises InvalidRequest, which names the place."""
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"`{where}` is not what it should be: {error}", param=where) from None
