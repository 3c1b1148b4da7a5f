"""Our configuration while it is being put together: values, and where each came from.

Laws of this file:
- Every name is made one that our configuration takes, and every name means one model.
- Text of the source is data: braces and `${env:` that mean something to us are escaped.
- Values are in the words of `modelyard.yaml`; `origin` becomes a comment beside them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from modelyard.config.tree import Plain
from modelyard.config.values import KeyPath
from modelyard.importers.report import Book
from modelyard.importers.values import as_name

_BRACES = re.compile(r"(?<!\$)\{([A-Za-z_]+)\}")
_REFERENCE = re.compile(r"\$\$\{|\$\{env:")


@dataclass(frozen=True, slots=True)
class Entry:
    """A value and the setting of the source that it came from."""

    value: Plain
    origin: str = ""


@dataclass(slots=True)
class ModelDraft:
    """One model. `notes` become comments above its keys."""

    id: str
    origin: str
    keys: dict[str, Entry] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    aside: str = ""
    """Why the model cannot be used as it is: it is then written as a comment."""

    def put(self, key: str, value: Plain, origin: str = "") -> None:
        self.keys[key] = Entry(value, origin)

    def plain(self) -> dict[str, Plain]:
        return {key: entry.value for key, entry in self.keys.items()}


@dataclass(slots=True)
class Draft:
    """The whole configuration. `sections` are those of the file except `models`."""

    sections: dict[str, dict[str, Entry]] = field(default_factory=dict)
    models: list[ModelDraft] = field(default_factory=list)
    models_dirs: list[Entry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _names: set[str] = field(default_factory=set)
    _reserved: dict[str, int] = field(default_factory=dict)

    def put(self, section: str, key: str, value: Plain, origin: str) -> None:
        self.sections.setdefault(section, {})[key] = Entry(value, origin)

    def model(self, wanted: str, origin: str) -> ModelDraft:
        """A new model called `wanted`, or nearly so where the name cannot be used or is taken."""
        base = as_name(wanted) or "model"
        name, count = base, 1
        while name in self._names:
            count += 1
            name = f"{base[:190]}-{count}"
        self._names.add(name)
        model = ModelDraft(name, origin)
        self.models.append(model)
        return model

    def alias(
        self, model: ModelDraft, wanted: Iterable[tuple[KeyPath, str]], book: Book, origin: str
    ) -> None:
        """Give `model` more names; each comes with its place in the source."""
        aliases: list[Plain] = []
        for path, text in wanted:
            name = as_name(text)
            if name == model.id:
                book.converted(path, f"models.{model.id}")
            elif name is None or name in self._names or name in self._reserved:
                why = "is no usable name" if name is None else "is already the name of a model"
                book.no_equal(path, f"the alias {why}; choose another one")
            else:
                self._names.add(name)
                aliases.append(name)
                book.converted(path, "aliases")
        if aliases:
            model.put("aliases", aliases, origin)

    def reserve(self, names: Iterable[str]) -> None:
        """Names that are ids of models still to come, so that no alias takes them."""
        for name in names:
            self._reserved[name] = self._reserved.get(name, 0) + 1

    def release(self, name: str) -> None:
        """A reserved name, just before its model is made."""
        self._reserved[name] = self._reserved.get(name, 1) - 1
        if self._reserved[name] <= 0:
            del self._reserved[name]


def literal(text: str) -> str:
    """`text` where our configuration would read `${env:...}`, meaning just this text."""
    return _REFERENCE.sub(lambda found: f"${found[0]}", text)


def argument(text: str) -> str:
    """`text` as an argument of a command, meaning just this text."""
    return literal(_BRACES.sub(r"{{\1}}", text))


def arguments(words: Sequence[str]) -> list[Plain]:
    return [argument(word) for word in words]


def variables(env: Mapping[str, str]) -> dict[str, Plain]:
    """Variables of an engine, meaning just what they say."""
    return {name: argument(value) for name, value in env.items()}
