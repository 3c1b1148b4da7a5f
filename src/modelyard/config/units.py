"""Durations and sizes as people write them, and back.

Laws of this file:
- What `format_*` writes, `parse_*` reads as the same value.
- Arithmetic is exact (`Fraction`), so `1.5GiB` is 1536 MiB and never 1535.
- A refusal is a `ValueError` whose text fits behind "key: ".
"""

from __future__ import annotations

import re
from fractions import Fraction

from modelyard.config.wording import describe_kind, shorten

MIB = 1024 * 1024
LONGEST_S = 3650 * 86400.0
"""Ten years: longer waits are mistakes, and timers overflow somewhere beyond."""
LARGEST_BYTES = 1 << 60

_NUMBER = r"[0-9]{1,20}(?:\.[0-9]{1,40})?"
_MS_PER_UNIT = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_DURATION = re.compile("".join(rf"(?:({_NUMBER})\s*{unit}\s*)?" for unit in _MS_PER_UNIT))
_PLAIN = re.compile(_NUMBER)
_SIZE = re.compile(rf"({_NUMBER})\s*([kmgt]?i?b?)", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}

DURATION_PATTERN = r"^[0-9. dhms]+$"
SIZE_PATTERN = r"^[0-9.]+ ?([kKmMgGtT][iI]?[bB]?|[bB])$"


def parse_duration(value: object) -> float:
    """Seconds of `10m`, `90s`, `500ms`, `1h30m`, `1.5h`, or of a plain number of seconds.

    Rounded to whole milliseconds: nothing here is timed more finely.
    """
    advice = "write it like 90s, 10m or 1h30m"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"must be a duration, not {describe_kind(value)}; {advice}")
    if isinstance(value, str):
        parsed = _duration_of_text(value.strip())
        if parsed is None:
            raise ValueError(f"{shorten(value)} is not a duration; {advice}")
        value = float(parsed)
    if not 0 <= value <= LONGEST_S:  # false for nan, too
        raise ValueError(f"must be between 0 and 3650d; {advice}")
    return round(Fraction(value) * 1000) / 1000


def _duration_of_text(text: str) -> Fraction | None:
    if _PLAIN.fullmatch(text):
        return Fraction(text)
    match = _DURATION.fullmatch(text)
    if match is None or not text:
        return None
    parts = zip(match.groups(), _MS_PER_UNIT.values(), strict=True)
    milliseconds = sum(Fraction(number) * factor for number, factor in parts if number)
    return Fraction(milliseconds) / 1000


def format_duration(seconds: float) -> str:
    """The usual form: `1h30m`, `75` as `1m15s`, `0.5` as `500ms`."""
    milliseconds = round(Fraction(seconds) * 1000)
    written = ""
    for unit, factor in _MS_PER_UNIT.items():
        count, milliseconds = divmod(milliseconds, factor)
        written += f"{count}{unit}" if count else ""
    return written or "0s"


def parse_size(value: object) -> int:
    """Bytes of `512MiB`, `2GB` or `1.5G`.

    `KiB MiB GiB TiB` are powers of 1024 and `kB MB GB TB` powers of 1000; the `B` may be left
    out. A plain number is refused (bytes? MiB?), 0 excepted.
    """
    advice = "write it with its unit, like 512MiB or 2GB"
    if isinstance(value, int) and not isinstance(value, bool):
        if value == 0:
            return 0
        raise ValueError(f"{shorten(value)} has no unit; {advice}")
    if not isinstance(value, str):
        raise ValueError(f"must be a size, not {describe_kind(value)}; {advice}")
    match = _SIZE.fullmatch(value.strip())
    if match is None or match[2].lower() in ("i", "ib"):
        raise ValueError(f"{shorten(value)} is not a size; {advice}")
    number, unit = Fraction(match[1]), match[2].lower()
    if not unit and number:
        raise ValueError(f"{shorten(value)} has no unit; {advice}")
    base = 1024 if "i" in unit else 1000
    exact = number * int(base ** _POWERS[unit.rstrip("b").rstrip("i")])
    if exact > LARGEST_BYTES:
        raise ValueError(f"{shorten(value)} is larger than any memory; {advice}")
    return -(-exact.numerator // exact.denominator)


def parse_mib(value: object) -> int:
    """A size in MiB, rounded up."""
    return -(-parse_size(value) // MIB)


def format_size(size_bytes: int) -> str:
    """The largest binary unit that writes the number whole: `32MiB`, `1536MiB`, `1000B`."""
    for unit, factor in (("TiB", MIB * MIB), ("GiB", 1024 * MIB), ("MiB", MIB), ("KiB", 1024)):
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return f"{size_bytes}B"


def format_mib(mib: int) -> str:
    """As `format_size`, from MiB."""
    return format_size(mib * MIB) if mib else "0MiB"
