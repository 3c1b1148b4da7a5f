"""One chat, asked in four dialects: the engine gets one request, and the answers say one thing."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.dialects import anthropic, ollama, responses
from modelyard.dialects.base import Asked, Reply

DIFFERENCES = {
    "ids of calls": "Ollama's messages have none, so calls are counted: compared by their place",
    "name of a tool's result": "only Ollama's messages tell it, instead of the call's id",
    "form of a schema": "Ollama's has no name and no strictness, Anthropic's no name",
    "arguments": "JSON text whose spaces are the client's; Anthropic's and Ollama's are objects",
    "why a call ends": "Responses and Ollama do not tell apart that a model calls a tool",
}
"""All that may differ. Each is levelled in `level` or in `Said`, and nowhere else."""

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(16)).decode()
URL = f"data:image/png;base64,{PNG}"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
NAMES = st.from_regex(r"[a-z]{1,6}", fullmatch=True)
ARGUMENTS = st.dictionaries(NAMES, st.integers(-9, 9) | WORDS | st.booleans(), max_size=2)
Json = dict[str, Any]


@dataclass(frozen=True)
class Turn:
    """What the user says, and what the model thinks, says, calls and is told."""

    words: str
    has_image: bool
    thought: str
    answer: str
    calls: list[tuple[str, Json, str]]
    """Name, arguments and result of each."""


@dataclass(frozen=True)
class Chat:
    """A request in nobody's dialect."""

    system: str
    turns: list[Turn]
    max_tokens: int
    temperature: float | None
    stop: list[str]
    has_tools: bool
    has_schema: bool
    stream: bool

    def numbered(self) -> list[tuple[Turn, list[str]]]:
        """Each turn with the ids of its calls."""
        ids = (f"call_{number}" for number in itertools.count(1))
        return [(turn, [next(ids) for _ in turn.calls]) for turn in self.turns]


CHATS = st.builds(
    Chat,
    system=st.just("") | WORDS,
    turns=st.lists(
        st.builds(
            Turn,
            WORDS,
            st.booleans(),
            st.just("") | WORDS,
            WORDS,
            st.lists(st.tuples(NAMES, ARGUMENTS, WORDS), max_size=2, unique_by=lambda c: c[0]),
        ),
        max_size=2,
    ),
    max_tokens=st.integers(1, 99),
    temperature=st.sampled_from([None, 0.5]),
    stop=st.sampled_from([[], ["END", "x"]]),
    has_tools=st.booleans(),
    has_schema=st.booleans(),
    stream=st.booleans(),
)


