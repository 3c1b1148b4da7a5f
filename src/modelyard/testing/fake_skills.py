"""What a fake engine with `--skilled` says: it calls tools, keeps to schemas and thinks when asked.

Laws of this file:
- A tool is called if its name is in the last message of the user, or if a call is demanded; after a
  result of a tool come words again. Arguments are made from the tool's schema alone.
- A request with a schema gets JSON that fits it. One with a reasoning effort other than `none`, or
  with `enable_thinking`, gets reasoning first. Whatever else is asked is echoed.
- Unless cut by a token limit, an answer ends by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from modelyard.testing.fake_answers import Completion

PIECE = 7
"""Characters of JSON in one chunk of a stream."""


def example(schema: dict[str, Any], name: str = "value", root: Any = None) -> Any:
    """A value that fits a JSON schema of the plainer kind; texts say what they are for.

    `root` is the schema in which references are looked up; None is `schema` itself.
    """
    root = schema if root is None else root
    if "$ref" in schema:
        return example(root["$defs"][schema["$ref"].rpartition("/")[2]], name, root)
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return example(schema["anyOf"][0], name, root)
    kind = schema.get("type", "object")
    match kind[0] if isinstance(kind, list) else kind:
        case "object":
            properties = schema.get("properties") or {}
            return {key: example(inner, key, root) for key, inner in properties.items()}
        case "array":
            return [example(schema.get("items") or {"type": "string"}, name, root)]
        case "integer" | "number":
            return 7
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return f"the {name}"


@dataclass(frozen=True, slots=True)
class Skilled(Completion):
    """A chat completion of an able model. Its tokens are deltas, as JSON."""

    def tokens(self) -> list[str]:
        return [json.dumps(delta) for delta in self._deltas()]

    def whole(self, text: str) -> dict[str, Any]:  # noqa: ARG002  # what it says is more than text
        message: dict[str, Any] = {"role": "assistant", "content": None}
        for delta in self._deltas():
            for name in ("content", "reasoning_content"):
                if name in delta:
                    message[name] = (message.get(name) or "") + delta[name]
        calls = self._calls()
        if calls:
            message["tool_calls"] = [
                {"id": known, "type": "function", "function": {"name": name, "arguments": given}}
                for known, name, given in calls
            ]
        choice = {"index": 0, "message": message, "finish_reason": self._reason()}
        return {**self._frame(""), "choices": [choice], "usage": self._usage()}

    def part(self, token: str) -> dict[str, Any]:
        choice = {"index": 0, "delta": json.loads(token), "finish_reason": None}
        return {**self._frame(".chunk"), "choices": [choice]}

    def ending(self) -> Iterator[dict[str, Any]]:
        choice = {"index": 0, "delta": {}, "finish_reason": self._reason()}
        yield {**self._frame(".chunk"), "choices": [choice]}
        if (self.request.get("stream_options") or {}).get("include_usage"):
            yield {**self._frame(".chunk"), "choices": [], "usage": self._usage()}

    def _deltas(self) -> Iterator[dict[str, Any]]:
        yield {"role": "assistant", "content": ""}
        if self._thinks():
            yield from ({"reasoning_content": word} for word in ("I", " think", " first."))
        calls = self._calls()
        for index, (known, name, given) in enumerate(calls):
            function = {"name": name, "arguments": ""}
            first = {"index": index, "id": known, "type": "function", "function": function}
            yield {"tool_calls": [first]}
            for piece in pieces(given):
                yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}
        if not calls:
            yield from ({"content": piece} for piece in self._words())

    def _words(self) -> list[str]:
        form = self.request.get("response_format") or {}
        match form.get("type"):
            case "json_schema":
                return pieces(json.dumps(example(form["json_schema"]["schema"])))
            case "json_object":
                return pieces(json.dumps({"echo": self._last_words()}))
        words = [f"{self.model}:", *self._last_words().split()]
        limit = self._limit()
        said = words if limit is None else words[:limit]
        return [*said[:1], *(f" {word}" for word in said[1:])]

    def _calls(self) -> list[tuple[str, str, str]]:
        """Id, name and arguments of each call."""
        choice = self.request.get("tool_choice", "auto")
        if choice == "none" or self.request["messages"][-1].get("role") == "tool":
            return []
        functions = [tool["function"] for tool in self.request.get("tools") or ()]
        if isinstance(choice, dict):
            wanted = [each for each in functions if each["name"] == choice["function"]["name"]]
        else:
            words = self._last_words()
            named = [each for each in functions if each["name"] in words]
            wanted = named or (functions[:1] if choice == "required" else [])
        if self.request.get("parallel_tool_calls") is False:
            wanted = wanted[:1]
        # An id is new in every turn of a conversation, as engines make them.
        turn = len(self.request["messages"])
        return [
            (f"call-{turn}-{place}", each["name"], _arguments(each))
            for place, each in enumerate(wanted)
        ]

    def _thinks(self) -> bool:
        effort = self.request.get("reasoning_effort")
        settings = self.request.get("chat_template_kwargs") or {}
        return effort not in (None, "none") or bool(settings.get("enable_thinking"))

    def _last_words(self) -> str:
        content = self.request["messages"][-1].get("content")
        if isinstance(content, list):
            return " ".join(str(part.get("text", "")) for part in content)
        return str(content or "")

    def _limit(self) -> int | None:
        asked = self.request.get("max_completion_tokens") or self.request.get("max_tokens")
        return int(asked) if asked else None

    def _reason(self) -> str:
        if self._calls():
            return "tool_calls"
        limit = self._limit()
        is_cut = limit is not None and limit <= len(self._last_words().split())
        return "length" if is_cut and not self.request.get("response_format") else "stop"


def _arguments(function: dict[str, Any]) -> str:
    return json.dumps(example(function.get("parameters") or {}))


def pieces(text: str) -> list[str]:
    """A text in the parts in which it is streamed."""
    return [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
