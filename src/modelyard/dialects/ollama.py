"""Ollama's API: chat, generate, embed and embeddings as OpenAI's requests, and back.

Laws of this file:
- Answers are streamed unless the client says `"stream": false`.
- A chat without messages, and a prompt that is empty, ask nothing: they load the model, or let it
  go where `keep_alive` is 0.
- What shapes a prompt and can only be done where the model's template is at hand (`template`,
  `context`, `suffix`) is refused.

Sources: github.com/ollama/ollama, docs/api.md, docs/openapi.yaml and api/types.go;
github.com/ollama/ollama-python, what its client sends and reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final, TypeVar

import msgspec

from modelyard.core.errors import InvalidRequest
from modelyard.core.specs import Task
from modelyard.dialects import ollama_messages, ollama_options
from modelyard.dialects.base import Asked, Dialect, LoadRequest, Problem, WholeReply, refused
from modelyard.dialects.ollama_answers import (
    LINES,
    TextReply,
    Vectors,
    error_body,
    loaded,
    vectors_of,
)

IGNORED: Final[Mapping[str, str]] = {
    "shift": "whether an engine drops the oldest tokens of a full context is its own option",
    "truncate": "a prompt that is too long is refused by the engine, never cut",
}
"""Fields of a request that are wishes about something Modelyard or the engine decides."""

_TAG: Final = ":latest"
"""What Ollama and its clients add to a name without a tag."""
_HUBS: Final = ("hf.co/", "huggingface.co/")
_IMAGE_FIELDS: Final = ("width", "height", "steps")


class _Request(msgspec.Struct):
    """What all requests have in common."""

    model: str = ""
    options: dict[str, Any] | None = None
    keep_alive: str | float | None = None

    def kept_s(self) -> float | None:
        return ollama_options.keep_alive_s(self.keep_alive)


class _TextRequest(_Request):
    """What chat and generate have in common."""

    stream: bool | None = None
    format: Any = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    def parameters(self) -> dict[str, Any]:
        """Everything but the words, in OpenAI's terms."""
        wanted = {
            **ollama_options.sampling(self.options or {}),
            **ollama_options.response_format(self.format),
            **ollama_options.reasoning(self.think),
            "model": self.model,
            "stream": self.streams,
        }
        if self.logprobs:
            wanted["logprobs"] = True
            if self.top_logprobs is not None:
                wanted["top_logprobs"] = self.top_logprobs
        return wanted

    @property
    def streams(self) -> bool:
        return self.stream is not False


class _Chat(_TextRequest):
    messages: list[ollama_messages.Message] | None = None
    tools: list[dict[str, Any]] | None = None


class _Generate(_TextRequest):
    prompt: str | None = None
    system: str | None = None
    suffix: str | None = None
    template: str | None = None
    context: list[int] | None = None
    raw: bool | None = None
    images: list[str] | None = None


class _Embed(_Request):
    input: str | list[str] | None = None
    truncate: bool | None = None
    dimensions: int | None = None


class _Embeddings(_Request):
    prompt: str | None = None


def error(problem: Problem) -> bytes:
    """An error answer."""
    return error_body(problem.message)


def spellings(name: str) -> tuple[str, ...]:
    """What else a client may mean: a tag that says nothing, or a hub before the repository."""
    bare = name.removesuffix(_TAG)
    tagged = () if ":" in name else (f"{name}{_TAG}",)
    hub = next((prefix for prefix in _HUBS if bare.startswith(prefix)), "")
    others = (*tagged, bare, bare.removeprefix(hub))
    return tuple(dict.fromkeys(other for other in others if other and other != name))


DIALECT: Final = Dialect("ollama", error, stream_type=LINES, heartbeat=b" ", spellings=spellings)
"""A line of its own would be read as a part of the answer; JSON may begin with a space."""


def chat(body: bytes) -> Asked | LoadRequest:
    """`POST /api/chat`. Raises InvalidRequest."""
    fields, asked = _read(body, _Chat)
    if not asked.messages:
        return _load(asked, {"message": {"role": "assistant", "content": ""}})
    wanted = asked.parameters() | {
        "messages": ollama_messages.to_openai(asked.messages, fields["messages"])
    }
    if asked.tools:
        wanted["tools"] = [{"type": "function", **tool} for tool in asked.tools]
    return Asked(
        _encoded(_unknown(fields, _Chat), wanted),
        TextReply(asked.model, "message"),
        keep_alive_s=asked.kept_s(),
    )


def generate(body: bytes) -> Asked | LoadRequest:
    """`POST /api/generate`: a chat of one message, or a completion if `raw`.

    Raises InvalidRequest.
    """
    fields, asked = _read(body, _Generate)
    _refuse_prompt_shaping(asked, fields)
    prompt = asked.prompt or ""
    if not (prompt or asked.images):
        return _load(asked, {"response": ""})
    if asked.raw:
        task, wanted = Task.COMPLETION, _plain(asked, prompt)
    else:
        task = Task.CHAT
        wanted = asked.parameters() | {"messages": _conversation(asked, prompt)}
    return Asked(
        _encoded(_unknown(fields, _Generate), wanted),
        TextReply(asked.model, "response"),
        task=task,
        keep_alive_s=asked.kept_s(),
    )


