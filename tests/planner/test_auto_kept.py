"""The file that keeps the steps of `auto`, and configurations that plans write."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from tests.planner.large_models import LLAMA_8B, folder
from tests.planner.machines import found_at, machine

from modelyard.app import engine_problems
from modelyard.config import load
from modelyard.config.plans import Ask
from modelyard.planner.plan import make_plan, view_of
from modelyard.runtime.kept_steps import KeptSteps, Step, Steps

KEPT = {"m": Steps("abc", {"auto": Step("context 4096", "as planned", ("as planned: why",))})}


def test_what_was_kept_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "state" / "auto.json"
    writing, reading = KeptSteps(path), KeptSteps(path)
    writing.steps = KEPT
    writing.write()

    reading.read()

    assert reading.steps == KEPT
    assert [each.name for each in path.parent.iterdir()] == ["auto.json"]


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"\xff\xfe", b'{"m": 5}', b'{"m": {"digest": "x"}}', b"{" * 100_000,
     b'{"m": {"digest": "x", "profiles": {"a": {"name": 1, "memory": "b", "tried": []}}}}'],
)  # fmt: skip
def test_a_file_that_makes_no_sense_is_ignored_and_told(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "auto.json"
    path.write_bytes(content)
    kept = KeptSteps(path)

    with caplog.at_level(logging.WARNING):
        kept.read()

    assert kept.steps == {}
    assert "is ignored, models begin with their plans" in caplog.text


def test_a_file_that_cannot_be_written_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    kept = KeptSteps(tmp_path / "file" / "auto.json")
    kept.steps = KEPT

    kept.write()

    assert "the steps of auto are not kept" in caplog.text


@pytest.mark.parametrize("cards", [(24564,), (12288,), (12288, 12288), ()])
def test_the_configuration_of_a_plan_passes_the_check_also_with_offloaded_weights(
    cards: tuple[int, ...], tmp_path: Path
) -> None:
    plan = make_plan(found_at(folder(tmp_path / "m", LLAMA_8B)), machine(*cards), Ask())
    path = tmp_path / "modelyard.yaml"
    path.write_text(view_of(plan).config)

    problems = engine_problems(load(path, env={}))

    # Where a vLLM is built for the host alone, it cannot run on cards; nothing else is wrong.
    assert [each for each in problems if "is built for" not in each] == []
    assert ("cpu_offload_gb" in view_of(plan).options) is (cards == (12288,))
