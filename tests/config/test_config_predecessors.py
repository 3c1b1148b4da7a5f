"""Variables of the tools that Modelyard replaces: obeyed, but by nobody who has said otherwise."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from modelyard.config import Config, load
from modelyard.core.errors import ConfigError

Loader = Callable[..., Config]
LISTED = Path(__file__).parents[2] / "src/modelyard/config/predecessors.py"


def test_what_they_say_counts_where_nobody_says_anything_else(tmp_path: Path) -> None:
    env = {"LLM_PORT": "15530", "LLM_MODELS_DIR": f"{tmp_path}/a:{tmp_path}/b", "LLM_HOST": "::1"}
    config = load(None, env=env)

    assert (config.server.host, config.server.port) == ("::1", 15530)
    assert config.models_dirs == (tmp_path / "a", tmp_path / "b")
    assert sorted(config.notes) == [
        f"{name} is obeyed as {key}; better write {key} into the configuration"
        for name, key in (
            ("LLM_HOST", "server.host"),
            ("LLM_MODELS_DIR", "models_dirs"),
            ("LLM_PORT", "server.port"),
        )
    ]


def test_the_file_a_variable_of_ours_and_a_flag_win(load_text: Loader) -> None:
    env = {"LLM_PORT": "1", "VLLAMA_PORT": "2"}

    assert load_text("server: {keep_alive: 3s}", env=env).server.port == 2
    assert load_text("server: {port: 3}", env=env).server.port == 3
    assert load(None, env={**env, "MODELYARD_SERVER__PORT": "4"}).server.port == 4
    assert load(None, env=env, overrides={"server.port": 5}).server.port == 5


@pytest.mark.parametrize(
    ("env", "sleep_s", "stop_s"),
    [
        ({"VLLAMA_UNLOAD_TIMEOUT": "1800"}, 1800.0, 3600.0),
        ({"VLLAMA_UNLOAD_TIMEOUT": "1800", "VLLAMA_UNLOAD_MODE": "2"}, 1800.0, 3600.0),
        ({"VLLAMA_UNLOAD_TIMEOUT": "1800", "VLLAMA_UNLOAD_MODE": "3"}, 600.0, 1800.0),
        ({"VLLAMA_UNLOAD_MODE": "3"}, 600.0, 3600.0),
        ({"LLM_MANAGER_ALIVE_TIME": "15"}, 600.0, 900.0),
        ({"LLM_MANAGER_ALIVE_TIME": "0.5"}, 600.0, 30.0),
    ],
)
def test_times_are_read_in_the_units_of_each_tool(
    env: dict[str, str], sleep_s: float, stop_s: float
) -> None:
    limits = load(None, env=env).limits

    assert (limits.idle_sleep_s, limits.idle_stop_s) == (sleep_s, stop_s)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("LLM_HOST", "0.0.0.0", "LLM_HOST: server.host: other machines can reach '0.0.0.0'"),
        ("LLM_PORT", "many", "LLM_PORT: server.port: must be a whole number, not 'many'"),
        ("LLM_MANAGER_ALIVE_TIME", "x", "LLM_MANAGER_ALIVE_TIME: defaults.idle_stop: 'x' is not a"),
        ("VLLAMA_UNLOAD_TIMEOUT", "0", "VLLAMA_UNLOAD_TIMEOUT: defaults.idle_sleep: must be more"),
    ],
)
def test_a_wrong_value_names_the_variable(name: str, value: str, problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(None, env={name: value})

    assert [text.startswith(problem) for text in refused.value.problems] == [True]


def test_what_has_no_counterpart_is_told_with_what_to_do() -> None:
    env = {
        "LLM_GPU_MEMORY_UTILIZATION": "0.8", "LLM_MODEL_CACHE_SIZE": "1",
        "VLLAMA_DEFAULT_DEVICE": "0", "LLM_LOG_LEVEL": " ", "LLM_API_BASE": "x", "LLM_KEY": "s",
    }  # fmt: skip
    config = load(None, env=env)

    assert config == Config()
    assert config.notes == (
        (
            "LLM_GPU_MEMORY_UTILIZATION is not obeyed: it belongs to a model: `modelyard assign "
            "MODEL --gpu-memory SHARE`"
        ),
        "LLM_MODEL_CACHE_SIZE is not obeyed: as many models stay as fit",
        (
            "VLLAMA_DEFAULT_DEVICE is not obeyed: it belongs to a model: `modelyard assign MODEL "
            "--devices 0`"
        ),
    )


def test_what_is_obeyed_is_in_the_documents() -> None:
    obeyed = re.findall(r'^    "(\w+)": \(\(', LISTED.read_text(), re.MULTILINE)
    documents = (Path(__file__).parents[2] / "docs/config.md").read_text()

    assert len(obeyed) > 5
    assert [name for name in obeyed if f"`{name}`" not in documents] == []
