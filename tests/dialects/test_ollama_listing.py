"""What Ollama's clients are told of models."""

from __future__ import annotations

import math
from datetime import datetime

import pytest

from modelyard.dialects import ollama_listing
from modelyard.dialects.ollama_listing import Listed

MODEL = Listed(
    "qwen3-8b",
    identity="r1",
    modified_at=1_700_000_000,
    size_bytes=5_000_000_000,
    format="gguf",
    family="qwen3",
    parameters=8_190_735_360,
    quantization="Q4_K_M",
    context_length=40_960,
    capabilities=["completion", "tools"],
)


def test_a_tag_says_what_is_known() -> None:
    shown = ollama_listing.tag(MODEL)

    assert (shown["name"], shown["model"]) == ("qwen3-8b", "qwen3-8b")
    assert shown["size"] == 5_000_000_000
    assert shown["details"] == {
        "parent_model": "",
        "format": "gguf",
        "family": "qwen3",
        "families": ["qwen3"],
        "parameter_size": "8.2B",
        "quantization_level": "Q4_K_M",
        "context_length": 40_960,
    }
    assert datetime.fromisoformat(shown["modified_at"]).timestamp() == 1_700_000_000


def test_a_model_of_which_nothing_is_known_has_empty_details() -> None:
    shown = ollama_listing.tag(Listed("mine", identity="", modified_at=0))

    assert shown["details"] == {
        "parent_model": "",
        "format": "",
        "family": "",
        "families": [],
        "parameter_size": "",
        "quantization_level": "",
    }
    assert shown["size"] == 0


def test_a_digest_is_long_enough_to_be_cut_and_changes_with_the_files() -> None:
    first = ollama_listing.tag(MODEL)["digest"]
    other = ollama_listing.tag(Listed("qwen3-8b", identity="r2", modified_at=0))["digest"]

    assert len(first) == len(other) == 64
    assert first != other


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, ""),
        (12, "12"),
        (22_700, "22.7K"),
        (268_098_176, "268.10M"),
        (7_615_616_512, "7.6B"),
        (1_040_000_000_000, "1.0T"),
    ],
)
def test_weights_are_counted_as_people_do(count: int, text: str) -> None:
    assert ollama_listing.count_text(count) == text


def test_a_running_model_says_when_it_goes() -> None:
    shown = ollama_listing.running(
        MODEL,
        expires_at=ollama_listing.expires(1_700_000_000, 300.0),
        held_bytes=6_000,
        on_cards_bytes=4_000,
        context_length=4096,
    )

    assert datetime.fromisoformat(shown["expires_at"]).timestamp() == 1_700_000_300
    assert (shown["size"], shown["size_vram"], shown["context_length"]) == (6_000, 4_000, 4096)


@pytest.mark.parametrize("idle_stop_s", [None, math.inf, 1e300])
def test_a_model_that_is_never_unloaded_goes_in_the_far_future(idle_stop_s: float | None) -> None:
    at = ollama_listing.expires(1_700_000_000, idle_stop_s)
    shown = ollama_listing.running(
        MODEL, expires_at=at, held_bytes=0, on_cards_bytes=0, context_length=0
    )

    assert datetime.fromisoformat(shown["expires_at"]).year > 2100


def test_a_model_shown_tells_its_architecture_and_what_its_file_says() -> None:
    shown = ollama_listing.show(
        MODEL,
        license_name="apache-2.0",
        template="{{ messages }}",
        options={"ctx_size": 8192},
        model_info={"qwen3.block_count": 36},
    )

    assert shown["model_info"] == {
        "general.architecture": "qwen3",
        "general.parameter_count": 8_190_735_360,
        "qwen3.context_length": 40_960,
        "qwen3.block_count": 36,
    }
    assert shown["parameters"] == "ctx_size 8192"
    assert shown["capabilities"] == ["completion", "tools"]


def test_progress_never_goes_beyond_the_whole() -> None:
    line = ollama_listing.progress("pulling weights", "a/b", 100, 130)

    assert (line["completed"], line["total"]) == (100, 100)
    assert line["digest"].startswith("sha256:")
