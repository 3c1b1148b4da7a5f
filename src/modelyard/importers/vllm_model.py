"""A command that plainly starts vLLM, as a model of the engine `vllm`.

Laws of this file:
- Only what is understood to the last word becomes one: a `vllm serve` with options that vLLM is
  recorded to have, and a model that lies in a folder. Everything else stays a command.
- Address, names and sleep are left out: the engine sets them itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from modelyard.config.tree import Plain
from modelyard.engines.vllm_options import dashed
from modelyard.engines.vllm_table import Form, known
from modelyard.importers.programs import bare

OWN_VARIABLES: Final = frozenset({"VLLM_SERVER_DEV_MODE"})
"""Variables that the engine sets where they are needed."""
_ADDRESS: Final = frozenset({"host", "port"})
_NAMES: Final = "served-model-name"
_SLEEP: Final = "enable-sleep-mode"
_ESCAPED: Final = re.compile(r"\{\{|\$\$\{|\$\{")
_WHOLE: Final = re.compile(r"-?[0-9]{1,18}")
_DECIMAL: Final = re.compile(r"-?[0-9]{1,18}\.[0-9]{1,18}")
_FOLDER: Final = re.compile(r"/|~/|\.\.?/")


@dataclass(frozen=True, slots=True)
class VllmModel:
    """What a command says, in the words of the engine `vllm`."""

    source: str
    options: Mapping[str, Plain] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    """The program, where it is not the `vllm` that is found by itself."""


class _NotPlain(Exception):
    """Something in the command is not understood."""


def vllm_model(argv: Sequence[str], folder: str | None) -> VllmModel | None:
    """The model that `argv`, in our words, starts; None if that cannot be said for certain.

    Relative paths are of `folder`, where the command is started.
    """
    if len(argv) < 3 or bare(argv[0]) != "vllm" or argv[1] != "serve":
        return None
    try:
        options = dict(_options(argv[2:]))
        source = options.pop("model", None)
    except _NotPlain:
        return None
    if not isinstance(source, str) or not _FOLDER.match(source):
        return None  # the name of a repository, which vLLM would fetch by itself
    if source.startswith("."):
        if folder is None:
            return None
        source = f"{folder.rstrip('/')}/{source}"
    return VllmModel(source, options, () if argv[0] == "vllm" else (argv[0],))


def _options(words: Sequence[str]) -> Iterator[tuple[str, Plain]]:
    """Every option with its value; the model as `model`. Raises _NotPlain."""
    forms = known(())
    left = list(words)
    seen: set[str] = set()
    while left:
        word = left.pop(0)
        if _ESCAPED.search(word):
            raise _NotPlain
        name, equals, value = word.partition("=")
        option = dashed(name) if word.startswith("-") else "model"
        if option in seen:
            raise _NotPlain
        seen.add(option)
        if not word.startswith("-"):
            yield "model", word
        elif option == _NAMES:
            while not equals and left and not left[0].startswith("-"):
                left.pop(0)
        elif option in _ADDRESS:
            _value(equals, value, left, address=True)
        elif option == "model":
            yield option, _value(equals, value, left)
        else:
            yield from _setting(option, equals, value, left, forms)


def _setting(
    option: str, equals: str, value: str, left: list[str], forms: Mapping[str, Form]
) -> Iterator[tuple[str, Plain]]:
    positive = option.removeprefix("no-")
    if option not in forms and forms.get(positive) is Form.BOTH and not equals:
        yield positive.replace("-", "_"), False
        return
    match forms.get(option):
        case Form.SWITCH | Form.BOTH if not equals:
            if option != _SLEEP:
                yield option.replace("-", "_"), True
        case Form.VALUE:
            yield option.replace("-", "_"), _typed(_value(equals, value, left))
        case _:
            raise _NotPlain


def _value(equals: str, value: str, left: list[str], *, address: bool = False) -> str:
    text = value if equals else left.pop(0) if left else ""
    if not text or (_ESCAPED.search(text) and not address):
        raise _NotPlain
    return text


def _typed(text: str) -> Plain:
    """A value as YAML has it: numbers as numbers, JSON as what it describes."""
    if _WHOLE.fullmatch(text):
        return int(text)
    if _DECIMAL.fullmatch(text):
        return float(text)
    if text[:1] in "{[":
        try:
            found: Plain = json.loads(text)
        except ValueError:
            raise _NotPlain from None
        return found
    return text
