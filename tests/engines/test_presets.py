"""Every preset, started through the configuration in place of its program."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from modelyard.config import Config, Devices, load
from modelyard.config import values as config_values
from modelyard.core.specs import Endpoint, ModelSpec, OptionValue, Placement, Profile, Task
from modelyard.engines import build
from modelyard.engines.presets import PRESETS
from modelyard.engines.presets.engine import PresetEngine
from modelyard.testing.server import Running, running

STAND_IN = Path(__file__).with_name("preset_stand_in.py")
HERE = Endpoint("127.0.0.1", 4711)
ON_HOST = Placement("default", {"cpu": 100})


def configured(folder: Path, preset: str, **keys: Any) -> Config:
    """The configuration of a model `m` with the stand-in in place of the preset's program."""
    program = [sys.executable, str(STAND_IN), preset]
    model = {"engine": "command", "preset": preset, "command": program, "memory": "10MiB", **keys}
    file = folder / "modelyard.yaml"
    file.write_text(json.dumps({"models": {"m": model}}))
    config = load(file, env={})
    return replace(config, devices=Devices(budget_mib={"cpu": 100}))


async def ready(server: Running, http: httpx.AsyncClient) -> dict[str, Any]:
    """What the stand-in says after the model has become ready."""
    assert (await http.post("/api/models/m/start")).status_code == 202
    async with asyncio.timeout(60):
        while (view := (await http.get("/api/models/m")).json())["state"] != "ready":
            assert view["state"] in ("stopped", "starting"), view["reason"]
            await asyncio.sleep(0.02)
    (run,) = server.yard.loop.runs.values()
    endpoint = run.endpoint
    seen: dict[str, Any] = (await http.get(f"http://{endpoint}/seen")).json()
    return seen | {"port": str(endpoint.port)}


EXPECTED: dict[str, tuple[dict[str, Any], list[str], list[Any]]] = {
    # preset: keys of the model, the command line, what it was asked before it was ready
    "sglang": (
        {"source": "w", "options": {"context_length": 4096}},
        ["--model-path", "W", "--served-model-name", "m", "--host", "127.0.0.1", "--port", "PORT",
         "--context-length", "4096"],
        ["/v1/completions", "m"],
    ),
    "lmdeploy": (
        {"source": "w", "options": {"session-len": 2048}},
        ["W", "--server-name", "127.0.0.1", "--server-port", "PORT", "--model-name", "m",
         "--session-len", "2048"],
        ["/v1/completions", "m"],
    ),
    "tensorrt-llm": (
        {"source": "w", "tasks": ["chat"], "options": {"max-seq-len": 512}},
        ["W", "--host", "127.0.0.1", "--port", "PORT", "--max_seq_len", "512"],
        ["/v1/chat/completions", "m"],
    ),
    "llama-server": (
        {"source": "w", "aliases": ["n"], "tasks": ["rerank"], "options": {"c": 64}},
        ["--model", "W", "--alias", "m,n", "--host", "127.0.0.1", "--port", "PORT", "--reranking",
         "-c", "64"],
        ["/v1/rerank", "m"],
    ),
    "mlx": (
        {"options": {"model": "mlx-community/m-4bit", "max_tokens": 10}},
        ["--model", "mlx-community/m-4bit", "--host", "127.0.0.1", "--port", "PORT",
         "--max-tokens", "10"],
        ["/v1/completions", "default_model"],
    ),
    "ollama": ({"options": {"model": "llama3.2"}}, [], ["/v1/completions", "llama3.2"]),
    "tei": (
        {"options": {"model": "BAAI/bge-reranker-base", "dtype": "float16"}, "tasks": ["rerank"]},
        ["--model-id", "BAAI/bge-reranker-base", "--hostname", "127.0.0.1", "--port", "PORT",
         "--dtype", "float16"],
        ["/rerank", None],
    ),
    "infinity": (
        {"source": "w"},
        ["--model-id", "W", "--served-model-name", "m", "--host", "127.0.0.1", "--port", "PORT",
         "--url-prefix", "/v1"],
        ["/v1/embeddings", "m"],
    ),
    "whisper.cpp": (
        {"source": "w", "options": {"convert": True, "threads": 2}},
        ["--model", "W", "--host", "127.0.0.1", "--port", "PORT",
         "--inference-path", "/v1/audio/transcriptions", "--convert", "--threads", "2"],
        [],
    ),
    "kokoro": ({"source": "."}, ["--host", "127.0.0.1", "--port", "PORT"], []),
    "stable-diffusion.cpp": (
        {"options": {"diffusion-model": "flux.gguf", "clip_l": "c", "offload-to-cpu": True}},
        ["--listen-ip", "127.0.0.1", "--listen-port", "PORT", "--diffusion-model", "flux.gguf",
         "--clip_l", "c", "--offload-to-cpu"],
        [],
    ),
}  # fmt: skip


