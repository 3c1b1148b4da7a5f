"""Reads single values of a foreign configuration: strict about meaning, lenient about form.

Laws of this file:
- A value that cannot be meant is None, and the caller reports it; nothing here raises.
- YAML 1.1 (PyYAML) reads `yes` and `on` as true; our reader leaves them text, so both count.
"""

from __future__ import annotations

import re

from modelyard.config.tree import Plain

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0", ""})
MAX_NAME = 200
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def as_bool(value: Plain) -> bool | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    word = value.strip().lower() if isinstance(value, str) else None
    if word in _TRUE:
        return True
    return False if word in _FALSE else None


def as_int(value: Plain) -> int | None:
    """A whole number, also written as text or as `4.0`."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**53 else None
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", value):
        return int(value)
    return value if isinstance(value, int) and abs(value) < 2**63 else None


def as_number(value: Plain) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,18}(\.[0-9]{0,18})?\s*", value):
        return float(value)
    return float(value) if isinstance(value, int | float) and abs(value) < 1e15 else None


def as_text(value: Plain) -> str | None:
    """Text that is not empty; a number is the text it is written as."""
    if isinstance(value, str):
        return value if value.strip() else None
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def as_texts(value: Plain) -> list[str]:
    """The usable texts of a list, or of a single text."""
    items = value if isinstance(value, list) else [value]
    return [text for text in map(as_text, items) if text is not None]


def as_mapping(value: Plain) -> dict[str, Plain]:
    return value if isinstance(value, dict) else {}


def as_port(value: Plain) -> int | None:
    port = as_int(value)
    return port if port is not None and 0 < port < 65536 else None


def as_name(text: str) -> str | None:
    """`text` as our configuration takes names: one line, not empty, not endless."""
    name = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return name[:MAX_NAME].strip() or None


def is_variable(name: str) -> bool:
    return _ENV_NAME.fullmatch(name) is not None
