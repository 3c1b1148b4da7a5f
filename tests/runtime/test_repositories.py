"""Models whose `source` is the id of a repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.catalog.checkpoints import checkpoint
from tests.catalog.test_stores import hub

from modelyard.config import load
from modelyard.core.specs import ModelSpec, Task
from modelyard.runtime.inventory import Inventory

QWEN = "Qwen/Qwen3-8B"


def read(folder: Path, **keys: Any) -> tuple[ModelSpec, list[str]]:
    """The model `m` of a configuration in `folder`, and what is wrong."""
    file = folder / "modelyard.yaml"
    model = {"engine": "vllm", "source": QWEN, **keys.pop("model", {})}
    file.write_text(json.dumps({"models": {"m": model}, **keys}))
    inventory = Inventory(load(file, env={}), engines=("vllm",))
    models = inventory.read()
    return next(spec for spec in models if spec.id == "m"), inventory.problems


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "hub"


def test_a_repository_in_the_hub_s_cache_is_served_from_there(tmp_path: Path, cache: Path) -> None:
    snapshot = checkpoint(hub(cache, QWEN), template=True)

    spec, problems = read(tmp_path)

    assert spec.source == str(snapshot)
    assert spec.tasks == {Task.CHAT, Task.COMPLETION}
    assert spec.estimate_mib is not None
    assert problems == []


@pytest.mark.parametrize("name", ["HF_HOME", "XDG_CACHE_HOME"])
def test_the_cache_is_where_the_hub_s_library_has_it(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setenv(name, str(tmp_path))
    home = tmp_path / "huggingface" if name == "XDG_CACHE_HOME" else tmp_path
    snapshot = checkpoint(hub(home / "hub", QWEN))

    assert cache == tmp_path / "hub"
    assert read(tmp_path)[0].source == str(snapshot)


def test_a_folder_of_that_name_goes_before(tmp_path: Path, cache: Path) -> None:
    checkpoint(hub(cache, QWEN))
    here = checkpoint(tmp_path / QWEN)

    assert read(tmp_path)[0].source == str(here)


def test_a_repository_in_a_models_folder_is_found_there(tmp_path: Path, cache: Path) -> None:
    pulled = checkpoint(tmp_path / "models" / QWEN)

    spec, _ = read(tmp_path, models_dirs=[str(tmp_path / "models")])

    assert not cache.exists()
    assert spec.source == str(pulled)


def test_what_nobody_has_fetched_is_left_to_vllm(tmp_path: Path, cache: Path) -> None:
    spec, problems = read(tmp_path, model={"tasks": ["embedding"]})

    assert not cache.exists()
    assert (spec.source, problems) == (QWEN, [])
    assert spec.tasks == {Task.EMBEDDING}


@pytest.mark.parametrize(
    "keys", [{"downloads": {"offline": True}}, {"model": {"engine": "transformers"}}]
)
def test_where_nothing_fetches_it_what_to_do_is_told(
    tmp_path: Path, cache: Path, keys: dict[str, Any]
) -> None:
    _, (problem,) = read(tmp_path, **keys)

    assert not cache.exists()
    assert "not in the hub's cache" in problem
    assert f"modelyard pull {QWEN}" in problem


@pytest.mark.parametrize("source", ["a/b/c", "Qwen", "/Qwen/Qwen3-8B", "a/.b"])
def test_other_paths_are_no_ids(tmp_path: Path, source: str) -> None:
    spec, _ = read(tmp_path, model={"source": source})

    assert spec.repository is None
