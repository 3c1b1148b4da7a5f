"""The models as Codex reads them: what it must know of one before it works with it.

Laws of this file:
- Only what is known is promised. Without a context length Codex does not make its history shorter
  by itself; without a sign of images it sends none.
- Instructions are few: those that come with Codex take thousands of tokens, which small models do
  not have. People replace ours with `model_instructions_file`.

Sources: openai/codex, codex-rs/protocol/src/openai_models.rs (ModelsResponse, ModelInfo). Codex
0.169 asks `GET /v1/models?client_version=…` where its `model_catalog_url` says so; it refuses an
answer whose `models` lack one of these keys, and does not mind more beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

QUERY: Final = "client_version"
"""The parameter by which Codex's question for models differs from everybody else's."""

INSTRUCTIONS: Final = (
    "You are a coding agent in a terminal, working in the user's folder with the tools you are "
    "given. Look before you change anything. Keep changes small and in the style of the code "
    "around them. Run what the project has to check your work. Go on until the task is done; then "
    "say briefly what you did and what you could not do."
)
TOOL_OUTPUT_TOKENS: Final = 10_000
"""How much of a tool's output Codex shows a model at most, as for OpenAI's own."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a model."""

    id: str
    context_tokens: int | None = None
    takes_images: bool = False


def catalog(models: Sequence[Known]) -> list[dict[str, Any]]:
    """The `models` of an answer to Codex, the first one first in its menu."""
    return [_shown(model, place) for place, model in enumerate(models)]


def _shown(model: Known, place: int) -> dict[str, Any]:
    context = model.context_tokens
    # What a tool prints may take a quarter of a small context.
    most = TOOL_OUTPUT_TOKENS if context is None else min(TOOL_OUTPUT_TOKENS, context // 4)
    shown: dict[str, Any] = {
        "slug": model.id,
        "display_name": model.id,
        "base_instructions": INSTRUCTIONS,
        "apply_patch_tool_type": "freeform",
        "experimental_supported_tools": [],
        "input_modalities": ["text", "image"] if model.takes_images else ["text"],
        "priority": place,
        "shell_type": "unified_exec",
        "support_verbosity": False,
        "supported_in_api": True,
        "supported_reasoning_levels": [],
        "supports_parallel_tool_calls": True,
        "truncation_policy": {"mode": "tokens", "limit": most},
        "visibility": "list",
    }
    return shown if context is None else shown | {"context_window": context}
