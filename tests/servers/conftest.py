"""Checkpoints for the engine `transformers`, made once for all tests."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import modelyard

DEMO = Path(modelyard.__file__).parent / "demo_models"


def _beside(name: str) -> ModuleType:
    """A module of this folder, which is no package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny checkpoint of each kind; see `tiny_transformers`."""
    folder = tmp_path_factory.mktemp("tiny-models")
    _beside("tiny_transformers").make_all(folder)
    return folder


@pytest.fixture(scope="session")
def trained_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`embedder` and `reranker`: the demo's trained models as transformers reads them."""
    folder = tmp_path_factory.mktemp("trained-models")
    make = _beside("demo_as_transformers")
    kinds: dict[str, Callable[[Path, Path], None]] = {
        "embedder": make.embedder,
        "reranker": make.reranker,
    }
    for name, save in kinds.items():
        file = DEMO / f"yard-{'embed' if name == 'embedder' else 'rerank'}.gguf"
        save(file, folder / name)
        (folder / name / "model").rename(folder / f"{name}-model")
    return folder
