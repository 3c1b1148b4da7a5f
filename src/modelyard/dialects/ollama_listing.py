"""Ollama's listings: what it says of models, running or not, and of downloads.

Laws of this file:
- Pure functions from facts to what Ollama's clients read; a fact that nobody knows is an empty
  string or 0, as Ollama writes it.
- A digest is a name for the very files, not their checksum: nobody reads gigabytes for a list.

Source: api/types.go of Ollama (ListResponse, ShowResponse, ProcessResponse, ProgressResponse).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from modelyard.dialects.ollama_answers import moment

ALWAYS_S: Final = 100 * 365 * 86_400.0
"""How far away "never unloaded" is written: Ollama's clients read a moment."""

_UNITS: Final = ((1e12, "T", 1), (1e9, "B", 1), (1e6, "M", 2), (1e3, "K", 1))


@dataclass(frozen=True, slots=True)
class Listed:
    """One model, as far as it is known."""

    name: str
    identity: str
    """Changes with the files of the model."""
    modified_at: float
    """Seconds since the epoch."""
    size_bytes: int = 0
    format: str = ""
    """`gguf`, `safetensors`."""
    family: str = ""
    parameters: int = 0
    quantization: str = ""
    context_length: int | None = None
    capabilities: Sequence[str] = ()
    """`completion`, `tools`, `thinking`, `vision`, `audio`, `insert`, `embedding`; and `rerank`,
    which Ollama does not have."""


def tag(model: Listed) -> dict[str, Any]:
    """A model in `GET /api/tags`."""
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": moment(model.modified_at),
        "size": model.size_bytes,
        "digest": _digest(model),
        "details": _details(model),
        "capabilities": list(model.capabilities),
    }


def running(
    model: Listed, *, expires_at: float, held_bytes: int, on_cards_bytes: int, context_length: int
) -> dict[str, Any]:
    """A model in `GET /api/ps`; `expires_at` may be infinite."""
    shown = tag(model) | {
        "size": held_bytes,
        "size_vram": on_cards_bytes,
        "expires_at": moment(expires_at),
        "context_length": context_length,
    }
    del shown["modified_at"]
    return shown


def expires(last_used_at: float, idle_stop_s: float | None) -> float:
    """When a model that nobody uses any more is unloaded."""
    kept_s = ALWAYS_S if idle_stop_s is None else min(idle_stop_s, ALWAYS_S)
    return last_used_at + kept_s


def show(
    model: Listed,
    *,
    license_name: str,
    template: str,
    options: Mapping[str, Any],
    model_info: Mapping[str, Any],
) -> dict[str, Any]:
    """The answer of `POST /api/show`; `options` are those the model runs with."""
    return {
        "license": license_name,
        "modelfile": f"# {model.name}: run by Modelyard, not from a Modelfile\n",
        "parameters": "\n".join(f"{name} {value}" for name, value in options.items()),
        "template": template,
        "details": _details(model),
        "model_info": {**_general(model), **model_info},
        "capabilities": list(model.capabilities),
        "modified_at": moment(model.modified_at),
    }


def count_text(count: int) -> str:
    """How many weights, as people say it: `7.6B`, `268.10M`; empty for none."""
    for unit, letter, digits in _UNITS:
        if count >= unit:
            return f"{count / unit:.{digits}f}{letter}"
    return str(count) if count else ""


def progress(status: str, name: str, total: int, done: int) -> dict[str, Any]:
    """A line of `POST /api/pull` while files come."""
    digest = "sha256:" + hashlib.sha256(name.encode()).hexdigest()
    return {"status": status, "digest": digest, "total": total, "completed": min(done, total)}


def _details(model: Listed) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": model.format,
        "family": model.family,
        "families": [model.family] if model.family else [],
        "parameter_size": count_text(model.parameters),
        "quantization_level": model.quantization,
        **({"context_length": model.context_length} if model.context_length else {}),
    }


def _general(model: Listed) -> dict[str, Any]:
    """What clients look for in `model_info`, for models whose files say nothing themselves."""
    family = model.family or "unknown"
    told: dict[str, Any] = {"general.architecture": family}
    if model.parameters:
        told["general.parameter_count"] = model.parameters
    if model.context_length:
        told[f"{family}.context_length"] = model.context_length
    return told


def _digest(model: Listed) -> str:
    """64 hexadecimal digits, because Ollama's command shows the first twelve."""
    return hashlib.sha256(f"{model.name}\0{model.identity}".encode()).hexdigest()
