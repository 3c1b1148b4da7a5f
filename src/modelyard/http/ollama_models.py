"""What Ollama's clients are told of our models: facts of the catalog and the scheduler.

Laws of this file:
- Everything is in memory already: nothing here reads a file or touches an engine.
- Capabilities are those of `/v1/models`, in Ollama's words where it has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from modelyard.catalog.checkpoint import Checkpoint
from modelyard.catalog.found import FoundModel
from modelyard.core.specs import HOST_DEVICE, ModelSpec, Task
from modelyard.core.views import ModelView
from modelyard.dialects import ollama_listing
from modelyard.dialects.ollama_listing import Listed
from modelyard.http import capabilities as of_all

_OLLAMAS: Final[Mapping[str, str]] = {Task.CHAT: "completion", Task.COMPLETION: "completion"}
"""Ollama's words for ours, where they differ."""
_NOT_TOLD: Final = frozenset({Task.CLASSIFICATION, Task.TRANSCRIPTION, Task.SPEECH})
"""Tasks that Ollama's clients have no use for."""
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
    known = [word for word in of_all.capabilities(spec, found) if word not in _NOT_TOLD]
    return list(dict.fromkeys(_OLLAMAS.get(word, word) for word in known))


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
        context_length=of_all.context_of(spec),
    )


def show(spec: ModelSpec, found: FoundModel | None, shown: Listed) -> dict[str, Any]:
    """One model in full, for `POST /api/show`."""
    return ollama_listing.show(
        shown,
        license_name=(found.license or "") if found else "",
        template=of_all.chat_template(found) if found else "",
        options={"num_ctx": of_all.context_of(spec)} if of_all.context_of(spec) else {},
        model_info=_metadata(found),
    )


def _metadata(found: FoundModel | None) -> dict[str, Any]:
    """What a GGUF file says of itself, but for long lists and the template."""
    if found is None or not isinstance(found.checkpoint, Checkpoint):
        return {}
    return {
        key: value
        for key, value in found.checkpoint.header.metadata.items()
        if isinstance(value, str | int | float) and key != of_all.CHAT_TEMPLATE
    }