def test_every_preset_of_the_configuration_is_known_and_tested() -> None:
    assert set(PRESETS) == set(config_values.PRESETS) == set(EXPECTED)
    assert {name: engine.name for name, engine in build("python3").items()}.items() >= {
        (name, name) for name in PRESETS
    }


@pytest.mark.parametrize("preset", EXPECTED)
async def test_a_preset_is_started_asked_and_ready(preset: str, tmp_path: Path) -> None:
    keys, expected, probe = EXPECTED[preset]
    config = configured(tmp_path, preset, **keys)

    async with (
        running(config, tmp_path / "state") as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
    ):
        seen = await ready(server, http)

    stand_for = {"W": str(tmp_path / "w"), "PORT": seen["port"]}
    assert seen["argv"] == [stand_for.get(argument, argument) for argument in expected]
    assert [[path, body.get("model")] for path, body in seen["asked"]] == ([probe] if probe else [])


CHATS = ("sglang", "lmdeploy", "tensorrt-llm", "llama-server")


@pytest.mark.parametrize("preset", CHATS)
async def test_a_preset_answers_a_chat_by_the_models_id(preset: str, tmp_path: Path) -> None:
    config = configured(tmp_path, preset, source="w")

    async with (
        running(config, tmp_path / "state") as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
    ):
        asked = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        answer = (await http.post("/v1/chat/completions", json=asked)).json()

    assert answer["choices"][0]["message"]["content"] == "as m"


async def test_ollama_listens_where_its_variable_says_and_keeps_its_model(tmp_path: Path) -> None:
    config = configured(tmp_path, "ollama", options={"model": "llama3.2"})

    async with (
        running(config, tmp_path / "state") as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
    ):
        seen = await ready(server, http)

    assert seen["env"]["OLLAMA_HOST"] == f"127.0.0.1:{seen['port']}"
    assert seen["env"]["OLLAMA_KEEP_ALIVE"] == "-1"


async def test_kokoro_runs_in_its_checkout_and_without_a_gpu_on_the_host(tmp_path: Path) -> None:
    (tmp_path / "checkout").mkdir()
    config = configured(tmp_path, "kokoro", source="checkout")

    async with (
        running(config, tmp_path / "state") as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
    ):
        seen = await ready(server, http)

    assert seen["cwd"] == str(tmp_path / "checkout")
    assert seen["env"]["USE_GPU"] == "false"
    assert seen["env"]["CUDA_VISIBLE_DEVICES"] == ""


async def test_a_name_that_the_program_does_not_know_fails_the_start_with_its_words(
    tmp_path: Path,
) -> None:
    config = configured(tmp_path, "ollama", options={"model": "gone"})

    async with (
        running(config, tmp_path / "state") as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
    ):
        await http.post("/api/models/m/start")
        async with asyncio.timeout(60):
            while not (view := (await http.get("/api/models/m")).json())["reason"]:
                await asyncio.sleep(0.02)

    assert (
        "its health route answers, but the model does not: POST /v1/completions: "
        in (view["reason"])
    )
    assert "status 404: model 'gone' not found" in view["reason"]


# ------------------------------------------------------------------------------------- overriding


def spec_of(preset: str, **fields: Any) -> ModelSpec:
    tasks = frozenset({Task.CHAT})
    return ModelSpec("m", preset, **{"tasks": tasks, "source": "/w", **fields})


def argv_of(preset: str, placement: Placement = ON_HOST, **fields: Any) -> tuple[str, ...]:
    return PresetEngine(PRESETS[preset]).command(spec_of(preset, **fields), placement, HERE).argv


def test_a_command_without_the_port_is_the_program_and_one_with_it_is_everything() -> None:
    program = argv_of("sglang", command=("/opt/sglang/bin/python", "-m", "sglang.launch_server"))
    whole = argv_of("sglang", command=("./start.sh", "{port}", "{model}", "{names}"), cwd="/srv")

    assert program[:4] == ("/opt/sglang/bin/python", "-m", "sglang.launch_server", "--model-path")
    assert whole == ("/srv/start.sh", "4711", "/w", "m")


def test_a_profiles_command_and_options_go_before_the_models() -> None:
    fast = Profile("fast", options={"session_len": 1}, command=("/opt/lmdeploy", "serve"))
    argv = argv_of(
        "lmdeploy", Placement("fast", {"cpu": 1}), profiles=(fast,), options={"session_len": 2}
    )

    assert argv[:2] == ("/opt/lmdeploy", "serve")
    assert argv[-2:] == ("--session-len", "1")


