"""Durations and sizes: what people write is read exactly, and nothing ambiguous is guessed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.config.units import (
    LONGEST_S,
    format_duration,
    format_mib,
    format_size,
    parse_duration,
    parse_mib,
    parse_size,
)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("90s", 90.0),
        ("10m", 600.0),
        ("500ms", 0.5),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        ("1h 30m", 5400.0),
        ("2d", 172_800.0),
        ("1m1ms", 60.001),
        ("90", 90.0),
        (90, 90.0),
        (0.25, 0.25),
        (0, 0.0),
    ],
)
def test_a_duration_is_read_as_seconds(written: object, seconds: float) -> None:
    assert parse_duration(written) == seconds


@pytest.mark.parametrize(
    "written",
    ["", "m", "10 minutes", "-5s", "1e3", "30m1h", "5s5s", -1, True, None, [5], "nan", "9" * 50],
)
def test_what_is_no_duration_is_refused_with_advice(written: object) -> None:
    with pytest.raises(ValueError, match="write it like 90s, 10m or 1h30m"):
        parse_duration(written)


@pytest.mark.parametrize("written", [float("nan"), float("inf"), 1e300, "3651d"])
def test_a_duration_that_no_timer_can_wait_for_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="between 0 and 3650d"):
        parse_duration(written)


@given(st.floats(0, LONGEST_S))
def test_every_duration_survives_being_written(number: float) -> None:
    seconds = parse_duration(number)

    assert parse_duration(format_duration(seconds)) == seconds
    assert abs(seconds - number) <= 0.0005001


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0, "0s"), (0.5, "500ms"), (75, "1m15s"), (5400, "1h30m"), (90061.001, "1d1h1m1s1ms")],
)
def test_durations_are_written_in_the_usual_form(seconds: float, written: str) -> None:
    assert format_duration(seconds) == written


@pytest.mark.parametrize(
    ("written", "size_bytes"),
    [
        ("512MiB", 512 * 1024**2),
        ("2GiB", 2 * 1024**3),
        ("2GB", 2 * 1000**3),
        ("1.5G", 1_500_000_000),
        ("1.5Gi", 1_610_612_736),
        ("2 gib", 2 * 1024**3),
        ("100B", 100),
        ("10kB", 10_000),
        ("0.3KiB", 308),
        (0, 0),
    ],
)
def test_a_size_is_read_as_bytes(written: object, size_bytes: int) -> None:
    assert parse_size(written) == size_bytes


@pytest.mark.parametrize("written", [512, "512", "1.5", 1])
def test_a_size_without_a_unit_is_refused_as_ambiguous(written: object) -> None:
    with pytest.raises(ValueError, match="has no unit; write it with its unit"):
        parse_size(written)


@pytest.mark.parametrize(
    "written", ["", "MiB", "-1GiB", "1iB", "1i", "12 parsecs", "1e3MiB", True, None, 1.5, []]
)
def test_what_is_no_size_is_refused_with_advice(written: object) -> None:
    with pytest.raises(ValueError, match="write it with its unit, like 512MiB or 2GB"):
        parse_size(written)


def test_a_size_beyond_all_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="larger than any memory"):
        parse_size("999999999999999999TiB")


@given(st.integers(0, 1 << 60))
def test_every_size_survives_being_written(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == size_bytes


@given(st.integers(0, 1 << 40))
def test_every_memory_size_survives_being_written(mib: int) -> None:
    assert parse_mib(format_mib(mib)) == mib


def test_memory_is_rounded_up_to_whole_mib() -> None:
    assert [parse_mib(size) for size in ("1B", "1MiB", "1GB")] == [1, 1, 954]
