"""Configurations written into a temporary folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any, TypeAlias

import pytest

from modelyard.config import Config, load
from modelyard.core.errors import ConfigError

Loader: TypeAlias = Callable[..., Config]
Problems: TypeAlias = Callable[..., Sequence[str]]


@pytest.fixture
def load_text(tmp_path: Path) -> Loader:
    """Loads YAML text as the file `modelyard.yaml` of a folder of its own."""

    def loader(
        text: str | bytes, *, env: Mapping[str, str] | None = None, **overrides: Any
    ) -> Config:
        path = tmp_path / "modelyard.yaml"
        path.write_bytes(text if isinstance(text, bytes) else dedent(text).encode())
        return load(path, env=env or {}, overrides=overrides)

    return loader


@pytest.fixture
def problems_of(load_text: Loader) -> Problems:
    """Loads YAML text that is wrong, and gives its problems."""

    def problems(text: str | bytes, *, env: Mapping[str, str] | None = None) -> Sequence[str]:
        with pytest.raises(ConfigError) as caught:
            load_text(text, env=env)
        return caught.value.problems

    return problems
