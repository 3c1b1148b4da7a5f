"""Values as people read them: memory, spans of time, moments, paths.

Laws of this file:
- Pure: what a function says follows from its arguments.
- Nothing that comes from a model, an engine or a file reaches a terminal with control characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from modelyard.core.views import AutoView, ModelView, PriceView

NOTHING = "-"

# Control sequences introduced by ESC [ or ESC ] (ECMA-48, 5.4 and 5.6; xterm's OSC).
_SEQUENCES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_UNITS = (("d", 86400), ("h", 3600), ("min", 60))


def clean(text: str) -> str:
    """The text without what would move a terminal's cursor, change its title or colours."""
    return _CONTROLS.sub("", _SEQUENCES.sub("", text))


def memory(mib: int | None) -> str:
    """`512 MiB`, `7.5 GiB`."""
    if mib is None:
        return NOTHING
    return f"{mib} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"


def span(seconds: float | None) -> str:
    """`0.8 s`, `42 s`, `3 min`, `2 h 5 min`, `4 d 1 h`: no more than two units."""
    if seconds is None:
        return NOTHING
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    parts: list[str] = []
    for unit, size in _UNITS:
        count, whole = divmod(whole, size)
        if count or parts:
            parts.append(f"{count} {unit}" if count else "")
    return " ".join(part for part in parts[:2] if part)


def ago(at: float | None, now: float) -> str:
    """How long ago a moment was; clocks that disagree make it no less than `now`."""
    if at is None:
        return "never"
    passed = now - at
    return "just now" if passed < 1 else f"{span(passed)} ago"


def counted(count: int, noun: str) -> str:
    """`1 model`, `2 models`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(items: Iterable[str]) -> str:
    return ", ".join(items) or NOTHING


def shares(memory_mib: Mapping[str, int]) -> str:
    """`cpu 512 MiB, GPU-1 7.5 GiB`."""
    return listed(f"{device} {memory(mib)}" for device, mib in memory_mib.items())


def difference(mib: int) -> str:
    """`+300 MiB`, `-1.5 GiB`, `0 MiB`."""
    return f"{'-' if mib < 0 else '+' if mib else ''}{memory(abs(mib))}"


def short_path(path: str | None) -> str:
    """A path with the home folder as `~`."""
    if path is None:
        return NOTHING
    home = str(Path.home())
    return f"~{path[len(home) :]}" if path.startswith(home + "/") else path


def doing(view: ModelView) -> str:
    """What a model is about: `starting: loading weights 40 %`, `asleep (level 2)`."""
    told = f"{view.state} (level {view.sleep_level})" if view.sleep_level else view.state
    if view.phase and view.phase != view.state:
        told += f": {view.phase}"
    return told if view.percent is None else f"{told} {view.percent:.0f} %"


def bar(part: float, whole: float, width: int = 20) -> str:
    """`[#####---------------]`, for terminals of any kind."""
    full = 0 if whole <= 0 else round(min(max(part / whole, 0.0), 1.0) * width)
    return f"[{'#' * full}{'-' * (width - full)}]"


def told_auto(view: AutoView) -> str:
    """What an `auto` model is started with, and what was too much before."""
    options = ", ".join(f"{name} {_option(value)}" for name, value in view.options.items())
    lines = [f"{view.step}: {options}" if options else view.step]
    if view.tried:
        lines[0] += f"; {view.reason}"
    lines += [f"too little memory before: {tried}" for tried in view.tried]
    return clean("\n".join(lines))


def told_price(view: PriceView) -> str:
    """`0.2 in, 0.6 out, 0.05 in again, USD per 1000000 tokens`."""
    parts = [f"{view.input} in", f"{view.output} out"]
    if view.cached_input is not None:
        parts.append(f"{view.cached_input} in again")
    return f"{', '.join(parts)}, {view.currency} per {view.per} tokens"


def _option(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)
