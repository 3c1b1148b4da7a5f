"""What Ollama's clients are told of our models: facts of the catalog and the scheduler.

Laws of this file:
- Everything is in memory already: nothing here reads a file or touches an engine.
- A capability is told by the files: the kind of the model, its inputs, what its chat template
  mentions. A model without files that the catalog knows has those that follow from its tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from modelyard.catalog.checkpoint import Checkpoint
from modelyard.catalog.classify import Input
from modelyard.catalog.found import FoundModel
from modelyard.core.specs import HOST_DEVICE, ModelSpec, Task
from modelyard.core.views import ModelView
from modelyard.dialects import ollama_listing
from modelyard.dialects.ollama_listing import Listed

_OF_TASKS: Final[Mapping[Task, str]] = {
    Task.CHAT: "completion",
    Task.COMPLETION: "completion",
    Task.EMBEDDING: "embedding",
    Task.RERANK: "rerank",
    Task.IMAGE: "image",
}
"""Ollama's words, and our own where it has none."""
_OF_INPUTS: Final[Mapping[Input, str]] = {Input.IMAGE: "vision", Input.AUDIO: "audio"}
_THINKING_WORDS: Final = ("enable_thinking", "reasoning_content", "reasoning_effort", "<think>")
"""What a chat template mentions if its model thinks aloud: switches, and the marks around it."""
_CONTEXT_OPTIONS: Final = ("ctx_size", "max_model_len")
"""What engines call the context that a model runs with."""
_CHAT_TEMPLATE: Final = "tokenizer.chat_template"
_BYTES_PER_MIB: Final = 1 << 20


def listed(spec: ModelSpec, found: FoundModel | None, since: float) -> Listed:
    """One model. `since` stands for when it was changed, which nobody has noted."""
    if found is None:
        return Listed(
            spec.id,
            identity=f"{spec.source}\0{spec.revision}",
            modified_at=since,
            context_length=spec.context_length,
            capabilities=capabilities(spec, None),
        )
    return Listed(
        spec.id,
        identity=f"{found.source}\0{found.revision}",
        modified_at=since,
        size_bytes=found.weight_bytes + found.projector_bytes,
        format="gguf" if isinstance(found.checkpoint, Checkpoint) else "safetensors",
        family=found.architecture,
        parameters=found.parameters,
        quantization=found.quantization,
        context_length=spec.context_length or found.context_length,
        capabilities=capabilities(spec, found),
    )


def capabilities(spec: ModelSpec, found: FoundModel | None) -> list[str]:
    """What can be asked of a model, each once, in the order of Ollama's own list."""
    told = [_OF_TASKS[task] for task in Task if task in spec.tasks and task in _OF_TASKS]
    if found is not None:
        told += [word for kind, word in _OF_INPUTS.items() if kind in found.verdict.inputs]
        if Task.CHAT in spec.tasks:
            template = chat_template(found)
            told += ["tools"] if "tools" in template else []
            told += ["thinking"] if any(word in template for word in _THINKING_WORDS) else []
    return list(dict.fromkeys(told))


def chat_template(found: FoundModel) -> str:
    """The model's chat template; empty where it has none, or one too long to be kept."""
    if isinstance(found.checkpoint, Checkpoint):
        value = found.checkpoint.header.metadata.get(_CHAT_TEMPLATE)
        return value if isinstance(value, str) else ""
    return found.checkpoint.description.template or ""


def running(spec: ModelSpec, view: ModelView, shown: Listed, now: float) -> dict[str, Any]:
    """A model that is ready, for `GET /api/ps`."""
    held_mib = {**view.memory_mib, **view.used_mib}
    never = spec.pinned or spec.replicas.min > 0
    kept_s = spec.limits.idle_stop_s if view.keep_s is None else view.keep_s
    last_used = now if view.in_flight else view.last_used_at or now
    return ollama_listing.running(
        shown,
        expires_at=ollama_listing.expires(last_used, None if never else kept_s),
        held_bytes=sum(held_mib.values()) * _BYTES_PER_MIB,
        on_cards_bytes=sum(mib for device, mib in held_mib.items() if device != HOST_DEVICE)
        * _BYTES_PER_MIB,
        context_length=context_of(spec),
    )


def show(spec: ModelSpec, found: FoundModel | None, shown: Listed) -> dict[str, Any]:
    """One model in full, for `POST /api/show`."""
    return ollama_listing.show(
        shown,
        license_name=(found.license or "") if found else "",
        template=chat_template(found) if found else "",
        options={"num_ctx": context_of(spec)} if context_of(spec) else {},
        model_info=_metadata(found),
    )


def context_of(spec: ModelSpec) -> int:
    """The context that the model runs with, in tokens; 0 where nobody knows."""
    for name in _CONTEXT_OPTIONS:
        value = spec.options.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return spec.context_length or 0


def _metadata(found: FoundModel | None) -> dict[str, Any]:
    """What a GGUF file says of itself, but for long lists and the template."""
    if found is None or not isinstance(found.checkpoint, Checkpoint):
        return {}
    return {
        key: value
        for key, value in found.checkpoint.header.metadata.items()
        if isinstance(value, str | int | float) and key != _CHAT_TEMPLATE
    }
