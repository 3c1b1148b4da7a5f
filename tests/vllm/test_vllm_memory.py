"""Estimates next to what the real vLLM holds; `python -m bench.estimates --vllm` has all kinds."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.vllm.real_memory import compared

KINDS = (
    "mha-llama",
    "gqa-llama",
    "mqa-llama",
    "moe-mixtral",
    "mla-deepseek2",
    "window-mistral",
    "window-and-all-gemma3",
    "state-mamba2",
    "state-and-heads-falcon-h1",
    "gated-state-qwen3next",
)


@pytest.mark.timeout(600)
def test_weights_are_right_to_a_hundredth_and_caches_to_a_fiftieth(tmp_path: Path) -> None:
    found = list(compared(tmp_path, KINDS))

    assert {each.name for each in found} == set(KINDS)
    assert [each for each in found if abs(each.weights_off) > 0.01] == []
    assert [each for each in found if abs(each.cache_off) > 0.02] == []
