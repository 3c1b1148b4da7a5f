"""Values as people read them."""

from __future__ import annotations

import pytest

from modelyard.cli.output import print_table
from modelyard.cli.words import (
    ago,
    bar,
    clean,
    counted,
    doing,
    memory,
    shares,
    short_path,
    span,
    told_auto,
    told_price,
)
from modelyard.core.views import AutoView, ModelView, PriceView


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (None, "-"),
        (0.0, "0.0 s"),
        (0.84, "0.8 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.7, "1 min"),
        (3599, "59 min"),
        (7500, "2 h 5 min"),
        (7200, "2 h"),
        (90061, "1 d 1 h"),
    ],
)
def test_a_span_has_at_most_two_units(seconds: float | None, expected: str) -> None:
    assert span(seconds) == expected


@pytest.mark.parametrize(
    ("mib", "expected"), [(None, "-"), (0, "0 MiB"), (1023, "1023 MiB"), (7680, "7.5 GiB")]
)
def test_memory_is_shown_in_the_unit_that_fits(mib: int | None, expected: str) -> None:
    assert memory(mib) == expected


@pytest.mark.parametrize(
    ("at", "expected"),
    [(None, "never"), (100.0, "just now"), (105.0, "just now"), (40.0, "1 min ago")],
)
def test_a_moment_is_told_by_how_long_ago_it_was(at: float | None, expected: str) -> None:
    assert ago(at, 100.0) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain 中文\tand\nlines", "plain 中文\tand\nlines"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;a title\x07text", "text"),
        ("\x1b]8;;http://evil\x1b\\link", "link"),
        ("back\x08\x08 bell\x07 return\r", "back bell return"),
        ("\x9b31m C1", "31m C1"),
        ("cut off \x1b", "cut off "),
    ],
)
def test_what_would_steer_a_terminal_is_left_out(text: str, expected: str) -> None:
    assert clean(text) == expected


@pytest.mark.parametrize(
    ("part", "whole", "expected"),
    [(0, 10, "[----]"), (5, 10, "[##--]"), (20, 10, "[####]"), (1, 0, "[----]")],
)
def test_a_bar_never_leaves_its_frame(part: float, whole: float, expected: str) -> None:
    assert bar(part, whole, width=4) == expected


def test_progress_is_told_behind_the_state() -> None:
    view = ModelView("m", "starting", ["chat"], "llamacpp", phase="loading weights", percent=41.6)

    assert doing(view) == "starting: loading weights 42 %"


def test_what_auto_does_is_told_with_what_was_too_much() -> None:
    planned = AutoView("auto", "as planned", "the planner's choice", 8192, {"ctx_size": 8192})
    below = AutoView(
        "auto", "context 4096", "longer inputs are refused", 4096,
        {"ctx_size": 4096, "enforce_eager": True}, ["as planned: out of \x1b[31mmemory"],
    )  # fmt: skip

    assert told_auto(planned) == "as planned: ctx_size 8192"
    assert told_auto(below) == (
        "context 4096: ctx_size 4096, enforce_eager on; longer inputs are refused\n"
        "too little memory before: as planned: out of memory"
    )


def test_a_price_is_told_with_its_currency_and_its_tokens() -> None:
    view = PriceView("0.2", "0.6", "0.05", 1000000, "EUR")

    assert told_price(view) == "0.2 in, 0.6 out, 0.05 in again, EUR per 1000000 tokens"


def test_memory_is_told_by_device() -> None:
    assert shares({"cpu": 512, "GPU-1": 7680}) == "cpu 512 MiB, GPU-1 7.5 GiB"


def test_one_is_singular() -> None:
    assert (counted(1, "model"), counted(0, "model")) == ("1 model", "0 models")


def test_a_path_below_home_is_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")

    assert (short_path("/home/ann/m.gguf"), short_path("/home/anna/m")) == (
        "~/m.gguf",
        "/home/anna/m",
    )


def test_a_table_off_a_terminal_is_neither_cut_nor_coloured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    long = "x" * 300
    print_table(("NAME", "STATE"), [("猫", "ready"), (f"[bold]{long}", "failed: \x1b[31mred")])

    header, first, second = capsys.readouterr().out.splitlines()
    assert second == f"[bold]{long}   failed: red"
    assert first.split() == ["猫", "ready"]
    assert header.split() == ["NAME", "STATE"]
