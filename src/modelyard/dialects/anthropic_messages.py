"""Anthropic's messages and system prompt as OpenAI's.

Laws of this file:
- Neighbouring turns of one role are one turn, as the API itself has it.
- Only what leads is a system prompt. Clients put further system messages between the turns (Claude
  Code does so with nearly every one); they become part of the user's words where they stand,
  because chat templates refuse a system message that is not the first, and because one that moves
  to the front would spoil the cached prompt.
- Results of tools are messages of their own and come first, straight after their calls; what else
  the turn says follows them. An image within a result follows too: engines take images from users.
- Texts of one message are joined by a line break, the way engines join them; those of an assistant
  without one, because they are pieces of one answer.
- Earlier thinking goes on as `reasoning_content`. What Anthropic encrypted (`redacted_thinking`)
  nobody else can read: it is left out.
- The words by which Claude Code accounts for itself (`x-anthropic-billing-header`) are left out:
  they change with every request and would spoil the cached prompt.

Source: https://platform.claude.com/docs/en/api/messages
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from modelyard.core.errors import InvalidRequest
from modelyard.dialects.base import refused

_JOINT: Final = "\n"
_ACCOUNT: Final = re.compile(r"x-anthropic-billing-header:(?:[ \t]*[\w-]+=[^;\s]*;?)*\s*")


class Source(msgspec.Struct):
    """Where an image or a document is."""

    type: str = ""
    media_type: str = ""
    data: str = ""
    url: str = ""
    content: str | list[Block] | None = None


class Citations(msgspec.Struct):
    enabled: bool | None = None


class Block(msgspec.Struct):
    """One piece of content, of any kind."""

    type: str
    text: str = ""
    thinking: str = ""
    source: Source | str | None = None
    title: str | None = None
    context: str | None = None
    citations: Citations | list[Any] | None = None
    id: str = ""
    name: str = ""
    input: dict[str, Any] | None = None
    tool_use_id: str = ""
    tool_name: str = ""
    content: str | list[Block] | None = None
    is_error: bool | None = None


class Aside(Block):
    """A text of the system's between the turns."""


class Message(msgspec.Struct):
    role: str
    content: str | list[Block]


def to_openai(
    system: str | Sequence[Block] | None, messages: Sequence[Message]
) -> list[dict[str, Any]]:
    """The conversation as OpenAI writes it. Raises InvalidRequest."""
    prompt = _system_texts(_blocks(system or ""), "system")
    at = 0
    while at < len(messages) and messages[at].role == "system":
        prompt += _system_texts(_blocks(messages[at].content), f"messages.{at}")
        at += 1
    shown: list[dict[str, Any]] = []
    if prompt:
        shown.append({"role": "system", "content": _JOINT.join(prompt)})
    for role, blocks, where in _turns(messages, at):
        if role == "assistant":
            shown.append(_assistant(blocks, where))
        else:
            shown += _user(blocks, where)
    return shown


def _blocks(content: str | Sequence[Block]) -> list[Block]:
    return [Block("text", text=content)] if isinstance(content, str) else list(content)


def _system_texts(blocks: Sequence[Block], where: str) -> list[str]:
    for block in blocks:
        if block.type != "text":
            raise _unknown(block, where)
    texts = [_without_account(block.text) for block in blocks]
    return [text for text in texts if text]


def _without_account(text: str) -> str:
    """A system prompt without the words by which Claude Code accounts for itself."""
    account = _ACCOUNT.match(text)
    return text if account is None else text[account.end() :]


def _turns(messages: Sequence[Message], start: int) -> list[tuple[str, list[Block], str]]:
    """Role, blocks and place of each turn, system messages being the user's."""
    turns: list[tuple[str, list[Block], str]] = []
    for at in range(start, len(messages)):
        role, where = messages[at].role, f"messages.{at}"
        blocks = _blocks(messages[at].content)
        if role == "system":
            texts = _system_texts(blocks, where)
            blocks = [Aside("text", text=text) for text in texts]
            role = "user"
            if not blocks:
                continue
        elif role not in ("user", "assistant"):
            raise refused(
                f"{where}.role: {role!r} is not one of user, assistant, system",
                param=f"{where}.role",
            )
        if turns and turns[-1][0] == role:
            turns[-1][1].extend(blocks)
        else:
            turns.append((role, blocks, where))
    return turns