def embed(body: bytes) -> Asked | LoadRequest:
    """`POST /api/embed`: one vector for each text. Raises InvalidRequest."""
    fields, asked = _read(body, _Embed)
    if not asked.input:
        return _load(asked, {"embeddings": []}, done=False)
    wanted: dict[str, Any] = {"input": asked.input}
    if asked.dimensions is not None:
        wanted["dimensions"] = asked.dimensions
    if asked.truncate:
        # vLLM's word for it; engines that cannot cut refuse what is too long.
        wanted["truncate_prompt_tokens"] = -1
    return _vectors(asked, fields, _Embed, wanted, Vectors.ALL)


def embeddings(body: bytes) -> Asked | LoadRequest:
    """`POST /api/embeddings`: one vector for one text; the older form. Raises InvalidRequest."""
    fields, asked = _read(body, _Embeddings)
    if not asked.prompt:
        return _load(asked, {"embedding": []}, done=False)
    return _vectors(asked, fields, _Embeddings, {"input": asked.prompt}, Vectors.FIRST)


def read_fields(body: bytes) -> dict[str, Any]:
    """The fields of a request that are not null. Raises InvalidRequest."""
    try:
        fields = msgspec.json.decode(body or b"{}", type=dict[str, Any])
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the request body is not a proper JSON object: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the request body is not valid JSON: {error}") from None
    return {name: value for name, value in fields.items() if value is not None}


_R = TypeVar("_R", bound=_Request)


def _read(body: bytes, shape: type[_R]) -> tuple[dict[str, Any], _R]:
    fields = read_fields(body)
    try:
        asked = msgspec.convert(fields, shape)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the request is not what this route expects: {error}") from None
    if not asked.model:
        raise InvalidRequest(
            "model is required", param="model", hint="`GET /api/tags` lists the models"
        )
    return fields, asked


def _unknown(fields: Mapping[str, Any], shape: type[msgspec.Struct]) -> dict[str, Any]:
    """What the client says beyond Ollama's API: it goes on as it is."""
    known = {*shape.__struct_fields__, *IGNORED}
    return {name: value for name, value in fields.items() if name not in known}


def _encoded(*parts: Mapping[str, Any]) -> bytes:
    whole: dict[str, Any] = {}
    for part in parts:
        whole.update(part)
    return msgspec.json.encode(whole)


def _load(asked: _Request, empty: Mapping[str, Any], *, done: bool = True) -> LoadRequest:
    kept_s = asked.kept_s()
    load = kept_s != 0
    why = ("load" if load else "unload") if done else None
    return LoadRequest(asked.model, load, loaded(asked.model, empty, why), kept_s)


def _vectors(
    asked: _Request,
    fields: Mapping[str, Any],
    shape: type[msgspec.Struct],
    wanted: Mapping[str, Any],
    shown: Vectors,
) -> Asked:
    settings = {"model": asked.model, "encoding_format": "float"}
    passed = ollama_options.unlisted(asked.options or {})
    return Asked(
        _encoded(_unknown(fields, shape), passed, wanted, settings),
        WholeReply(partial(vectors_of, model=asked.model, shown=shown), error),
        keep_alive_s=asked.kept_s(),
    )


def _refuse_prompt_shaping(asked: _Generate, fields: Mapping[str, Any]) -> None:
    if asked.template:
        raise refused(
            "a request cannot bring its own template",
            param="template",
            hint='send the finished prompt with "raw": true',
        )
    if asked.context:
        raise refused(
            "`context`, the tokens of an earlier answer, is not kept",
            param="context",
            hint="use /api/chat and send the earlier messages",
        )
    if asked.suffix:  # llama.cpp drops it silently, vLLM refuses it
        raise refused(
            "engines fill no gap on this route",
            param="suffix",
            hint='send the finished prompt with "raw": true, or ask llama.cpp on /infill',
        )
    for name in _IMAGE_FIELDS:
        if name in fields:
            raise refused(
                "this route draws no images", param=name, hint="use /v1/images/generations"
            )
    if asked.raw and (asked.system or asked.images or asked.logprobs):
        raise refused(
            "with `raw` the prompt is all that the model sees: `system`, `images` and `logprobs`"
            " cannot be added",
            param="raw",
        )


def _plain(asked: _Generate, prompt: str) -> dict[str, Any]:
    wanted = {**asked.parameters(), "prompt": prompt}
    for name in ("reasoning_effort", "chat_template_kwargs"):  # there is no template to tell
        wanted.pop(name, None)
    if "response_format" in wanted:  # vLLM reads it; llama.cpp wants the schema itself here
        wanted["json_schema"] = asked.format if isinstance(asked.format, dict) else {}
    return wanted


def _conversation(asked: _Generate, prompt: str) -> list[dict[str, Any]]:
    system = [{"role": "system", "content": asked.system}] if asked.system else []
    return [*system, {"role": "user", "content": ollama_messages.content(prompt, asked.images)}]
