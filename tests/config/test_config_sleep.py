"""`sleep`: a known engine's name or the calls themselves, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from modelyard.config import Config, describe, json_schema, load
from modelyard.config.values import SLEEP_PRESETS
from modelyard.core.specs import Call, ModelSpec, SleepLevel

Loader = Callable[..., Config]
Problems = Callable[..., Sequence[str]]

COMMAND = "engine: command, tasks: [chat], command: [serve]"
CALLS = "{sleep: [POST /down], wake: [POST /up]}"
BY_HAND = """
    models:
      m:
        engine: command
        tasks: [chat]
        command: [serve]
        idle_sleep: 30s
        sleep:
          2:
            sleep: [POST /sleep?level=2&mode=wait]
            wake:
              - POST /wake_up?tags=weights
              - {call: POST /reload, body: {method: reload, deep: [1, {ok: true}]}, timeout: 90s}
          1: {sleep: [{call: PUT /nap}], wake: [GET /rise]}
    """


def model(config: Config) -> ModelSpec:
    return config.models[0]


def test_without_a_word_a_model_has_no_levels_and_sleeps_after_the_default(
    load_text: Loader,
) -> None:
    spec = model(load_text(f"models: {{m: {{{COMMAND}}}}}"))

    assert (spec.sleep, spec.sleep_preset, spec.limits.idle_sleep_s) == ({}, "", 600.0)


def test_calls_are_read_with_their_bodies_and_patience_in_the_order_of_levels(
    load_text: Loader,
) -> None:
    spec = model(load_text(BY_HAND))
    reload = Call("POST", "/reload", '{"method": "reload", "deep": [1, {"ok": true}]}', 90.0)

    assert list(spec.sleep) == [1, 2]
    assert spec.sleep == {
        1: SleepLevel((Call("PUT", "/nap"),), (Call("GET", "/rise"),)),
        2: SleepLevel(
            (Call("POST", "/sleep?level=2&mode=wait"),),
            (Call("POST", "/wake_up?tags=weights"), reload),
        ),
    }
    assert spec.limits.idle_sleep_s == 30.0


@pytest.mark.parametrize("preset", SLEEP_PRESETS)
def test_a_preset_stays_a_name(load_text: Loader, preset: str) -> None:
    spec = model(load_text(f"models: {{m: {{{COMMAND}, sleep: {preset}}}}}"))

    assert (spec.sleep_preset, spec.sleep) == (preset, {})


def test_a_preset_may_come_from_a_variable(load_text: Loader) -> None:
    text = f'models: {{m: {{{COMMAND}, sleep: "${{env:SLEEPER}}"}}}}'
    config = load_text(text, env={"SLEEPER": "sglang"})

    assert model(config).sleep_preset == "sglang"
    assert describe(config)["models"]["m"]["sleep"] == "${env:SLEEPER}"


def test_an_idle_time_before_sleep_is_shared_or_a_models_own(load_text: Loader) -> None:
    text = f"""
        defaults: {{idle_sleep: never}}
        models:
          shared: {{{COMMAND}, sleep: vllm}}
          own: {{{COMMAND}, sleep: vllm, idle_sleep: 5m}}
        """

    assert [spec.limits.idle_sleep_s for spec in load_text(text).models] == [None, 300.0]


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        (f"{COMMAND}, sleep: vlm", ".sleep: 'vlm' is no engine whose sleep is known; did you mean"),
        (f"{COMMAND}, sleep: 1", ".sleep: 1 is no engine whose sleep is known; write one of vllm,"),
        (f"{COMMAND}, sleep: [vllm]", ".sleep: a list is no engine whose sleep is known; write"),
        (f"{COMMAND}, sleep: {{3: {CALLS}}}", ".sleep.3: '3' is not a level; write 1 (the weights"),
        (f"{COMMAND}, sleep: {{deep: {CALLS}}}", ".sleep.deep: 'deep' is not a level; write 1"),
        (f"{COMMAND}, sleep: {{1: }}", ".sleep.1.sleep: is missing; give it a value"),
        (f"{COMMAND}, sleep: {{1: POST /x}}", ".sleep.1: must hold keys and values (key: value)"),
        (
            f"{COMMAND}, sleep: {{1: {{sleep: [], wake: [POST /x]}}}}",
            ".sleep.1.sleep: needs at least one call, like POST /sleep?level=1",
        ),
        (
            f"{COMMAND}, sleep: {{1: {{sleep: [{'POST /x, ' * 17}], wake: [POST /x]}}}}",
            ".sleep.1.sleep: has 17 calls; there can be at most 16",
        ),
        (
            f"{COMMAND}, sleep: {{1: {{sleep: [POST /x], wake: POST /x}}}}",
            ".sleep.1.wake: must be a list, not 'POST /x'; write each call for itself, like",
        ),
        (
            f"{COMMAND}, sleep: {{1: {{sleep: [POST /x], wake: [POST /x], deep: 1}}}}",
            ".sleep.1.deep: there is no such key; the keys here are sleep, wake",
        ),
        (
            f"{COMMAND}, sleep: {{2: {{sleep: [{{cll: POST /x, call: POST /x}}], wake: [GET /]}}}}",
            ".sleep.2.sleep[0].cll: there is no such key; did you mean call?",
        ),
        (
            f"{COMMAND}, sleep: {{2: {{sleep: [{{call: POST /x, body: 5}}], wake: [GET /]}}}}",
            ".sleep.2.sleep[0].body: must hold keys and values (key: value), not 5",
        ),
        (
            f"{COMMAND}, sleep: {{2: {{sleep: [{{call: POST /x, timeout: 0}}], wake: [GET /]}}}}",
            ".sleep.2.sleep[0].timeout: must be more than 0",
        ),
        (
            "source: x, sleep: vllm",
            ".sleep: belongs to engine: command; llamacpp frees as much by stopping and starts",
        ),
        (
            f"source: x, sleep: {{1: {CALLS}}}",
            ".sleep: belongs to engine: command; llamacpp frees as much by stopping and starts",
        ),
    ],
)
def test_a_wrong_sleep_is_refused_with_advice(
    problems_of: Problems, keys: str, problem: str
) -> None:
    first = problems_of(f"models:\n  m: {{{keys}}}")[0]

    assert first.startswith(f"modelyard.yaml:2: models.m{problem}")


@pytest.mark.parametrize(
    "call",
    [
        "POST",
        "/sleep",
        "post /sleep",
        "POST sleep",
        "POST  /sleep",
        "POST /sleep now",
        "POST http://elsewhere/sleep",
        "POST /sl\\u00e9ep",
        "POST /x\\r\\nHost: elsewhere",
        "CONNECT /x",
        "",
        "POST /" + "x" * 2000,
    ],
)
def test_what_is_no_call_to_the_engines_own_routes_is_refused(
    problems_of: Problems, call: str
) -> None:
    text = f'models: {{m: {{{COMMAND}, sleep: {{1: {{sleep: ["{call}"], wake: [GET /]}}}}}}}}'

    (problem,) = problems_of(text)
    assert "models.m.sleep.1.sleep[0]: " in problem
    assert problem.endswith(
        "is not a call; write its method and its route, like POST /sleep?level=1"
    )


def test_what_is_described_loads_as_the_same_levels(load_text: Loader, tmp_path: Path) -> None:
    config = load_text(BY_HAND)
    written = tmp_path / "again.yaml"
    written.write_text(json.dumps(describe(config)))

    assert load(written, env={}).models == config.models


def test_secrets_of_calls_are_not_described(load_text: Loader) -> None:
    text = f"""
        models:
          m:
            {COMMAND.replace(", ", chr(10) + " " * 12)}
            sleep:
              1:
                sleep: ["POST /x?key=${{env:S}}"]
                wake: [{{call: POST /y, body: {{token: "plain", other: "${{env:S}}"}}}}]
        """
    described = describe(load_text(text, env={"S": "s3cret"}))
    calls = described["models"]["m"]["sleep"]["1"]

    assert "s3cret" not in json.dumps(described)
    assert calls["sleep"] == ["POST /x?key=${env:S}"]
    assert calls["wake"][0]["body"] == {"token": "<hidden>", "other": "${env:S}"}


def test_the_schema_allows_both_ways_of_writing_levels_and_calls() -> None:
    sections: dict[str, Any] = json_schema()["$defs"]
    preset, levels = sections["ModelSection"]["properties"]["sleep"]["anyOf"]
    short, whole = sections["SleepSection"]["properties"]["wake"]["items"]["anyOf"]

    assert preset["enum"] == list(SLEEP_PRESETS)
    assert levels["additionalProperties"] == {"$ref": "#/$defs/SleepSection"}
    assert (short["type"], whole) == ("string", {"$ref": "#/$defs/CallSection"})


def test_the_variable_that_names_fake_gpus_is_no_setting() -> None:
    assert load(None, env={"MODELYARD_FAKE_GPUS": "/somewhere"}) == Config()
