"""Files that describe what is simulated: read strictly, with all problems at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelyard.core.errors import ConfigError
from modelyard.simulation.costs import KINDS, costs_of
from modelyard.simulation.files import CostTable, read_costs, read_devices, read_models
from modelyard.simulation.parameters import parameters
from modelyard.simulation.values import Costs, Model, Switch

GIB = 1024


def models(tmp_path: Path, text: str, table: CostTable | None = None) -> dict[str, Model]:
    path = tmp_path / "models.yaml"
    path.write_text(text)
    return read_models(path, [76 * GIB, 76 * GIB], table or CostTable("gguf"))


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as told:
        models(tmp_path, text)
    return list(told.value.problems)


def test_memory_defaults_to_what_the_weights_suggest(tmp_path: Path) -> None:
    found = models(
        tmp_path,
        "small: {weights_gib: 10}\nbig: {weights_gib: 70}\n"
        "wide: {weights_gib: 100, tensor_parallel: 2}\nsaid: {weights_gib: 10, memory_gib: 12.5}\n",
    )

    assert {name: model.memory_mib for name, model in found.items()} == {
        "small": int(17.5 * GIB),
        "big": 76 * GIB,
        "wide": int(63.5 * GIB),
        "said": 12_800,
    }


def test_a_model_may_have_costs_of_its_own(tmp_path: Path) -> None:
    found = models(
        tmp_path,
        "a: {weights_gib: 20, costs: L2}\n"
        "b: {weights_gib: 20, costs: {up: 1m, down: 2}}\n"
        "c: {weights_gib: 20, costs: {start: {up: 9, down: 1}, L1: {up: 500ms, down: 3}}}\n",
    )

    assert found["a"].costs == costs_of("L2", 20)
    assert found["b"].costs == Costs(Switch(60, 2))
    assert found["c"].costs == Costs(Switch(9, 1), {1: Switch(0.5, 3)})


def test_all_problems_of_the_models_are_told_at_once(tmp_path: Path) -> None:
    told = problems(
        tmp_path,
        "a: {weights: 8}\n"
        "b: {weights_gib: -1, tensor_parallel: 3}\n"
        "c: {weights_gib: 8, pinned: 1, priority: high}\n"
        "d: {weights_gib: 8, costs: {up: 5}}\n"
        "e: {weights_gib: 8, costs: warm}\n"
        "f: 8GiB\n"
        "g: {}\n"
        "h: {weights_gib: 8, replicas: {min: 3, max: 2}}\n",
    )

    assert [text.split(": ")[:2] for text in told] == [
        ["models.yaml:1", "a.weights"],
        ["models.yaml:2", "b.weights_gib"],
        ["models.yaml:2", "b.tensor_parallel"],
        ["models.yaml:3", "c.priority"],
        ["models.yaml:3", "c.pinned"],
        ["models.yaml:4", "d.costs.down"],
        ["models.yaml:5", "e.costs"],
        ["models.yaml:6", "f"],
        ["models.yaml:7", "g.weights_gib"],
        ["models.yaml:8", "h.replicas.min"],
    ]
    assert "did you mean weights_gib?" in told[0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "names no models"),
        ("[1, 2]", "keys and values"),
        ("a: &x {b: *x}", "refers to itself"),
        ("a: {weights_gib: 1}\na: {weights_gib: 2}", "written twice"),
        ("? [a]\n: 1", "a key must be plain text"),
        ("a: {weights_gib: !!python/object 1}", "the tag"),
        ("a: " + "[" * 100, "nested more than"),
        ('"a\\u001b[31m": {weights_gib: 1}', "is no name"),
        ("a: {weights_gib: 90}", "does not fit on a device of 76 GiB"),
        ("a: {weights_gib: 190, tensor_parallel: 2}", "does not fit on 2 devices"),
        ("a: {weights_gib: 1e999}", "not a number that can be used"),
    ],
)
def test_hostile_models_are_refused(tmp_path: Path, text: str, told: str) -> None:
    assert told in "\n".join(problems(tmp_path, text))


def costs(tmp_path: Path, text: str) -> CostTable:
    path = tmp_path / "costs.yaml"
    path.write_text(text)
    return read_costs(str(path), "anywhere")


def test_costs_for_all_models_alike(tmp_path: Path) -> None:
    flat = costs(tmp_path, "{up: 5, down: 1}")
    levels = costs(tmp_path, "start: {up: 40, down: 3}\nL2: {up: 4, down: 1}\n")

    level = costs(tmp_path, "{L1: {up: 4, down: 1}}")

    assert flat.of("any", 8) == Costs(Switch(5, 1))
    assert level.of("any", 8) == Costs(Switch(4, 1), {1: Switch(4, 1)})
    assert levels.of("any", 8) == Costs(Switch(40, 3), {2: Switch(4, 1)})


def test_costs_by_model_with_a_default(tmp_path: Path) -> None:
    table = costs(tmp_path, "a: {up: 5, down: 1}\ndefault: {start: {up: 9, down: 2}}\n")

    assert (table.of("a", 8), table.of("b", 8)) == (Costs(Switch(5, 1)), Costs(Switch(9, 2)))


def test_a_model_without_costs_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="b: has no costs"):
        models(tmp_path, "b: {weights_gib: 1}", costs(tmp_path, "a: {up: 5, down: 1}"))


def test_all_problems_of_the_costs_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as told:
        costs(
            tmp_path,
            "a: {up: soon, down: 1}\nb: {up: 1, down: 1, L1: {}}\nc: {L1: {up: 1}}\nd: {}\n",
        )

    assert [text.split(": ")[1] for text in told.value.problems] == [
        "a.up",
        "b.L1",
        "c.L1.down",
        "d",
    ]


def test_a_kind_of_costs_that_does_not_exist_is_told() -> None:
    with pytest.raises(ConfigError, match="'L3' is no kind of costs; there are L1, L2"):
        read_costs("L3", "anywhere")


def test_heavier_models_cost_more_in_every_kind() -> None:
    for kind in KINDS:
        small, large = costs_of(kind, 4).start, costs_of(kind, 40).start
        assert large.up_s > small.up_s


def test_l1_and_l2_sleep_only_at_home() -> None:
    assert (costs_of("L1", 8).sleep, costs_of("L1", 8, "home").sleep) == (
        {},
        {1: costs_of("L1", 8).start},
    )
    assert sorted(costs_of("tiers", 8).sleep) == [1, 2]


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("76GiB", [76 * GIB]),
        ("2x76GiB", [76 * GIB] * 2),
        ("2x80GiB, 24GiB", [80 * GIB, 80 * GIB, 24 * GIB]),
        ("3 × 1024MiB", [GIB] * 3),
    ],
)
def test_devices_are_written_by_count_and_size(text: str, sizes: list[int]) -> None:
    assert read_devices(text) == sizes


@pytest.mark.parametrize(
    "text", ["", "2x", "76", "0x76GiB", "2x76GiB,,", "999x1GiB", "2xlots", "0"]
)
def test_devices_that_make_no_sense_are_told(text: str) -> None:
    with pytest.raises(ConfigError, match="--devices"):
        read_devices(text)


def test_parameters_are_read_as_the_configuration_reads_them() -> None:
    assert parameters(["scheduling.backoff=2s", "backoff_max=5m"]).backoff_s == 2.0
    with pytest.raises(ConfigError) as told:
        parameters(["backoff=soon", "nonsense=1"])
    assert len(told.value.problems) == 2
    with pytest.raises(ConfigError, match="is not an assignment"):
        parameters(["backoff"])
