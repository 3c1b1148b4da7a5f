"""Ollama's requests as engines are asked."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from modelyard.core.errors import InvalidRequest
from modelyard.core.specs import Task
from modelyard.dialects import ollama
from modelyard.dialects.base import Asked, LoadRequest
from modelyard.dialects.ollama_options import LOADING

Request = Callable[[bytes], Asked | LoadRequest]

PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(20)).decode()
HELLO = [{"role": "user", "content": "Hello"}]


def asked(request: Request, **fields: Any) -> Asked:
    translated = request(json.dumps({"model": "m", **fields}).encode())
    assert isinstance(translated, Asked)
    return translated


def body(request: Request, **fields: Any) -> dict[str, Any]:
    """What the engine is asked."""
    read: dict[str, Any] = json.loads(asked(request, **fields).body)
    return read


def load(request: Request, **fields: Any) -> LoadRequest:
    translated = request(json.dumps({"model": "m", **fields}).encode())
    assert isinstance(translated, LoadRequest)
    return translated


def test_a_chat_streams_unless_it_says_otherwise() -> None:
    assert body(ollama.chat, messages=HELLO)["stream"] is True
    assert body(ollama.chat, messages=HELLO, stream=False)["stream"] is False


def test_options_get_the_names_that_engines_know() -> None:
    options = {
        "num_predict": 7,
        "temperature": 0.5,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.05,
        "seed": 3,
        "stop": ["\n", "END"],
        "repeat_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "mirostat": 2,
        "num_keep": 4,
    }

    assert body(ollama.chat, messages=HELLO, options=options) == {
        "model": "m",
        "messages": HELLO,
        "stream": True,
        "max_tokens": 7,
        "temperature": 0.5,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.05,
        "seed": 3,
        "stop": ["\n", "END"],
        "repeat_penalty": 1.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "mirostat": 2,
        "n_keep": 4,
    }


def test_options_of_loading_stay_here_and_options_of_nobody_go_on() -> None:
    loading: dict[str, Any] = dict.fromkeys(LOADING, 1)
    options = loading | {"future_option": "x", "top_k": None, "stop": []}

    assert body(ollama.chat, messages=HELLO, options=options) == {
        "model": "m",
        "messages": HELLO,
        "stream": True,
        "future_option": "x",
    }


@pytest.mark.parametrize("without_end", [-1, -2])
def test_no_bound_is_said_by_saying_none(without_end: int) -> None:
    options = {"num_predict": without_end, "seed": -1}

    assert body(ollama.chat, messages=HELLO, options=options).keys() == {
        "model",
        "messages",
        "stream",
    }


def test_a_format_is_json_or_a_schema() -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}}

    assert body(ollama.chat, messages=HELLO, format="json")["response_format"] == {
        "type": "json_object"
    }
    assert body(ollama.chat, messages=HELLO, format=schema)["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema},
    }
    assert "response_format" not in body(ollama.chat, messages=HELLO, format="")


def test_thinking_is_switched_where_templates_look_for_it() -> None:
    assert body(ollama.chat, messages=HELLO, think=False)["chat_template_kwargs"] == {
        "enable_thinking": False
    }
    much = body(ollama.chat, messages=HELLO, think="high")
    assert much["reasoning_effort"] == "high"
    assert much["chat_template_kwargs"] == {"enable_thinking": True, "reasoning_effort": "high"}


def test_images_become_parts_of_the_message() -> None:
    message = {"role": "user", "content": "What is it?", "images": [PIXEL]}
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}

    assert body(ollama.chat, messages=[message])["messages"] == [
        {"role": "user", "content": [picture, {"type": "text", "text": "What is it?"}]}
    ]
    assert body(ollama.generate, prompt="What is it?", images=[PIXEL])["messages"] == [
        {"role": "user", "content": [picture, {"type": "text", "text": "What is it?"}]}
    ]


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"BM", "image/bmp"),
        (b"RIFF\0\0\0\0WEBP", "image/webp"),
    ],
)
def test_an_image_is_told_by_its_first_bytes(start: bytes, kind: str) -> None:
    image = base64.b64encode(start + bytes(20)).decode()
    message = {"role": "user", "images": [image]}

    parts = body(ollama.chat, messages=[message])["messages"][0]["content"]
    assert parts == [
        {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{image}"}},
    ]


def test_results_of_tools_find_the_calls_they_answer() -> None:
    calls: list[dict[str, Any]] = [
        {"function": {"name": "weather", "arguments": {"city": "Rome"}}},
        {"function": {"name": "time", "arguments": {}}},
        {"function": {"name": "weather", "arguments": {"city": "Oslo"}}, "id": "own"},
    ]
    messages = [
        *HELLO,
        {"role": "assistant", "content": "", "tool_calls": calls, "thinking": "two cities"},
        {"role": "tool", "tool_name": "time", "content": "noon"},
        {"role": "tool", "tool_name": "weather", "content": "warm"},
        {"role": "tool", "tool_call_id": "own", "content": "cold"},
    ]

    _, assistant, *results = body(ollama.chat, messages=messages)["messages"]
    assert assistant["reasoning_content"] == "two cities"
    assert [call["id"] for call in assistant["tool_calls"]] == ["call_1", "call_2", "own"]
    assert assistant["tool_calls"][0]["function"] == {
        "name": "weather",
        "arguments": '{"city":"Rome"}',
    }
    assert [(result["tool_call_id"], result["content"]) for result in results] == [
        ("call_2", "noon"),
        ("call_1", "warm"),
        ("own", "cold"),
    ]


def test_results_without_a_name_answer_the_calls_in_their_order() -> None:
    calls: list[dict[str, Any]] = [
        {"function": {"name": name, "arguments": {}}} for name in ("a", "b")
    ]
    results = [{"role": "tool", "content": text} for text in ("first", "second", "of nobody")]
    messages = [{"role": "assistant", "tool_calls": calls}, *results]

    told = body(ollama.chat, messages=messages)["messages"][1:]
    assert [result["tool_call_id"] for result in told] == ["call_1", "call_2", "call_3"]


def test_tools_go_on_as_they_are() -> None:
    function = {"name": "f", "parameters": {"type": "object", "$defs": {"x": {}}}}

    assert body(ollama.chat, messages=HELLO, tools=[{"function": function}])["tools"] == [
        {"type": "function", "function": function}
    ]


def test_what_ollama_does_not_have_goes_on_as_the_client_wrote_it() -> None:
    message = {"role": "USER", "content": "Hello", "cache_control": {"type": "ephemeral"}}
    told = body(ollama.chat, messages=[message], parallel_tool_calls=False, truncate=True)

    assert told["parallel_tool_calls"] is False
    assert "truncate" not in told
    assert told["messages"] == [
        {"role": "user", "content": "Hello", "cache_control": {"type": "ephemeral"}}
    ]


def test_log_probabilities_are_asked_for_as_openai_does() -> None:
    told = body(ollama.chat, messages=HELLO, logprobs=True, top_logprobs=3)

    assert (told["logprobs"], told["top_logprobs"]) == (True, 3)


def test_a_prompt_is_a_chat_of_its_system_and_its_words() -> None:
    told = asked(ollama.generate, prompt="Why?", system="Be brief.")

    assert told.task is Task.CHAT
    assert json.loads(told.body)["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
    ]


def test_a_raw_prompt_is_a_completion() -> None:
    told = asked(ollama.generate, prompt="<s>Why?", raw=True, format="json", think=True)

    assert told.task is Task.COMPLETION
    assert json.loads(told.body) == {
        "model": "m",
        "prompt": "<s>Why?",
        "stream": True,
        "response_format": {"type": "json_object"},
        "json_schema": {},
    }


def test_embed_asks_for_floats_of_every_text() -> None:
    told = body(ollama.embed, input=["a", "b"], dimensions=8, truncate=True, options={"num_ctx": 9})

    assert told == {
        "model": "m",
        "input": ["a", "b"],
        "encoding_format": "float",
        "dimensions": 8,
        "truncate_prompt_tokens": -1,
    }


def test_the_older_embeddings_ask_for_one_text() -> None:
    assert body(ollama.embeddings, prompt="a") == {
        "model": "m",
        "input": "a",
        "encoding_format": "float",
    }


@pytest.mark.parametrize(
    ("request_", "fields", "answer"),
    [
        (ollama.chat, {}, {"message": {"role": "assistant", "content": ""}}),
        (ollama.chat, {"messages": []}, {"message": {"role": "assistant", "content": ""}}),
        (ollama.generate, {"prompt": ""}, {"response": ""}),
        (ollama.generate, {}, {"response": ""}),
    ],
)
def test_a_request_that_asks_nothing_loads_the_model(
    request_: Request, fields: dict[str, Any], answer: dict[str, Any]
) -> None:
    kept = load(request_, **fields, keep_alive="10m")
    gone = load(request_, **fields, keep_alive=0)

    common = {"model": "m", "created_at": "1970-01-01T00:00:05Z", **answer, "done": True}
    assert (kept.model, kept.load, kept.keep_alive_s) == ("m", True, 600.0)
    assert json.loads(kept.answer(5)) == common | {"done_reason": "load"}
    assert (gone.load, gone.keep_alive_s) == (False, 0.0)
    assert json.loads(gone.answer(5)) == common | {"done_reason": "unload"}


def test_texts_that_are_empty_load_an_embedding_model() -> None:
    assert json.loads(load(ollama.embed, input=[]).answer(0)) == {"model": "m", "embeddings": []}
    assert json.loads(load(ollama.embeddings).answer(0)) == {"model": "m", "embedding": []}


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1.5s", 1.5),
        ("250ms", 0.25),
        (30, 30.0),
        (2.5, 2.5),
        ("45", 45.0),
        (0, 0.0),
        ("0s", 0.0),
        (-1, math.inf),
        ("-1", math.inf),
        ("-1m", math.inf),
        ("", None),
        (None, None),
    ],
)
def test_keep_alive_is_read_as_ollama_reads_it(written: object, seconds: float | None) -> None:
    assert asked(ollama.chat, messages=HELLO, keep_alive=written).keep_alive_s == seconds


@pytest.mark.parametrize(
    ("request_", "fields", "param"),
    [
        (ollama.chat, {"messages": HELLO, "keep_alive": "soon"}, "keep_alive"),
        (ollama.chat, {"messages": HELLO, "keep_alive": "5m" * 50}, "keep_alive"),
        (ollama.chat, {"messages": HELLO, "format": "xml"}, "format"),
        (ollama.chat, {"messages": HELLO, "think": "hard"}, "think"),
        (ollama.chat, {"messages": HELLO, "options": {"num_predict": "few"}}, "num_predict"),
        (ollama.chat, {"messages": [{"role": "user", "images": ["!"]}]}, "images"),
        (ollama.chat, {"messages": [{"role": "user", "images": ["aGVsbG8="]}]}, "images"),
        (ollama.generate, {"prompt": "x", "template": "{{ .Prompt }}"}, "template"),
        (ollama.generate, {"prompt": "x", "context": [1, 2]}, "context"),
        (ollama.generate, {"prompt": "x", "width": 64}, "width"),
        (ollama.generate, {"prompt": "x", "raw": True, "system": "y"}, "raw"),
        (ollama.generate, {"prompt": "x", "suffix": "z"}, "suffix"),
        (ollama.chat, {"messages": HELLO, "model": ""}, "model"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    request_: Request, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        request_(json.dumps({"model": "m", **fields}).encode())

    assert refused.value.param == param


@pytest.mark.parametrize(
    "nonsense",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"model": 1, "messages": []}',
        b'{"model": "m", "messages": "Hello"}',
        b'{"model": "m", "messages": [{"content": "no role"}]}',
        b'{"model": "m", "messages": [{"role": "user", "content": 7}]}',
        b'{"model": "m", "messages": ' + b"[" * 50_000,
    ],
)
def test_nonsense_is_refused_with_what_is_wrong(nonsense: bytes) -> None:
    with pytest.raises(InvalidRequest):
        ollama.chat(nonsense)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("qwen3", ("qwen3:latest",)),
        ("qwen3:latest", ("qwen3",)),
        ("qwen3:8b", ()),
        ("hf.co/org/name", ("hf.co/org/name:latest", "org/name")),
        ("hf.co/org/name:Q4_K_M", ("org/name:Q4_K_M",)),
        (":latest", ()),
    ],
)
def test_a_name_may_be_written_with_a_tag_that_says_nothing(
    written: str, meant: tuple[str, ...]
) -> None:
    assert ollama.DIALECT.spellings(written) == meant
