"""What can be asked of a model, in the words of `/v1/models`.

Laws of this file:
- Everything is in memory already: nothing here reads a file or touches an engine.
- A capability is told by the files: the kind of the model, its inputs, what its chat template
  mentions. A model without files that the catalog knows has those that follow from its tasks.

Sources: `vision`, `audio`, `tools` and `thinking` are Ollama's words (types/model/capability.go);
the others are our tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from modelyard.catalog.checkpoint import Checkpoint
from modelyard.catalog.classify import Input
from modelyard.catalog.found import FoundModel
from modelyard.core.specs import ModelSpec, Task

CHAT_TEMPLATE: Final = "tokenizer.chat_template"
"""Where a GGUF file keeps it."""
_OF_INPUTS: Final[Mapping[Input, str]] = {Input.IMAGE: "vision", Input.AUDIO: "audio"}
_THINKING_WORDS: Final = ("enable_thinking", "reasoning_content", "reasoning_effort", "<think>")
"""What a chat template mentions if its model thinks aloud: switches, and the marks around it."""
_CONTEXT_OPTIONS: Final = ("ctx_size", "max_model_len")
"""What engines call the context that a model runs with."""


def capabilities(spec: ModelSpec, found: FoundModel | None) -> list[str]:
    """The model's tasks, then what its files tell besides, each once.

    `found` is what the catalog knows of the files; None for nothing.
    """
    told = [task.value for task in Task if task in spec.tasks]
    if found is not None:
        told += [word for kind, word in _OF_INPUTS.items() if kind in found.verdict.inputs]
        if Task.CHAT in spec.tasks:
            template = chat_template(found)
            told += ["tools"] if "tools" in template else []
            told += ["thinking"] if any(word in template for word in _THINKING_WORDS) else []
    return told


def chat_template(found: FoundModel) -> str:
    """The model's chat template; empty where it has none, or one too long to be kept."""
    if isinstance(found.checkpoint, Checkpoint):
        value = found.checkpoint.header.metadata.get(CHAT_TEMPLATE)
        return value if isinstance(value, str) else ""
    return found.checkpoint.description.template or ""


def context_of(spec: ModelSpec) -> int:
    """The context that the model runs with, in tokens; 0 where nobody knows."""
    for name in _CONTEXT_OPTIONS:
        value = spec.options.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return spec.context_length or 0