def in_openai(chat: Chat) -> Json:
    messages: list[Json] = [{"role": "system", "content": chat.system}] if chat.system else []
    for turn, ids in chat.numbered():
        image = {"type": "image_url", "image_url": {"url": URL}}
        parts = [image, {"type": "text", "text": turn.words}]
        said: Json = {"role": "assistant", "content": turn.answer}
        if turn.thought:
            said["reasoning_content"] = turn.thought
        if turn.calls:
            said["tool_calls"] = [
                {"id": known, "type": "function", "function": _function(name, json.dumps(given))}
                for known, (name, given, _) in zip(ids, turn.calls, strict=True)
            ]
        results = [
            {"role": "tool", "tool_call_id": known, "content": result}
            for known, (_, _, result) in zip(ids, turn.calls, strict=True)
        ]
        messages += [{"role": "user", "content": parts if turn.has_image else turn.words}, said]
        messages += results
    body = _common(chat, [*messages, {"role": "user", "content": "and now?"}], "messages")
    if chat.has_schema:
        form = {"name": "answer", "schema": SCHEMA, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    if chat.has_tools:
        body["tools"] = [{"type": "function", "function": _tool("parameters")}]
    if chat.stop:
        body["stop"] = chat.stop
    return body | {"max_tokens": chat.max_tokens}


def in_anthropic(chat: Chat) -> Json:
    messages: list[Json] = []
    before: list[Json] = []
    for turn, ids in chat.numbered():
        source = {"type": "base64", "media_type": "image/png", "data": PNG}
        image = [{"type": "image", "source": source}] if turn.has_image else []
        words = {"type": "text", "text": turn.words}
        thought = {"type": "thinking", "thinking": turn.thought, "signature": ""}
        calls = [
            {"type": "tool_use", "id": known, "name": name, "input": given}
            for known, (name, given, _) in zip(ids, turn.calls, strict=True)
        ]
        answer = {"type": "text", "text": turn.answer}
        messages += [
            {"role": "user", "content": [*before, *image, words]},
            {"role": "assistant", "content": [*[thought][: len(turn.thought)], answer, *calls]},
        ]
        before = [
            {"type": "tool_result", "tool_use_id": known, "content": result}
            for known, (_, _, result) in zip(ids, turn.calls, strict=True)
        ]
    last = {"role": "user", "content": [*before, {"type": "text", "text": "and now?"}]}
    body = _common(chat, [*messages, last], "messages")
    if chat.system:
        body["system"] = chat.system
    if chat.has_schema:
        body["output_config"] = {"format": {"type": "json_schema", "schema": SCHEMA}}
    if chat.has_tools:
        body["tools"] = [_tool("input_schema")]
    if chat.stop:
        body["stop_sequences"] = chat.stop
    return body | {"max_tokens": chat.max_tokens}


def in_responses(chat: Chat) -> Json:
    items: list[Json] = []
    for turn, ids in chat.numbered():
        image = [{"type": "input_image", "image_url": URL}] if turn.has_image else []
        words = {"type": "input_text", "text": turn.words}
        items.append({"type": "message", "role": "user", "content": [*image, words]})
        if turn.thought:
            hidden = [{"type": "reasoning_text", "text": turn.thought}]
            items.append({"type": "reasoning", "id": "rs", "summary": [], "content": hidden})
        answer = [{"type": "output_text", "text": turn.answer}]
        items.append({"type": "message", "role": "assistant", "content": answer})
        numbered = list(zip(ids, turn.calls, strict=True))
        for known, (name, values, _) in numbered:
            call = {"call_id": known, **_function(name, json.dumps(values))}
            items.append({"type": "function_call", **call})
        for known, (_, _, result) in numbered:
            items.append({"type": "function_call_output", "call_id": known, "output": result})
    body = _common(chat, [*items, {"role": "user", "content": "and now?"}], "input")
    if chat.system:
        body["instructions"] = chat.system
    if chat.has_schema:
        form = {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}
        body["text"] = {"format": form}
    if chat.has_tools:
        body["tools"] = [{"type": "function", **_tool("parameters")}]
    if chat.stop:
        body["stop"] = chat.stop
    return body | {"max_output_tokens": chat.max_tokens}


def in_ollama(chat: Chat) -> Json:
    messages: list[Json] = [{"role": "system", "content": chat.system}] if chat.system else []
    for turn in chat.turns:
        asked: Json = {"role": "user", "content": turn.words}
        said: Json = {"role": "assistant", "content": turn.answer}
        if turn.has_image:
            asked["images"] = [PNG]
        if turn.thought:
            said["thinking"] = turn.thought
        if turn.calls:
            said["tool_calls"] = [
                {"function": {"name": name, "arguments": given}} for name, given, _ in turn.calls
            ]
        messages += [asked, said]
        messages += [
            {"role": "tool", "tool_name": name, "content": result} for name, _, result in turn.calls
        ]
    body = _common(chat, [*messages, {"role": "user", "content": "and now?"}], "messages")
    body["options"] = {"num_predict": chat.max_tokens}
    if "temperature" in body:
        body["options"]["temperature"] = body.pop("temperature")
    if chat.stop:
        body["options"]["stop"] = chat.stop
    if chat.has_schema:
        body["format"] = SCHEMA
    if chat.has_tools:
        body["tools"] = [{"type": "function", "function": _tool("parameters")}]
    return body


def _common(chat: Chat, messages: list[Json], field: str) -> Json:
    body: Json = {"model": "m", "stream": chat.stream, field: messages}
    return body if chat.temperature is None else body | {"temperature": chat.temperature}


def _function(name: str, arguments: str) -> Json:
    return {"name": name, "arguments": arguments}


def _tool(schema: str) -> Json:
    return {"name": "weather", "description": "It tells.", schema: SCHEMA}


def asked_in(name: str, chat: Chat) -> Asked | None:
    """The request of a dialect as the engine gets it; None for OpenAI's, which stays as it is."""
    if name == "openai":
        return None
    write, translate = {
        "anthropic": (in_anthropic, anthropic.translate),
        "responses": (in_responses, responses.translate),
        "ollama": (in_ollama, ollama.chat),
    }[name]
    asked = translate(json.dumps(write(chat)).encode())
    assert isinstance(asked, Asked)
    return asked


def level(body: Json) -> Json:
    """A request without what `DIFFERENCES` allows."""
    places: dict[str, int] = {}
    for message in body["messages"]:
        for call in message.get("tool_calls", ()):
            call["id"] = places.setdefault(call["id"], len(places))
            function = call["function"]
            if isinstance(function["arguments"], str):
                function["arguments"] = json.loads(function["arguments"])
        if message["role"] == "tool":
            message.pop("name", None)
            message["tool_call_id"] = places[message["tool_call_id"]]
    if "response_format" in body:
        form = body["response_format"]["json_schema"]
        body["response_format"]["json_schema"] = {"schema": form["schema"]}
    return body


OTHERS = ("anthropic", "responses", "ollama")


@given(CHATS)
@settings(max_examples=50, deadline=None)
def test_a_chat_reaches_the_engine_as_one_request(chat: Chat) -> None:
    expected = level(in_openai(chat))

    for name in OTHERS:
        asked = asked_in(name, chat)
        assert asked is not None
        assert level(json.loads(asked.body)) == expected, name


# ------------------------------------------------------------------------------------ the way back


@dataclass
class Said:
    """An answer in nobody's dialect."""

    text: str = ""
    thought: str = ""
    calls: list[tuple[str, Json]] | None = None
    is_cut: bool = False
    """Whether the answer ends at the bound of its tokens."""
    usage: tuple[int, int] = (0, 0)

    def call(self, name: str, arguments: Any) -> None:
        given = json.loads(arguments) if isinstance(arguments, str) else arguments
        self.calls = [*(self.calls or []), (name, given)]


@dataclass(frozen=True)
class Answer:
    """What an engine says."""

    texts: list[str]
    thoughts: list[str]
    calls: list[tuple[str, Json]]
    is_cut: bool
    prompt: int
    completion: int

    def said(self) -> Said:
        calls = list(self.calls) or None
        usage = (self.prompt, self.completion)
        return Said("".join(self.texts), "".join(self.thoughts), calls, self.is_cut, usage)

    @property
    def _end(self) -> tuple[str, Json]:
        counts = {"prompt_tokens": self.prompt, "completion_tokens": self.completion}
        usage = {**counts, "total_tokens": self.prompt + self.completion}
        return "length" if self.is_cut else "tool_calls" if self.calls else "stop", usage

    def whole(self) -> bytes:
        reason, usage = self._end
        message: Json = {"role": "assistant", "content": "".join(self.texts) or None}
        if self.thoughts:
            message["reasoning_content"] = "".join(self.thoughts)
        if self.calls:
            message["tool_calls"] = [
                {"id": f"c{at}", "type": "function", "function": _function(n, json.dumps(given))}
                for at, (n, given) in enumerate(self.calls)
            ]
        choices = [{"index": 0, "message": message, "finish_reason": reason}]
        return json.dumps({"id": "7", "choices": choices, "usage": usage}).encode()

    def stream(self) -> bytes:
        reason, usage = self._end
        deltas: list[Json] = [{"role": "assistant", "content": ""}]
        deltas += [{"reasoning_content": text} for text in self.thoughts]
        deltas += [{"content": text} for text in self.texts]
        for at, (name, values) in enumerate(self.calls):
            written = json.dumps(values)
            begun = _function(name, written[: len(written) // 2])
            rest = {"arguments": written[len(written) // 2 :]}
            known = {"index": at, "id": f"c{at}", "type": "function", "function": begun}
            deltas += [{"tool_calls": [known]}, {"tool_calls": [{"index": at, "function": rest}]}]
        chunks: list[Json] = [{"choices": [{"index": 0, "delta": each}]} for each in deltas]
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        chunks.append({"choices": [], "usage": usage})
        sent = (b"data: %b\n\n" % json.dumps({"id": "7", **each}).encode() for each in chunks)
        return b"".join(sent) + b"data: [DONE]\n\n"


ANSWERS = st.builds(
    Answer,
    st.lists(WORDS, max_size=3),
    st.lists(WORDS, max_size=2),
    st.lists(st.tuples(NAMES, ARGUMENTS), max_size=2),
    st.booleans(),
    st.integers(1, 99),
    st.integers(1, 99),
)


def events(stream: bytes) -> list[Json]:
    """The data of server-sent events."""
    lines = (line for line in stream.split(b"\n") if line.startswith(b"data: {"))
    return [json.loads(line[6:]) for line in lines]


def read_openai(answer: bytes, streamed: bool) -> Said:
    said = Said()
    chunks = events(answer) if streamed else [json.loads(answer)]
    calls: list[Json] = []
    for chunk in chunks:
        if (usage := chunk.get("usage")) is not None:
            said.usage = (usage["prompt_tokens"], usage["completion_tokens"])
        for choice in chunk["choices"]:
            part = choice.get("delta", choice.get("message"))
            said.text += part.get("content") or ""
            said.thought += part.get("reasoning_content") or ""
            said.is_cut = said.is_cut or choice.get("finish_reason") == "length"
            for call in part.get("tool_calls", ()):
                if "id" in call:
                    calls.append(call["function"])
                else:
                    calls[call["index"]]["arguments"] += call["function"]["arguments"]
    for call in calls:
        said.call(call["name"], call["arguments"])
    return said


def read_anthropic(answer: bytes, streamed: bool) -> Said:
    said = Said()
    blocks: list[Json] = []
    message = {} if streamed else json.loads(answer)
    for event in events(answer) if streamed else ():
        match event["type"]:
            case "content_block_start":
                blocks.append({**event["content_block"], "json": ""})
            case "content_block_delta":
                delta, block = event["delta"], blocks[event["index"]]
                field = {"input_json_delta": "partial_json"}.get(delta["type"])
                name = delta["type"].removesuffix("_delta")
                block["json" if field else name] += delta[field or name]
            case "message_delta":
                message = {**event["delta"], "usage": event["usage"]}
    for block in blocks or message.get("content", ()):
        said.text += block.get("text", "")
        said.thought += block.get("thinking", "")
        if block["type"] == "tool_use":
            said.call(block["name"], block.get("json") or block["input"])
    expected = "tool_use" if said.calls else "end_turn"
    said.is_cut = message["stop_reason"] == "max_tokens"
    assert said.is_cut or message["stop_reason"] == expected
    said.usage = (message["usage"]["input_tokens"], message["usage"]["output_tokens"])
    return said


def read_responses(answer: bytes, streamed: bool) -> Said:
    said = Said()
    seen = events(answer) if streamed else []
    response = seen[-1]["response"] if streamed else json.loads(answer)
    for item in response["output"]:
        match item["type"]:
            case "message":
                said.text += "".join(part["text"] for part in item["content"])
            case "reasoning":
                said.thought += "".join(part["text"] for part in item["content"])
            case "function_call":
                said.call(item["name"], item["arguments"])
    deltas = (each["delta"] for each in seen if each["type"] == "response.output_text.delta")
    assert not streamed or "".join(deltas) == said.text
    said.is_cut = response["status"] == "incomplete"
    said.usage = (response["usage"]["input_tokens"], response["usage"]["output_tokens"])
    return said


def read_ollama(answer: bytes, streamed: bool) -> Said:
    said = Said()
    parts = [json.loads(line) for line in answer.split(b"\n") if line]
    assert streamed or len(parts) == 1
    for part in parts:
        message = part["message"]
        said.text += message["content"]
        said.thought += message.get("thinking", "")
        for call in message.get("tool_calls", ()):
            said.call(call["function"]["name"], call["function"]["arguments"])
    last = parts[-1]
    said.is_cut = last["done_reason"] == "length"
    said.usage = (last["prompt_eval_count"], last["eval_count"])
    return said


READERS: dict[str, Callable[[bytes, bool], Said]] = {
    "openai": read_openai,
    "anthropic": read_anthropic,
    "responses": read_responses,
    "ollama": read_ollama,
}


def in_parts(reply: Reply, stream: bytes, cuts: list[int]) -> bytes:
    places = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    parts = [stream[a:b] for a, b in itertools.pairwise(places)]
    return b"".join(reply.part(part) for part in parts) + reply.end()


HELLO = Chat("", [], 9, None, [], has_tools=False, has_schema=False, stream=True)


@given(ANSWERS, st.lists(st.integers(0, 10_000), max_size=6))
@settings(max_examples=50, deadline=None)
def test_an_answer_says_the_same_in_every_dialect_streamed_or_not_and_cut_anywhere(
    answer: Answer, cuts: list[int]
) -> None:
    stream, whole, expected = answer.stream(), answer.whole(), answer.said()

    for name, read in READERS.items():
        if name == "openai":
            at_once, in_turn = whole, stream
        else:
            (first, second) = (asked_in(name, HELLO), asked_in(name, HELLO))
            assert first is not None
            assert second is not None
            at_once, in_turn = first.reply.whole(whole), in_parts(second.reply, stream, cuts)
        assert read(at_once, False) == expected, name
        assert read(in_turn, True) == expected, name
