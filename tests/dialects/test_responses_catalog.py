"""The models as Codex reads them."""

from __future__ import annotations

from modelyard.dialects.responses_catalog import Known, catalog

REQUIRED = {
    "slug",
    "display_name",
    "base_instructions",
    "experimental_supported_tools",
    "priority",
    "shell_type",
    "support_verbosity",
    "supported_in_api",
    "supported_reasoning_levels",
    "supports_parallel_tool_calls",
    "truncation_policy",
    "visibility",
}
"""Keys of Codex's ModelInfo that have no default."""


def test_every_model_has_what_codex_cannot_do_without() -> None:
    models = catalog([Known("a"), Known("b", 8192, takes_images=True)])

    assert all(set(model) >= REQUIRED for model in models)
    assert [(model["slug"], model["priority"]) for model in models] == [("a", 0), ("b", 1)]


def test_what_is_not_known_is_not_promised() -> None:
    (model,) = catalog([Known("a")])

    assert "context_window" not in model
    assert model["input_modalities"] == ["text"]
    assert model["truncation_policy"]["limit"] == 10_000


def test_tools_take_no_more_than_a_quarter_of_a_small_context() -> None:
    (model,) = catalog([Known("a", 8192, takes_images=True)])

    assert (model["context_window"], model["truncation_policy"]["limit"]) == (8192, 2048)
    assert model["input_modalities"] == ["text", "image"]
