"""The input of a Responses request as the messages of a chat.

Laws of this file:
- Everything a system or developer says becomes the first message, in its order: the templates of
  many models take one system message and only at the beginning (Qwen raises otherwise).
- What one answer said comes back as one assistant message: reasoning, words and calls that follow
  each other belong together, as they did when they were answered.
- Reasoning goes back to the engine as `reasoning_content`. What another server encrypted is left
  out, because nobody here can read it; an item that a server stores cannot be asked for.
- An item or a part that is not known is refused with its place, never left out.

Sources: https://platform.openai.com/docs/api-reference/responses/create (input);
openai/codex, codex-rs/protocol/src/models.rs (ResponseItem), what Codex sends again.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from modelyard.dialects.base import refused
from modelyard.dialects.responses_tools import SEARCH, arguments_of, function_name, read_as

_MARK: Final = "modelyard1."
"""What reasoning begins with that this server wrapped."""

_WITH_TOOLS: Final = frozenset({"additional_tools", "tool_search_output"})
_TEXT_PARTS: Final = frozenset({"input_text", "output_text", "text", "summary_text"})


def wrapped(reasoning: str) -> str:
    """Reasoning as the `encrypted_content` of an item, for clients that send it back to its server.

    It is not secret: the client has just read the same words. It is how clients that keep no plain
    reasoning, like Codex, give a model its own thoughts back while it works with tools.
    """
    return _MARK + base64.urlsafe_b64encode(reasoning.encode()).decode()


def unwrapped(content: str) -> str | None:
    """The reasoning in an `encrypted_content`; None if another server wrote it."""
    if not content.startswith(_MARK):
        return None
    try:
        return base64.b64decode(content[len(_MARK) :], altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None


class _Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]] | None = None


class _Reasoning(msgspec.Struct):
    content: list[dict[str, Any]] | None = None
    encrypted_content: str | None = None


class _Call(msgspec.Struct):
    call_id: str
    name: str
    namespace: str | None = None
    arguments: str = ""
    input: str = ""


class _Output(msgspec.Struct):
    call_id: str
    output: str | list[dict[str, Any]]


class _Search(msgspec.Struct):
    call_id: str
    arguments: Any = None


class _Found(msgspec.Struct):
    call_id: str
    tools: list[dict[str, Any]]


def to_messages(instructions: str | None, given: Any) -> list[dict[str, Any]]:
    """The messages of a chat from `instructions` and `input`. Raises InvalidRequest."""
    conversation = _Conversation(instructions)
    if isinstance(given, str):
        conversation.add({"role": "user", "content": given})
    else:
        for index, item in enumerate(read_as(given, list[dict[str, Any]], "input")):
            _add(conversation, item, f"input[{index}]")
    return conversation.messages()


def tools_within(given: Any) -> Iterator[tuple[str, Any]]:
    """The tools that stand in an input, each list with its place."""
    for index, item in enumerate(given if isinstance(given, list) else ()):
        if isinstance(item, dict) and str(item.get("type")) in _WITH_TOOLS:
            yield f"input[{index}].tools", item.get("tools")


class _Conversation:
    """Messages in the making."""

    def __init__(self, instructions: str | None) -> None:
        self._system = [instructions] if instructions else []
        self._messages: list[dict[str, Any]] = []
        self._answer: dict[str, Any] | None = None
        """The assistant message that what follows may still belong to."""

    def messages(self) -> list[dict[str, Any]]:
        if not self._system:
            return self._messages
        return [{"role": "system", "content": "\n\n".join(self._system)}, *self._messages]

    def add(self, message: dict[str, Any]) -> None:
        self._answer = None
        self._messages.append(message)

    def instruct(self, text: str) -> None:
        self._answer = None
        self._system.append(text)

    def reason(self, text: str) -> None:
        # Reasoning comes first in an answer, so it begins one.
        self._answer = {"role": "assistant", "content": None, "reasoning_content": text}
        self._messages.append(self._answer)

    def say(self, text: str) -> None:
        answer = self._answer
        if answer is None or answer["content"] is not None:
            self._begin()["content"] = text
        else:
            answer["content"] = text

    def call(self, call: dict[str, Any]) -> None:
        answer = self._answer if self._answer is not None else self._begin()
        answer.setdefault("tool_calls", []).append(call)

    def _begin(self) -> dict[str, Any]:
        self._answer = {"role": "assistant", "content": None}
        self._messages.append(self._answer)
        return self._answer


def _add(conversation: _Conversation, item: dict[str, Any], where: str) -> None:
    match item.get("type", "message"):
        case "message":
            _add_message(conversation, read_as(item, _Message, where), where)
        case "reasoning":
            text = _reasoning(read_as(item, _Reasoning, where), where)
            if text:
                conversation.reason(text)
        case "function_call":
            call = read_as(item, _Call, where)
            conversation.call(_function_call(call, call.arguments))
        case "custom_tool_call":
            call = read_as(item, _Call, where)
            conversation.call(_function_call(call, arguments_of(call.input)))
        case "function_call_output" | "custom_tool_call_output":
            output = read_as(item, _Output, where)
            conversation.add(_result(output.call_id, _shown(output.output, f"{where}.output")))
        case "tool_search_call":
            search = read_as(item, _Search, where)
            arguments = msgspec.json.encode(search.arguments or {}).decode()
            conversation.call(_function_call(_Call(search.call_id, SEARCH), arguments))
        case "tool_search_output":
            found = read_as(item, _Found, where)
            conversation.add(_result(found.call_id, _names(found.tools)))
        case "additional_tools":
            pass  # `tools_within` has them
        case "item_reference":
            raise refused(
                "nothing is stored here that an item could refer to",
                param=where,
                hint="send the item itself",
            )
        case kind:
            raise refused(f"an item of type {kind!r} cannot be given to a model here", param=where)


def _add_message(conversation: _Conversation, message: _Message, where: str) -> None:
    place = f"{where}.content"
    match message.role:
        case "user":
            conversation.add({"role": "user", "content": _content(message.content, place)})
        case "assistant":
            conversation.say(_words(message.content, place, ""))
        case "system" | "developer":
            conversation.instruct(_words(message.content, place, "\n"))
        case role:
            raise refused(f"nobody speaks as {role!r}", param=f"{where}.role")


def _reasoning(item: _Reasoning, where: str) -> str | None:
    if item.content:
        return "".join(_text(part, f"{where}.content") for part in item.content)
    return unwrapped(item.encrypted_content or "")


def _result(call_id: str, content: str | list[dict[str, Any]]) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def _shown(output: str | list[dict[str, Any]], where: str) -> str | list[dict[str, Any]]:
    """What a tool gave. Texts are joined: templates take one text from a tool."""
    content = _content(output, where)
    if isinstance(content, str) or any(part["type"] != "text" for part in content):
        return content
    return "\n".join(str(part["text"]) for part in content)


def _names(tools: list[dict[str, Any]]) -> str:
    """The tools that a search has found, for the model; `read_tools` has seen their shape."""
    found = []
    for tool in tools:
        is_namespace = tool.get("type") == "namespace"
        for each in tool["tools"] if is_namespace else [tool]:
            name = function_name(str(each.get("name")), tool["name"] if is_namespace else None)
            found.append({"name": name, "description": each.get("description")})
    return msgspec.json.encode(found).decode()


def _function_call(call: _Call, arguments: str) -> dict[str, Any]:
    function = {"name": function_name(call.name, call.namespace), "arguments": arguments}
    return {"id": call.call_id, "type": "function", "function": function}


def _words(content: str | list[dict[str, Any]] | None, where: str, between: str) -> str:
    """What can only be text."""
    if content is None or isinstance(content, str):
        return content or ""
    return between.join(_text(part, f"{where}[{index}]") for index, part in enumerate(content))


def _text(part: dict[str, Any], where: str) -> str:
    kind = str(part.get("type"))
    name = "refusal" if kind == "refusal" else "text"
    text = part.get(name)
    if kind not in _TEXT_PARTS | {"refusal", "reasoning_text"} or not isinstance(text, str):
        raise refused(f"a part of type {kind!r} is not taken here", param=where)
    return text


def _content(content: str | list[dict[str, Any]] | None, where: str) -> str | list[dict[str, Any]]:
    """What may be more than text. A single text is said plainly: more templates take that."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = [_part(part, f"{where}[{index}]") for index, part in enumerate(content)]
    if len(parts) == 1 and parts[0]["type"] == "text":
        return str(parts[0]["text"])
    return parts


def _part(part: dict[str, Any], where: str) -> dict[str, Any]:
    match part.get("type"):
        case "input_image":
            return _image(part, where)
        case "input_audio":
            return {"type": "input_audio", "input_audio": part.get("input_audio")}
        case "input_file":
            return _file(part, where)
        case _:
            return {"type": "text", "text": _text(part, where)}


def _image(part: dict[str, Any], where: str) -> dict[str, Any]:
    url = part.get("image_url")
    if not isinstance(url, str):
        raise refused(
            "no files are kept here, so an image needs an `image_url`",
            param=where,
            hint="a data URL holds the image itself",
        )
    detail = part.get("detail")
    shown = {"url": url} if detail is None else {"url": url, "detail": detail}
    return {"type": "image_url", "image_url": shown}


def _file(part: dict[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(part.get("file_data"), str):
        raise refused(
            "no files are kept or fetched here, so a file needs its `file_data`", param=where
        )
    known = {name: part[name] for name in ("file_data", "filename") if part.get(name) is not None}
    return {"type": "file", "file": known}