def test_several_gpus_are_used_in_parallel_unless_the_user_says_otherwise() -> None:
    two = Placement("default", {"GPU-a": 1, "GPU-b": 1, "cpu": 1})

    assert argv_of("sglang", two)[-2:] == ("--tp-size", "2")
    assert argv_of("sglang", two, options={"tp-size": 1})[-2:] == ("--tp-size", "1")
    assert argv_of("llama-server", two)[-2:] == ("--port", "4711")


def test_an_engine_sees_the_gpus_that_it_was_placed_on() -> None:
    engine = PresetEngine(PRESETS["sglang"])
    command = engine.command(spec_of("sglang"), Placement("default", {"GPU-b": 1}), HERE)

    assert command.env["CUDA_VISIBLE_DEVICES"] == "GPU-b"


def test_the_programs_own_arguments_for_a_task_can_be_changed_and_left_out() -> None:
    rerank = frozenset({Task.RERANK})
    usual = argv_of("sglang", tasks=rerank)
    changed = argv_of("sglang", tasks=rerank, options={"attention_backend": "fa3"})
    without = argv_of("sglang", tasks=rerank, options={"is_embedding": False})

    assert usual[usual.index("--is-embedding") :] == (
        *("--is-embedding", "--disable-radix-cache", "--chunked-prefill-size", "-1"),
        *("--attention-backend", "triton"),
    )
    assert changed.count("--attention-backend") == 1
    assert changed[-2:] == ("--attention-backend", "fa3")
    assert without[-2:] == ("--port", "4711")


def test_sglang_is_started_so_that_it_can_sleep_only_if_it_is_to_sleep(tmp_path: Path) -> None:
    awake = configured(tmp_path, "sglang", source="w").models[0]
    sleeper = configured(tmp_path, "sglang", source="w", sleep="sglang").models[0]
    engine = PresetEngine(PRESETS["sglang"])

    assert "--enable-memory-saver" not in engine.command(awake, ON_HOST, HERE).argv
    assert engine.command(sleeper, ON_HOST, HERE).argv[-2:] == (
        "--enable-memory-saver",
        "--enable-weights-cpu-backup",
    )
    assert configured(tmp_path, "lmdeploy", source="w").models[0].sleep_preset == "lmdeploy"


def test_health_tasks_and_variables_are_the_users_if_he_writes_them(tmp_path: Path) -> None:
    spec = configured(
        tmp_path, "ollama",
        options={"model": "nomic"}, tasks=["embedding"], env={"OLLAMA_KEEP_ALIVE": "1h"},
        health={"path": "/", "functional": False},
    ).models[0]  # fmt: skip
    engine = PresetEngine(PRESETS["ollama"])

    assert engine.health_path(spec) == "/"
    assert spec.tasks == {Task.EMBEDDING}
    assert engine.command(spec, ON_HOST, HERE).env["OLLAMA_KEEP_ALIVE"] == "1h"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (True, ("--xx",)),
        (False, ()),
        (None, ()),
        (3, ("--xx", "3")),
        (0.85, ("--xx", "0.85")),
        (1e-07, ("--xx", "1e-07")),
        ("a b", ("--xx", "a b")),
        ([1, "b"], ("--xx", "1", "b")),
        ({"rope": 2}, ("--xx", '{"rope": 2}')),
    ],
)
def test_option_values_are_written_as_command_lines_have_them(
    value: OptionValue, written: tuple[str, ...]
) -> None:
    assert argv_of("mlx", options={"xx": value})[7:] == written


@pytest.mark.parametrize(
    ("preset", "fields", "problem"),
    [
        ("sglang", {"source": None}, "source: name the file or folder of the model here, or what"),
        ("sglang", {"options": {"model": "x"}}, "options.model: source names the model already"),
        ("mlx", {"source": None, "options": {"model": 3}}, "options.model: it must be text, not 3"),
        ("kokoro", {"source": None}, "source: kokoro is started in the folder of its checkout"),
        ("lmdeploy", {"options": {"server-port": 1}}, "options.server-port: Modelyard fills this"),
        ("tei", {"options": {"--dtype": "x"}}, "options.--dtype: write the option without"),
        ("mlx", {"command": ("x", "{prt}")}, "command[1]: {prt} is not known; did you mean {port}"),
        (
            "tei",
            {"profiles": (Profile("p", options={"port": 1}),)},
            "profiles[0].options.port: Modelyard fills this in",
        ),
    ],
)
def test_problems_of_a_preset_name_their_key(
    preset: str, fields: dict[str, Any], problem: str
) -> None:
    found = PresetEngine(PRESETS[preset]).problems(spec_of(preset, **fields))

    assert [text for text in found if text.startswith(problem)] == list(found)
    assert len(found) == 1
