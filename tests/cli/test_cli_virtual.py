"""Variants and virtual models at the command line."""

from __future__ import annotations

from tests.cli.conftest import Run


def test_list_shows_what_every_name_resolves_to(cli: Run) -> None:
    ran = cli("list")

    lines = {line.split()[0]: line for line in ran.out.splitlines()}
    assert "variant" in lines["parrot:short"]
    assert lines["parrot:short"].endswith("-> parrot")
    assert "virtual" in lines["either"]
    assert lines["either"].endswith("-> parrot:short, quick (ordered)")
    assert "lost: there is no model never-pulled" in ran.err


def test_list_as_json_names_them_beside_their_models(cli: Run) -> None:
    models = {model["id"]: model for model in cli("list", "--json").json}

    assert models["parrot"]["variants"] == {"parrot:short": {"max_output_tokens": 3}}
    assert [name for name, model in models.items() if "either" in model["virtuals"]] == [
        "parrot",
        "quick",
    ]


def test_show_tells_what_a_variant_changes_and_in_which_model(cli: Run) -> None:
    shown = cli("show", "parrot:short").out

    assert "parrot:short -> parrot" in shown
    assert "max_output_tokens 3" in shown
    assert "either" in shown


def test_show_tells_whom_a_virtual_model_stands_for(cli: Run) -> None:
    shown, lost, told = cli("show", "either"), cli("show", "lost"), cli("show", "either", "--json")

    assert shown.code == 0
    assert "parrot:short, quick" in shown.out
    assert "never-pulled" in lost.out
    assert told.json["models"] == ["parrot", "quick"]
    assert told.json["unknown"] == []


def test_run_asks_by_the_name_of_the_variant_or_the_virtual_model(cli: Run) -> None:
    short = cli("run", "parrot:short", "a b c d e f g h", "--json").json
    either = cli("run", "either", "a b c d e f g h", "--json").json

    assert (short["model"], short["usage"]["completion_tokens"]) == ("parrot:short", 3)
    assert (either["model"], either["usage"]["completion_tokens"]) == ("either", 3)


def test_a_virtual_model_whose_models_are_not_there_is_told_so(cli: Run) -> None:
    ran = cli("run", "lost", "hello")

    assert ran.code == 4
    assert "'lost' stands for never-pulled, and there is no such model" in ran.err
