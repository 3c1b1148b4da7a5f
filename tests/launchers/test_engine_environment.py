"""What an engine sees of the server's environment."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from modelyard.core.specs import Command
from modelyard.launchers.environment import engine_environment
from modelyard.launchers.local import LocalLauncher

if TYPE_CHECKING:
    from tests.launchers.conftest import Lines

ADDED = {"PYTHONUNBUFFERED", "SPT_NOENV", "MODELYARD_RUN", "MODELYARD_OWNER"}


@pytest.mark.parametrize(
    "name",
    ["PATH", "HOME", "LC_ALL", "CUDA_VISIBLE_DEVICES", "HF_HOME", "https_proxy", "VLLM_CACHE_ROOT"],
)
def test_what_engines_need_is_inherited(name: str) -> None:
    env = engine_environment({name: "value"}, {}, run="r", owner="o")

    assert env[name] == "value"


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "HUGGINGFACE_HUB_TOKEN",
        "VLLM_API_KEY",
        "LLAMA_api_key",
        "CUDA_SECRET",
        "XDG_PASSWORD",
        "AWS_SECRET_ACCESS_KEY",
        "OPENAI_API_KEY",
        "MODELYARD_SERVER__PORT",
        "MODELYARD_RUN",
        "PYTHONPATH",
        "LD_PRELOAD",
        "NOTIFY_SOCKET",
        "MY_PATH",
        "PATHS",
    ],
)
def test_nothing_else_is_and_secrets_least_of_all(name: str) -> None:
    env = engine_environment({name: "value"}, {}, run="r", owner="o")

    assert set(env) == ADDED
    assert "value" not in env.values()


def test_a_model_s_own_variables_come_through_whatever_their_names() -> None:
    own = {"HF_TOKEN": "mine", "PATH": "/mine", "PYTHONUNBUFFERED": "", "MODELYARD_X": "x"}
    env = engine_environment({"PATH": "/bin"}, own, run="r", owner="o")

    assert own.items() <= env.items()


def test_the_markers_cannot_be_overwritten() -> None:
    own = {"MODELYARD_RUN": "mine", "MODELYARD_OWNER": "mine"}
    env = engine_environment({}, own, run="r", owner="o")

    assert env["MODELYARD_RUN"] == "r"
    assert env["MODELYARD_OWNER"] == "o"


async def test_a_real_engine_has_that_environment_and_no_other(
    launcher: LocalLauncher, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELYARD_ADMIN_KEY", "secret")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    command = Command(
        (sys.executable, "-c", "import os; [print('has', name) for name in os.environ]"),
        env={"OWN": "1"},
    )
    process = await launcher.start(command, label="m", on_line=lines)
    await process.wait()
    seen = {text.removeprefix("has ") for text in lines.texts}

    assert {"OWN", "PATH"} | ADDED <= seen
    assert seen.isdisjoint({"MODELYARD_ADMIN_KEY", "OPENAI_API_KEY"})
    assert seen - ADDED - {"OWN", "LC_CTYPE"} <= set(os.environ)
