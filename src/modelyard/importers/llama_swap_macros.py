"""llama-swap's macros: `${name}`, `${PORT}`, `${MODEL_ID}`, `${env.NAME}`.

Laws of this file:
- Macros may name macros; rounds and length are bounded, so that none can blow up.
- What stands for a value of ours (the port, a variable) travels through splitting and escaping as
  one private character, and becomes `{port}` or `${env:NAME}` at the end.

Facts: config.example.yaml and internal/config of github.com/mostlygeek/llama-swap.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from modelyard.config.tree import Plain
from modelyard.importers.batch import split_words
from modelyard.importers.draft import argument, literal
from modelyard.importers.shell import split_line

MAX_ROUNDS = 20
MAX_LENGTH = 32_768
_PORT, _BEGIN, _END = "\ue001", "\ue002", "\ue003"
_OURS = re.compile(r"[\ue000-\ue003]")
_ENV = re.compile(r"\$\{env\.([A-Za-z_][A-Za-z0-9_]*)\}")
_MACRO = re.compile(r"\$\{([A-Za-z0-9_-]{1,64})\}")
_REFERENCE = re.compile(f"{_BEGIN}([A-Za-z0-9_]+){_END}")
_WINDOWS = re.compile(r"(?:^|[\s\"'=])[A-Za-z]:\\")


class BadMacro(Exception):
    """A text cannot be expanded; the message says why."""


def expand(text: str, macros: Mapping[str, Plain], model_id: str) -> str:
    """`text` with its macros replaced. Raises BadMacro."""
    known = {"MODEL_ID": model_id, "PORT": _PORT}

    def replace(found: re.Match[str]) -> str:
        name = found[1]
        if name in known:
            return known[name]
        if name not in macros:
            raise BadMacro(f"the macro ${{{name}}} is not defined")
        value = macros[name]
        if isinstance(value, dict | list) or value is None:
            raise BadMacro(f"the macro ${{{name}}} is no text")
        return _written(value)

    expanded = _OURS.sub("", text)
    for _ in range(MAX_ROUNDS):
        expanded = _ENV.sub(rf"{_BEGIN}\1{_END}", expanded)
        changed = _OURS.sub(lambda found: found[0], _MACRO.sub(replace, expanded))
        if len(changed) > MAX_LENGTH:
            raise BadMacro(f"its macros make more than {MAX_LENGTH} characters")
        if changed == expanded:
            return changed
        expanded = changed
    raise BadMacro("its macros name each other in a circle")


def _written(value: Plain) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return _OURS.sub("", str(value))


def without_comments(command: str) -> str:
    """A command less its comment lines, which go before macros are looked at."""
    lines = command.split("\n")
    return "\n".join(line for line in lines if not line.lstrip().startswith("#"))


def words(text: str) -> list[str]:
    """An expanded command, split. Raises BadMacro where a quote does not end."""
    if _WINDOWS.search(text):
        return split_words(" ".join(line.rstrip("\\^ ") for line in text.split("\n")))
    try:
        return split_line(text)
    except ValueError as error:
        raise BadMacro("a quote in its command does not end") from error


def ours(escaped: str) -> str:
    """What stands for our values, written out; everything else has been escaped before."""
    return _REFERENCE.sub(r"${env:\1}", escaped).replace(_PORT, "{port}")


def as_argument(word: str) -> str:
    return ours(argument(word))


def as_literal(text: str) -> str:
    """For values that no engine fills in; the port cannot stand there."""
    return ours(literal(text))


def has_port(words_of_command: Sequence[str]) -> bool:
    return any(_PORT in word for word in words_of_command)


def without_marks(text: str) -> str:
    """An expanded text for messages and for reading numbers."""
    return _OURS.sub("", text)
