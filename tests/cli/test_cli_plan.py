"""`modelyard plan`, alone and against a server, and the routes behind it."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import pytest
from tests.cli.conftest import Run, ServerProcess
from tests.planner.large_models import LLAMA_8B, LLAMA_70B, Q8_0, folder, gguf_file

from modelyard.app import engine_problems
from modelyard.client import Client
from modelyard.config import load
from modelyard.config.plans import Ask
from modelyard.testing.server import DEMO_MODELS

CHAT = str(DEMO_MODELS / "yard-chat.gguf")


def test_a_file_is_planned_for_without_a_server(alone: Run, tmp_path: Path) -> None:
    ran = alone("plan", str(gguf_file(tmp_path / "m-Q4_K_M.gguf")), "--gpus", "rtx 4090")

    assert ran.code == 0
    assert "Fits on one card" in ran.out
    for word in ("WEIGHTS", "KV CACHE", "SETTING", "CHANGE", "llama-server --model", "models:"):
        assert word in ran.out
    assert "estimate" in ran.out


def test_formulas_are_shown_with_their_sources(alone: Run) -> None:
    ran = alone("plan", CHAT, "--gpus", "none", "--formulas")

    assert "bytes/token" in ran.out
    assert "header values; llama.cpp's caches" in ran.out


def test_json_is_the_whole_plan(alone: Run, tmp_path: Path) -> None:
    path = folder(tmp_path / "m", LLAMA_70B)
    plan = alone("plan", str(path), "-g", "8x H100", "-l", "8192", "-n", "4", "--json").json

    assert plan["fits"] is True
    assert plan["options"]["tensor_parallel_size"] == 2
    assert (plan["context"], plan["sequences"]) == (8192, 4)
    assert plan["utilisation"] < 1
    assert {"settings", "shares", "speed", "alternatives", "fallbacks", "commands"} <= set(plan)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("/no/such/file.gguf",), 1, "there is no such file or folder"),
        ((CHAT, "--gpus", "rtx 4900"), 2, "did you mean GeForce RTX"),
        ((CHAT, "--ram", "8GiB"), 2, "--ram goes with --gpus"),
        ((CHAT, "--gpus", "none", "--ram", "much"), 2, "--ram much"),
        ((CHAT, "--engine", "vllm"), 2, "vllm does not load yard-chat"),
        ((CHAT, "--context", "-1"), 2, "context must be 1 to"),
        (("no-such-model",), 4, "there is no model named 'no-such-model'"),
        ((str(DEMO_MODELS),), 1, "there are several models"),
    ],
)
def test_what_cannot_be_planned_is_said_in_a_sentence(
    alone: Run, arguments: tuple[str, ...], code: int, words: str
) -> None:
    ran = alone("plan", *arguments)

    assert (ran.code, ran.out) == (code, "")
    assert words in ran.err
    assert "Traceback" not in ran.err


def test_a_damaged_file_is_named_with_what_is_wrong(alone: Run, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    shutil.copy(CHAT, path)
    with path.open("r+b") as file:
        file.truncate(20000)

    ran = alone("plan", str(path))

    assert ran.code == 1
    assert "truncated" in ran.err


@pytest.mark.parametrize("gpus", ["none", "rtx 4060", "2x 12GiB", "h100"])
def test_the_configuration_of_a_plan_is_one_that_modelyard_takes(
    alone: Run, tmp_path: Path, gpus: str
) -> None:
    gguf_file(tmp_path / "a" / "m-Q8_0.gguf", LLAMA_8B, Q8_0)
    for number, place in enumerate((tmp_path / "a", folder(tmp_path / "b" / "m"))):
        plan = alone("plan", str(place), "--gpus", gpus, "--ram", "256GiB", "--json").json
        file = tmp_path / f"{number}.yaml"
        file.write_text(plan["config"])

        config = load(file, env={})
        llamacpp_only = [spec for spec in config.models if spec.engine == "llamacpp"]

        assert plan["fits"]
        assert [spec.id for spec in config.models] == [plan["model"]]
        profile = config.models[0].profiles[0]
        needs = {s["name"]: s["needs_mib"] for s in plan["shares"]}
        assert set(profile.memory_mib.values()) <= set(needs.values())
        if llamacpp_only:
            assert engine_problems(config) == []


def test_a_server_plans_for_its_own_devices_and_what_they_hold(
    cli: Run, server: ServerProcess
) -> None:
    plan = cli("plan", "yard-chat", "--json").json
    by_path = cli("plan", CHAT, "--json").json

    host = next(share for share in plan["shares"] if share["device"] == "cpu")
    assert plan["fits"] is True
    assert host["available_mib"] == 1000  # the budget of the tests' server
    assert by_path["shares"][-1]["available_mib"] == 1000


def test_the_route_answers_questions_and_refuses_nonsense(server: ServerProcess) -> None:
    url = f"{server.url}/api/plan"

    got = httpx.get(
        url, params={"model": "yard-chat", "gpus": "2x rtx 4090", "context": 256}, timeout=60
    )
    posted = httpx.post(
        url, json={"model": "yard-chat", "gpus": "2x rtx 4090", "context": 256}, timeout=60
    )
    assert got.status_code == 200
    assert got.json() == posted.json()
    assert got.json()["context"] == 256
    for asked, status, words in (
        ({"model": "nobody"}, 404, "there is no model named"),
        ({"model": "yard-chat", "gpus": "banana"}, 400, "no card is known"),
        ({"model": "yard-chat", "context": "-5"}, 400, "context must be"),
        ({"model": "quick"}, 400, "has no files"),
        ({"gpus": "rtx 4090"}, 400, "model"),
    ):
        refused = httpx.get(url, params=asked, timeout=60)
        assert refused.status_code == status
        assert words in refused.json()["error"]["message"]


def test_the_client_asks_the_same(server: ServerProcess) -> None:
    with Client(server.url) as client:
        plan = client.plan("yard-chat", Ask(gpus="rtx 3060", concurrency=2))

    assert plan.fits
    assert plan.options["parallel"] == 2
    assert plan.shares[0].name == "rtx 3060"
