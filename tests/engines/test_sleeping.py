"""The sleep levels of known engines, and what the command engine says of wrong ones."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from modelyard.config.values import SLEEP_PRESETS
from modelyard.core.specs import Call, ModelSpec, SleepLevel, Task
from modelyard.engines.command import CommandEngine
from modelyard.engines.sleeping import PRESETS, with_levels

NAP = SleepLevel((Call("POST", "/nap"),), (Call("POST", "/rise"),))
SPEC = ModelSpec("yard", "command", frozenset({Task.CHAT}), command=("serve", "{port}"))


def test_the_configuration_knows_exactly_the_presets_that_there_are() -> None:
    assert set(SLEEP_PRESETS) == set(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_passes_the_engines_own_check(preset: str) -> None:
    assert CommandEngine().problems(with_levels(replace(SPEC, sleep_preset=preset))) == ()


@pytest.mark.parametrize("preset", PRESETS)
def test_the_bodies_of_all_calls_are_json_objects(preset: str) -> None:
    calls = [call for level in PRESETS[preset].values() for call in (*level.enter, *level.leave)]
    bodies = [json.loads(call.body) for call in calls if call.body is not None]

    assert all(isinstance(body, dict) for body in bodies)


def test_after_level_2_vllm_reads_its_weights_again_before_it_takes_its_cache_back() -> None:
    wake = PRESETS["vllm"][2].leave

    assert [str(call) for call in wake] == [
        "POST /wake_up?tags=weights",
        "POST /collective_rpc",
        "POST /wake_up?tags=kv_cache",
        "POST /reset_prefix_cache",
    ]
    assert json.loads(wake[1].body or "") == {"method": "reload_weights"}
    assert wake[1].timeout_s > Call("", "").timeout_s


@pytest.mark.parametrize("preset", ["sglang", "lmdeploy"])
def test_an_engine_that_cannot_reload_by_itself_has_no_level_2(preset: str) -> None:
    assert list(PRESETS[preset]) == [1]


def test_a_preset_fills_the_levels() -> None:
    assert with_levels(replace(SPEC, sleep_preset="vllm")).sleep == PRESETS["vllm"]


def test_levels_of_ones_own_are_kept() -> None:
    spec = replace(SPEC, sleep={1: NAP})

    assert with_levels(spec) is spec


def test_an_unknown_preset_gives_no_levels_and_is_reported() -> None:
    spec = replace(SPEC, sleep_preset="vlm")

    assert with_levels(spec).sleep == {}
    assert CommandEngine().problems(spec) == (
        "sleep: 'vlm' is no engine whose sleep is known; there are vllm, sglang, lmdeploy",
    )


@pytest.mark.parametrize(
    ("sleep", "problem"),
    [
        ({3: NAP}, "sleep.3: there are the levels 1 and 2; stopping is what comes after"),
        ({1: replace(NAP, enter=())}, "sleep.1.sleep: needs at least one call"),
        ({2: replace(NAP, leave=())}, "sleep.2.wake: needs at least one call"),
        (
            {1: replace(NAP, leave=(Call("POST", "http://elsewhere/"),))},
            "sleep.1.wake[0]: 'http://elsewhere/' is not a route",
        ),
    ],
)
def test_levels_that_cannot_work_are_reported(sleep: dict[int, SleepLevel], problem: str) -> None:
    assert CommandEngine().problems(replace(SPEC, sleep=sleep)) == (problem,)
