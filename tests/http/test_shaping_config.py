"""Virtual models in the configuration: targets that cannot be there are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelyard.config import Config, load
from modelyard.core.errors import ConfigError

MODEL = """
models:
  qwen:
    engine: command
    command: [serve, "{port}"]
    tasks: [chat]
    aliases: [other]
    variants: {"qwen:short": {max_output_tokens: 9}}
"""


def configured(tmp_path: Path, targets: str, more: str = "", modes: str = "{}") -> Config:
    path = tmp_path / "modelyard.yaml"
    path.write_text(f"{MODEL}virtual:\n  v: {{targets: {targets}, modes: {modes}}}\n{more}")
    return load(path, env={})


def test_every_name_of_a_described_model_may_be_a_target(tmp_path: Path) -> None:
    (virtual,) = configured(tmp_path, "[qwen, other, 'qwen:short']").virtuals

    assert [target.model for target in virtual.targets] == ["qwen", "other", "qwen:short"]


@pytest.mark.parametrize(
    ("targets", "modes", "where"),
    [("[qwen, qwne]", "{}", "v.targets[1]"), ("[qwen]", "{night: [qwne]}", "v.modes.night[0]")],
)
def test_a_target_that_no_model_has_as_a_name_is_refused_with_the_near_one(
    tmp_path: Path, targets: str, modes: str, where: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        configured(tmp_path, targets, modes=modes)

    expected = "there is no model 'qwne', and no models_dirs to find it in; did you mean qwen?"
    assert f"virtual.{where}: {expected}" in str(refused.value)


@pytest.mark.parametrize("more", ["models_dirs: [.]", "remotes: {far: {url: 'http://far'}}"])
def test_a_target_that_may_be_found_later_is_taken(tmp_path: Path, more: str) -> None:
    (virtual,) = configured(tmp_path, "[far/model]", more).virtuals

    assert [target.model for target in virtual.targets] == ["far/model"]
