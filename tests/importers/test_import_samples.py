"""Every sample becomes a configuration, and every setting of it has a fate."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.importers.conftest import FILES, SAMPLES, Import, surroundings

from modelyard.app import engine_problems
from modelyard.cli import main
from modelyard.config import load
from modelyard.importers import Fate, Imported, import_path
from modelyard.importers.kinds import recognise
from modelyard.importers.report import UNKNOWN
from modelyard.importers.source import read_source

KINDS = {
    "llm-manager-v0.1": "llm-manager",
    "llm-manager-v0.2": "llm-manager",
    "llm-manager-v2": "llm-manager",
    "llm-manager-v2-yaml": "llm-manager",
    "llm-manager-v3": "llm-manager",
    "llama-swap": "llama-swap",
    "local-llm": "local-llm-interface",
    "modelfile": "modelfile",
    "nexus": "nexus",
    "scripts": "script",
    "vllama": "vllama",
    "vllama/vllama.env": "vllama-env",
    "vllama/readme.env": "vllama-env",
}
STRUCTURED = [name for name in FILES if name.endswith((".json", ".yaml"))]
FREE = ("macros", "env", "metadata", "pricing", "setParams", "setParamsByID", "matrix", "profiles")
"""Mappings of the sources whose keys anybody may choose, or that are reported as a whole."""


@pytest.mark.parametrize("name", FILES)
def test_a_sample_is_recognised_and_passes_config_check(name: str, tmp_path: Path) -> None:
    out = tmp_path / "modelyard.yaml"

    codes = [main(["import", str(SAMPLES / name), "--output", str(out)])]
    codes += [main(["config", "check", str(out)])]
    assert codes == [0, 0]
    assert recognise(read_source(SAMPLES / name))[0] == KINDS.get(
        name, KINDS[name.partition("/")[0]]
    )


@pytest.mark.parametrize("name", FILES)
def test_no_setting_of_a_sample_is_without_a_fate_or_unknown(name: str, imported: Import) -> None:
    result = imported(SAMPLES / name)
    _, tree = recognise(read_source(SAMPLES / name))

    assert [path for path in settings(tree) if not spoken_for(path, result)] == []
    assert [each.setting for each in result.findings if each.text == UNKNOWN] == []


@pytest.mark.parametrize("name", FILES)
def test_what_was_not_converted_is_told_in_the_file_as_well(name: str, imported: Import) -> None:
    result = imported(SAMPLES / name)
    written = " ".join(result.text.replace("#", " ").split())

    lost = [each for each in result.findings if each.fate is not Fate.CONVERTED]
    assert [each for each in lost if " ".join(each.text.split()) not in written] == []


@pytest.mark.parametrize("name", STRUCTURED)
def test_a_setting_that_nobody_knows_is_never_dropped(name: str, tmp_path: Path) -> None:
    """One unknown key is planted into every mapping of a sample, one at a time."""
    _, tree = recognise(read_source(SAMPLES / name))
    silent = []
    for place in mappings(tree):
        planted = copy.deepcopy(tree)
        at(planted, place)["zz_planted"] = "value"
        path = tmp_path / "config.json"
        path.write_text(json.dumps(planted), encoding="utf-8")
        kind = KINDS[name.partition("/")[0]]
        result = import_path(path, surroundings(tmp_path), engine_problems, kind)
        fates = {
            each.fate
            for each in result.findings
            if each.path == (*place, "zz_planted")[: len(each.path)]
        }
        if not fates or (fates == {Fate.CONVERTED} and not set(place) & set(FREE)):
            silent.append(place)

    assert [place for place in silent if place[-1:] not in [("extra_args",)]] == []


@pytest.mark.parametrize("name", FILES)
def test_importing_twice_gives_the_same_file(name: str, imported: Import) -> None:
    assert imported(SAMPLES / name).text == imported(SAMPLES / name).text


def test_the_aliases_tasks_and_profiles_of_v02_are_those_of_the_readme(
    imported: Import, tmp_path: Path
) -> None:
    models = loaded(imported(SAMPLES / "llm-manager-v0.2" / "config.json"), tmp_path)

    big = models["Qwen3-32B-Instruct"]
    assert big.aliases == ("qwen3-32b", "qwen-32b")
    assert [profile.name for profile in big.profiles] == ["RTX4090-RTX3090", "RTX4090", "RTX3090"]
    assert big.profiles[0].devices == ("rtx 4090", "rtx 3090")
    assert dict(big.profiles[1].memory_mib) == {"rtx 4090": 16384}
    assert models["GLM-4-9B-Chat"].preload is True
    assert {task.value for task in models["Qwen3-Embedding-8B"].tasks} == {"embedding"}


def test_a_zero_is_no_claim_and_a_required_card_stays_required(
    imported: Import, tmp_path: Path
) -> None:
    models = loaded(imported(SAMPLES / "llm-manager-v2-yaml" / "config.yaml"), tmp_path)

    profile = models["bge-code-v1"].profiles[0]
    assert profile.devices == ("v100", "cpu")
    assert dict(profile.memory_mib) == {"v100": 0, "cpu": 2048}


def test_alive_time_is_minutes_of_idleness(imported: Import, tmp_path: Path) -> None:
    path = tmp_path / "out.yaml"
    path.write_text(imported(SAMPLES / "llm-manager-v0.1" / "config.json").text)

    assert load(path, env={}).limits.idle_stop_s == 3600


def test_an_address_that_others_can_reach_is_not_taken_over(
    imported: Import, tmp_path: Path
) -> None:
    result = imported(SAMPLES / "llm-manager-v0.1" / "config.json")
    path = tmp_path / "out.yaml"
    path.write_text(result.text)

    assert load(path, env={}).server.host == "127.0.0.1"
    [finding] = [each for each in result.findings if each.setting == "program.openai_host"]
    assert "server.insecure" in finding.text


def test_macros_of_llama_swap_are_written_out(imported: Import, tmp_path: Path) -> None:
    models = loaded(imported(SAMPLES / "llama-swap" / "config.yaml"), tmp_path)

    big = models["gpt-oss-120b"]
    assert big.command == (
        *("llama-server", "--port", "{port}"),
        *("--model", f"{tmp_path}/models/gpt-oss-120B.gguf", "--ctx-size", "16384"),
        *("--chat-template-kwargs", '{"reasoning_effort": "{{high}}"}', "--temp", "0.7"),
    )
    assert big.limits.idle_stop_s == 60
    assert big.profiles[0].devices == ("nvidia:0",)
    assert models["qwen-unlisted"].preload is True
    assert models["reranker"].pinned is True
    assert models["fixed"].command == ("./house-server", "--listen", "{port}")
    assert "whisper" not in models


def test_keys_of_clients_and_peers_are_copied_nowhere(imported: Import) -> None:
    result = imported(SAMPLES / "llama-swap" / "config.yaml")

    assert "sk-hunter2" not in result.text + repr(result.findings)
    assert "OPENROUTER" not in result.text


def test_vllama_models_behave_as_vllama_started_them(imported: Import, tmp_path: Path) -> None:
    models = loaded(imported(SAMPLES / "vllama" / "models.yaml"), tmp_path)

    spec = models["BAAI/bge-m3"]
    assert spec.command[:3] == ("vllm", "serve", "BAAI/bge-m3")
    assert "--enable-sleep-mode" in spec.command
    assert spec.env["VLLM_SERVER_DEV_MODE"] == "1"
    assert spec.sleep_preset == "vllm"
    assert {task.value for task in spec.tasks} == {"embedding"}
    both = models["Qwen/Qwen3-Reranker-0.6B"]
    assert both.profiles[0].devices == ("nvidia:0", "nvidia:1")
    assert "--enforce-eager" in both.command
    assert "--enable-log-requests" not in both.command


def test_vllamas_variables_become_settings_and_its_token_does_not(
    imported: Import, tmp_path: Path
) -> None:
    result = imported(SAMPLES / "vllama" / "vllama.env")
    path = tmp_path / "out.yaml"
    path.write_text(result.text)
    config = load(path, env={})

    assert (config.server.port, config.limits.idle_sleep_s) == (33258, 1800)
    assert config.models_dirs == (Path("/root/.cache/huggingface/hub"),)
    assert "hf_secret" not in result.text + repr(result.findings)


def loaded(result: Imported, folder: Path) -> dict[str, Any]:
    path = folder / "loaded.yaml"
    path.write_text(result.text, encoding="utf-8")
    return {spec.id: spec for spec in load(path, env={"HOME": str(folder)}).models}


def settings(tree: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every key of a sample that holds no further keys."""
    if isinstance(tree, dict) and tree:
        for key, below in tree.items():
            yield from settings(below, (*path, key))
    elif isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        for index, item in enumerate(tree):
            yield from settings(item, (*path, index))
    else:
        yield path


def spoken_for(path: tuple[str | int, ...], result: Imported) -> bool:
    return any(path[: len(each.path)] == each.path for each in result.findings)


def mappings(tree: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if isinstance(tree, dict):
        yield path
        for key, below in tree.items():
            yield from mappings(below, (*path, key))
    elif isinstance(tree, list):
        for index, item in enumerate(tree):
            yield from mappings(item, (*path, index))


def at(tree: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        tree = tree[step]
    return tree
