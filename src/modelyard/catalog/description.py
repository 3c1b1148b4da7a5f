"""What the small files of a Hugging Face folder say about its model.

Laws of this file:
- Reading is apart from judging: this file only collects, `classify_folder` and others decide.
- `config.json` must be readable; any other file that is not is a remark, because the weights may
  still be served.

The names are those of the Hub's libraries: transformers (config.json, generation_config.json,
tokenizer_config.json, chat_template.jinja), sentence-transformers (modules.json,
config_sentence_transformers.json), model cards (README.md with its front matter).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelyard.catalog.errors import BadModelFile
from modelyard.catalog.json_object import Json, JsonObject, read_bytes, read_json, read_object

CONFIG: Final = "config.json"
TEXT_CONFIGS: Final = (
    "text_config",
    "llm_config",
    "language_config",
    "language_model_config",
    "decoder",
)
"""Where a model that also sees or hears describes its language part."""

_TOKENIZER_BYTES: Final = 16 * 2**20
_TEMPLATE_BYTES: Final = 2**20
_CARD_BYTES: Final = 64 * 2**10
_FRONT_MATTER: Final = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.S)
_CARD_KEY: Final = re.compile(
    r"""^(license|license_name|pipeline_tag|library_name):[ \t]*["']?([^\s"'#]+)""", re.M
)


@dataclass(frozen=True, slots=True)
class Card:
    """The front matter of a model's README: what its author says."""

    license: str | None = None
    pipeline_tag: str | None = None


@dataclass(frozen=True, slots=True)
class Description:
    """What a folder says about its model, besides the weights."""

    name: str
    """What the model is called: its folder, or its repository."""
    config: JsonObject
    text: JsonObject
    """The part of `config` that describes the language model; the whole where there is no part."""
    files: Mapping[str, Path]
    """The files of the folder by their names."""
    library: JsonObject | None
    """config_sentence_transformers.json"""
    modules: tuple[str, ...]
    """Types in modules.json, in their order."""
    template: str | None
    """The chat template; several of them joined."""
    tokenizer: JsonObject | None
    """tokenizer_config.json"""
    generation: JsonObject | None
    """generation_config.json"""
    card: Card
    remarks: tuple[str, ...]
    """What could not be read and was gone without."""

    @property
    def architectures(self) -> tuple[str, ...]:
        """Class names, the first decides; from `auto_map` where the list is missing."""
        named = self.config.texts("architectures")
        auto_map = self.config.part("auto_map")
        if named or auto_map is None:
            return named
        targets = (value for value in auto_map.values.values() if isinstance(value, str))
        return tuple(sorted(target.rpartition(".")[2] for target in targets if "For" in target))

    @property
    def model_type(self) -> str:
        return self.config.text("model_type") or self.text.text("model_type") or ""


def describe(name: str, files: Mapping[str, Path]) -> Description:
    """Read what `files` (by their names in the folder) say about the model called `name`.

    Raises BadModelFile where there is no usable `config.json`.
    """
    reader = _Reader(files)
    config = read_object(files[CONFIG])
    tokenizer = reader.object("tokenizer_config.json", _TOKENIZER_BYTES)
    return Description(
        name=name,
        config=config,
        text=_text_part(config),
        files=files,
        library=reader.object("config_sentence_transformers.json"),
        modules=reader.modules(),
        template=reader.template(tokenizer),
        tokenizer=tokenizer,
        generation=reader.object("generation_config.json"),
        card=reader.card(),
        remarks=tuple(reader.remarks),
    )


def _text_part(config: JsonObject) -> JsonObject:
    part = config
    thinker = config.part("thinker_config")
    if thinker is not None:
        part = thinker
    for key in TEXT_CONFIGS:
        inner = part.values.get(key)
        if isinstance(inner, dict) and "num_hidden_layers" in inner:
            return JsonObject(config.path, inner, key)
        if isinstance(inner, dict) and key == "text_config":
            # Older configurations leave out what equals the class's defaults.
            return JsonObject(config.path, {**_inherited(part), **inner}, key)
    return part


def _inherited(part: JsonObject) -> dict[str, Json]:
    return {key: value for key, value in part.values.items() if not isinstance(value, dict)}


class _Reader:
    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files
        self.remarks: list[str] = []

    def object(self, name: str, most_bytes: int = 2**20) -> JsonObject | None:
        path = self._files.get(name)
        if path is None:
            return None
        try:
            return read_object(path, most_bytes=most_bytes)
        except BadModelFile as error:
            self.remarks.append(f"{name}: {error.reason}")
            return None

    def modules(self) -> tuple[str, ...]:
        path = self._files.get("modules.json")
        if path is None:
            return ()
        try:
            entries = read_json(path, most_bytes=2**20)
        except BadModelFile as error:
            self.remarks.append(f"modules.json: {error.reason}")
            return ()
        found = entries if isinstance(entries, list) else []
        types = (entry.get("type") for entry in found if isinstance(entry, dict))
        return tuple(kind for kind in types if isinstance(kind, str))

    def template(self, tokenizer: JsonObject | None) -> str | None:
        """From a file of its own, which goes first in transformers, else the tokenizer's."""
        path = self._files.get("chat_template.jinja")
        if path is not None:
            try:
                return read_bytes(path, _TEMPLATE_BYTES).decode("utf-8", errors="replace")
            except BadModelFile as error:
                self.remarks.append(f"chat_template.jinja: {error.reason}")
        for holder in (self.object("chat_template.json"), tokenizer):
            told = None if holder is None else holder.values.get("chat_template")
            if isinstance(told, list):
                parts = [part.get("template") for part in told if isinstance(part, dict)]
                told = "\n".join(part for part in parts if isinstance(part, str))
            if isinstance(told, str) and told:
                return told
        return None

    def card(self) -> Card:
        path = self._files.get("README.md")
        if path is None:
            return Card()
        try:
            with path.open("rb") as file:
                text = file.read(_CARD_BYTES).decode("utf-8", errors="replace")
        except OSError as error:
            self.remarks.append(f"README.md: {error.strerror or error}")
            return Card()
        matter = _FRONT_MATTER.match(text.replace("\r\n", "\n"))
        told = dict(_CARD_KEY.findall(matter[1])) if matter else {}
        named = told.get("license_name") if told.get("license") == "other" else None
        return Card(named or told.get("license"), told.get("pipeline_tag"))
