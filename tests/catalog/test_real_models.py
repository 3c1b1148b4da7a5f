"""Descriptions of well-known models, and what the catalog makes of them.

`real_models.json` holds what their own small files say (cut down to what any rule reads), where it
was published, and what is true of them. `why` says which trap an entry is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.catalog.checkpoints import TOKENIZER, safetensors

from modelyard.catalog.attention import Keeps
from modelyard.catalog.attention_config import attention_of_config
from modelyard.catalog.classify import Ability, Kind, classify
from modelyard.catalog.classify_folder import classify_folder
from modelyard.catalog.description import describe
from modelyard.catalog.folder_checkpoint import read_folder
from modelyard.catalog.gguf import read_header
from modelyard.catalog.quantization import of_gguf

if TYPE_CHECKING:
    from tests.catalog.conftest import Folder

TABLE: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "real_models.json").read_text(encoding="utf-8")
)
FOLDERS = [entry for entry in TABLE if "files" in entry]
FILES = [entry for entry in TABLE if "gguf" in entry]


def written(folder: Folder, entry: dict[str, Any]) -> dict[str, Path]:
    """The files of an entry, with a tensor and a tokenizer beside them."""
    place = folder.path / entry["model"].rpartition("/")[2]
    place.mkdir()
    contents = {**entry["files"], **TOKENIZER}
    for name, content in contents.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (place / name).write_text(text, encoding="utf-8")
    (place / "model.safetensors").write_bytes(safetensors({"a": ("BF16", (2, 2))}))
    return {path.name: path for path in place.iterdir()}


def test_the_table_is_as_large_as_it_claims_and_says_where_it_is_from() -> None:
    assert len(TABLE) >= 60
    assert all(entry["source"] for entry in TABLE)
    assert len({entry["model"] for entry in TABLE}) == len(TABLE)


@pytest.mark.parametrize("entry", FOLDERS, ids=lambda entry: str(entry["model"]))
def test_a_folder_is_told_for_what_it_is(folder: Folder, entry: dict[str, Any]) -> None:
    files = written(folder, entry)
    name = entry["model"].rpartition("/")[2]
    verdict = classify_folder(describe(name, files))
    expected = entry["expect"]

    ability = None if expected["ability"] is None else Ability(expected["ability"])
    assert (verdict.ability, sorted(verdict.inputs)) == (ability, expected["inputs"]), verdict
    assert (verdict.kind is Kind.MODEL) is (ability is not None)
    if ability is not None:
        checkpoint = read_folder(folder.path / name, name, files)
        assert checkpoint.label == expected.get("quantization", "BF16")
        assert expected.get("context") in {None, checkpoint.context_length}


@pytest.mark.parametrize(
    "entry",
    [entry for entry in FOLDERS if "token_bytes" in entry["expect"]],
    ids=lambda entry: str(entry["model"]),
)
def test_the_bytes_that_a_token_takes_are_those_of_the_architecture(
    folder: Folder, entry: dict[str, Any]
) -> None:
    described = describe(entry["model"], written(folder, entry))
    attention = attention_of_config(described.text, described.model_type)
    tokens = [group for group in attention.groups if group.keeps is not Keeps.STATE]

    assert attention.kind == expected_kind(entry, attention.kind)
    assert sum(2 * group.layers * group.width for group in tokens) == entry["expect"]["token_bytes"]


def expected_kind(entry: dict[str, Any], otherwise: str) -> str:
    return str(entry["expect"].get("attention", otherwise))


@pytest.mark.parametrize("entry", FILES, ids=lambda entry: str(entry["model"]))
def test_a_gguf_file_is_told_for_what_it_is(folder: Folder, entry: dict[str, Any]) -> None:
    tensors = tuple((name, (32, 2), 0, 256) for name in entry["tensors"])
    path = folder.write(entry["file"], base=entry["gguf"], tensors=tensors)
    header = read_header(path)
    verdict = classify(header, path.name)
    expected = entry["expect"]

    assert (verdict.kind, verdict.ability) == (expected["kind"], expected["ability"]), verdict
    if "quantization" in expected:
        assert of_gguf(header) == expected["quantization"]