def _assistant(blocks: Sequence[Block], where: str) -> dict[str, Any]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for block in blocks:
        match block.type:
            case "text":
                texts.append(block.text)
            case "thinking":
                thoughts.append(block.thinking)
            case "redacted_thinking":
                pass
            case "tool_use":
                arguments = msgspec.json.encode(block.input or {}).decode()
                function = {"name": block.name, "arguments": arguments}
                calls.append({"id": block.id, "type": "function", "function": function})
            case _:
                raise _unknown(block, where)
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if calls:
        message["content"] = message["content"] or None
        message["tool_calls"] = calls
    if any(thoughts):
        message["reasoning_content"] = "".join(thoughts)
    return message


def _user(blocks: Sequence[Block], where: str) -> list[dict[str, Any]]:
    """The results of tools, and what else is said. Raises InvalidRequest."""
    results = [_result(block, where) for block in blocks if block.type == "tool_result"]
    rest = [block for block in blocks if block.type != "tool_result"]
    images = [part for _, parts in results for part in parts]
    messages = [message for message, _ in results]
    if messages and not images and all(isinstance(block, Aside) for block in rest):
        # A turn of its own would make templates forget what was thought before the call.
        texts = [messages[-1]["content"], *(block.text for block in rest)]
        messages[-1]["content"] = _JOINT.join(text for text in texts if text)
        return messages
    parts = [*images, *(part for block in rest for part in _parts(block, where))]
    if parts or not messages:
        messages.append({"role": "user", "content": _content(parts)})
    return messages


def _result(block: Block, where: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A tool's result as a message, and its images."""
    inner = [part for each in _blocks(block.content or "") for part in _parts(each, where)]
    text = _JOINT.join(part["text"] for part in inner if part["type"] == "text" and part["text"])
    if block.is_error:  # OpenAI's messages have no such mark
        text = f"Error: {text}"
    images = [part for part in inner if part["type"] != "text"]
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": text}, images


def _content(parts: Sequence[dict[str, Any]]) -> str | list[dict[str, Any]]:
    if any(part["type"] != "text" for part in parts):
        return list(parts)
    return _JOINT.join(part["text"] for part in parts)


def _parts(block: Block, where: str) -> list[dict[str, Any]]:
    """A block as parts of OpenAI's. Raises InvalidRequest."""
    match block.type:
        case "text":
            return [_text(block.text)]
        case "image":
            return [_image(block.source, where)]
        case "document":
            return _document(block, where)
        case "search_result" if isinstance(block.source, str):
            said = [part for each in _blocks(block.content or "") for part in _parts(each, where)]
            return [_text(_JOINT.join(filter(None, (block.title, block.source)))), *said]
        case "tool_reference":
            return [_text(f"The tool {block.tool_name} is there.")]
    raise _unknown(block, where)


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _image(source: Source | str | None, where: str) -> dict[str, Any]:
    match source:
        case Source(type="base64", media_type=kind, data=data) if kind and data:
            url = f"data:{kind};base64,{data}"
        case Source(type="url", url=url) if url:
            pass
        case _:
            raise refused(
                f"{where}: an image is taken as base64 or by its url",
                param=where,
                hint="there is no store of files",
            )
    return {"type": "image_url", "image_url": {"url": url}}


def _document(block: Block, where: str) -> list[dict[str, Any]]:
    """A document's title, context and text."""
    if isinstance(block.citations, Citations) and block.citations.enabled:
        raise refused(f"{where}: no engine cites documents", param=where)
    head = _JOINT.join(filter(None, (block.title, block.context)))
    shown = [_text(head)] if head else []
    match block.source:
        case Source(type="text", data=data):
            return [*shown, _text(data)]
        case Source(type="content", content=content):
            inner = _blocks(content or "")
            return [*shown, *(part for each in inner for part in _parts(each, where))]
    kind = block.source.media_type or block.source.type if isinstance(block.source, Source) else ""
    raise refused(
        f"{where}: a document is taken as text, not as {kind or 'this'}",
        param=where,
        hint="send its text, or its pages as images to a model that sees",
    )


def _unknown(block: Block, where: str) -> InvalidRequest:
    return refused(f"{where}: a block of type {block.type!r} cannot be taken here", param=where)
