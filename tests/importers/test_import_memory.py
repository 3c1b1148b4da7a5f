"""What models claim of their cards where the source does not say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.importers.conftest import SAMPLES, surroundings
from tests.importers.test_import_samples import loaded

from modelyard.app import engine_problems
from modelyard.importers import import_path
from modelyard.importers.card_memory import claims
from modelyard.importers.llama_swap_groups import neighbours

CARDS = (10_000, 20_000)
VLLM = ["vllm", "serve", "m", "--gpu-memory-utilization", "0.5"]


@pytest.mark.parametrize(
    ("devices", "argv", "together", "claimed"),
    [
        (["gpu"], ["llama-server"], 1, {"gpu": 8500}),
        (["gpu"], ["llama-server"], 2, {"gpu": 4250}),
        (["nvidia:1"], ["llama-server"], 1, {"nvidia:1": 17_000}),
        (["nvidia:0", "nvidia:1"], VLLM, 1, {"nvidia:0": 5530, "nvidia:1": 10_530}),
        (["nvidia:0"], ["vllm", "serve", "m"], 3, {"nvidia:0": 9470}),
        (["nvidia:7"], ["llama-server"], 1, {}),
        (["cpu"], ["llama-server"], 1, {}),
    ],
)
def test_a_model_claims_what_its_command_would_take(
    devices: list[str], argv: list[str], together: int, claimed: dict[str, int], tmp_path: Path
) -> None:
    assert claims(devices, argv, surroundings(tmp_path, CARDS), together) == claimed


@pytest.mark.parametrize(
    ("tree", "together"),
    [
        ({}, {}),
        ({"groups": {"g": {"members": ["a", "b"]}}}, {"a": 1, "b": 1}),
        ({"groups": {"g": {"members": ["a", "b"], "swap": False}}}, {"a": 2, "b": 2}),
        ({"groups": {"g": {"members": ["a"], "exclusive": False}}}, {"a": None}),
        ({"groups": {"g": {"members": ["a"], "persistent": True}}}, {"a": None}),
        ({"matrix": {"vars": {"x": "a", "y": "b", "z": "c"}, "sets": {"s": "(x|y) & z", "t": "x"}}},
         {"a": 2, "b": 2, "c": 2}),
        ({"routing": {"router": {"settings": {"groups": {"g": {"members": ["a"]}}}}}}, {"a": 1}),
        ({"groups": {"g": 1}, "matrix": {"vars": [], "sets": 2}}, {}),
    ],
)  # fmt: skip
def test_who_runs_together_in_llama_swap(tree: Any, together: dict[str, int | None]) -> None:
    assert neighbours(tree) == together


def test_two_models_that_llama_swap_would_swap_do_not_fit_beside_each_other(
    tmp_path: Path,
) -> None:
    path = tmp_path / "config.yaml"
    models = {name: {"cmd": f"llama-server --port ${{PORT}} -m {name}"} for name in ("a", "b")}
    path.write_text(json.dumps({"models": models}))

    result = import_path(path, surroundings(tmp_path, (24_000,)), engine_problems)
    claimed = [spec.profiles[0].memory_mib["gpu"] for spec in loaded(result, tmp_path).values()]
    assert sum(claimed) > 24_000


def test_on_a_machine_without_cards_commands_run_on_the_host(tmp_path: Path) -> None:
    here = surroundings(tmp_path, ())

    models = loaded(
        import_path(SAMPLES / "llama-swap" / "matrix.yaml", here, engine_problems), tmp_path
    )
    assert {spec.profiles[0].devices for spec in models.values()} == {("cpu",)}
