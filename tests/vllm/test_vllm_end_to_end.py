"""The real vLLM through Modelyard: it starts, answers, refuses, dies, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from modelyard.app import engine_problems, find_vllm
from modelyard.config import Config, Engines, Server
from modelyard.core.specs import ModelSpec, Task
from modelyard.engines.vllm_table import recorded

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("nothing_left")]

START_S = 240.0
READING = frozenset({Task.EMBEDDING, Task.RERANK})
DEVELOPMENT_ROUTES = (
    "/sleep", "/wake_up", "/is_sleeping", "/collective_rpc", "/reset_prefix_cache", "/server_info",
    "/update_weights", "/pause", "/invocations", "/load", "/metrics", "/openapi.json",
)  # fmt: skip
Model = Callable[..., ModelSpec]
Serve = Callable[..., Any]


@pytest.mark.shows(route="/v1/chat/completions", engine="vllm", dialect="openai")
@pytest.mark.shows(route="/v1/completions", engine="vllm", dialect="openai")
async def test_a_cold_start_tells_its_phases_and_then_serves_every_route(
    model: Model, serve: Serve
) -> None:
    async with serve(model("tiny", aliases=("gpt-4o", "small"))) as yard:
        news = asyncio.create_task(_phases(yard.http, "tiny"))
        whole = await yard.chat("small", seed=7)
        phases = await news
        streamed = await _streamed(yard.http, {"model": "gpt-4o", "max_tokens": 8, "seed": 7})
        completion = await yard.http.post(
            "/v1/completions", json={"model": "tiny", "prompt": "the yard", "max_tokens": 4}
        )
        asked = {"model": "small", "prompt": "the yard"}
        tokens = await yard.http.post("/tokenize", json=asked)
        reached = [(await yard.http.post(path)).status_code for path in DEVELOPMENT_ROUTES]
        processes = await yard.processes("tiny")
        listening = [
            place.laddr.ip
            for process in processes
            for place in process.net_connections("tcp")
            if place.status == psutil.CONN_LISTEN
        ]
        core = (await yard.titled("tiny", "VLLM::EngineCore")).environ()
        view = await yard.view("tiny")

    names = [phase for phase, _ in phases]
    in_order = list(dict.fromkeys(names))
    assert in_order[0] == "starting"
    assert [p for p in in_order if p in EXPECTED_PHASES] == EXPECTED_PHASES
    assert 100.0 in {percent for phase, percent in phases if phase == "loading weights"}
    assert whole["usage"]["completion_tokens"] == 8
    assert whole["choices"][0]["message"]["content"] == streamed
    assert completion.json()["usage"]["completion_tokens"] == 4
    assert tokens.json()["count"] == len(tokens.json()["tokens"]) > 0
    assert set(reached) <= {404, 405}
    assert set(listening) == {"127.0.0.1"}
    assert "VLLM_SERVER_DEV_MODE" not in core
    assert core["VLLM_NO_USAGE_STATS"] == "1"
    assert view["sleep_levels"] == []
    assert view["used_mib"]["cpu"] > 500


EXPECTED_PHASES = [
    "reading the model", "starting the engine", "loading weights", "profiling memory", "warming up",
    "listening",
]  # fmt: skip


@pytest.mark.shows(route="/v1/embeddings", engine="vllm", dialect="openai")
@pytest.mark.shows(route="/v1/rerank", engine="vllm", dialect="rerank")
async def test_a_model_that_reads_is_started_as_a_module_of_a_python(
    model: Model, serve: Serve, place: Path
) -> None:
    python = str(place / "bin" / "python")
    async with serve(model("reader", tasks=READING, command=(python,))) as yard:
        wanted = {"model": "reader", "input": ["the signal", "the yard", "the signal"]}
        embedded = await yard.http.post("/v1/embeddings", json=wanted)
        query = {"model": "reader", "query": "the yard", "documents": ["the signal", "the yard"]}
        ranked = await yard.http.post("/v1/rerank", json=query)
        started = (await yard.processes("reader"))[0].cmdline()

    first, second, third = (row["embedding"] for row in embedded.json()["data"])
    assert len(first) == 64
    assert math.isclose(math.hypot(*first), 1.0, abs_tol=1e-3)
    assert first == pytest.approx(third, abs=1e-3)
    assert first != pytest.approx(second, abs=1e-3)
    scores = {row["index"]: row["relevance_score"] for row in ranked.json()["results"]}
    assert scores[1] > scores[0]
    assert started[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    assert "--runner=pooling" in started


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_model_len": 4096}, "max_model_len 4096 is more than the 512"),
        ({"dtype": "half_a_byte"}, "vLLM refuses an option: argument --dtype"),
        (
            {"kv_cache_memory_bytes": 1 << 16, "max_model_len": 512},
            "nothing is left for the KV cache; give the profile more `memory`",
        ),
    ],
    ids=["longer than the model", "no such choice", "no room for one request"],
)
async def test_what_only_vllm_can_refuse_is_told_in_one_sentence_and_not_tried_again(
    model: Model, serve: Serve, options: dict[str, object], reason: str
) -> None:
    async with serve(model("wrong", **options)) as yard:
        request = {"model": "wrong", "messages": [{"role": "user", "content": "hi"}]}
        answer = await yard.http.post("/v1/chat/completions", json=request)
        view = await yard.view("wrong")

    assert answer.status_code >= 500
    assert reason in answer.json()["error"]["message"]
    assert "\n" not in view["reason"]
    assert (view["state"], view["run"]) == ("failed", 1)


@pytest.mark.parametrize("victim", ["VLLM::EngineCore", "VLLM::Worker", ""])
async def test_a_killed_part_ends_the_whole_engine_and_the_next_request_has_a_fresh_one(
    model: Model, serve: Serve, victim: str
) -> None:
    async with serve(model("tiny")) as yard:
        await yard.chat("tiny")
        before = await yard.processes("tiny")
        first = await yard.view("tiny")
        killed = await yard.titled("tiny", victim) if victim else psutil.Process(first["pid"])
        killed.kill()
        await yard.until_gone(before)
        answer = await yard.chat("tiny")
        second = await yard.view("tiny")

    assert answer["usage"]["completion_tokens"] == 8
    assert second["run"] > first["run"]


async def test_a_stop_while_it_loads_leaves_no_process(model: Model, serve: Serve) -> None:
    async with serve(model("tiny")) as yard:
        await yard.http.post("/api/models/tiny/start")
        async with asyncio.timeout(120):
            while (await yard.view("tiny"))["phase"] != "starting the engine":
                await asyncio.sleep(0.05)
        loading = await yard.processes("tiny")
        await yard.http.post("/api/models/tiny/stop")
        await yard.until_gone(loading)
        await yard.until_state("tiny", "stopped")

    assert len(loading) > 1


async def test_modelyard_killed_with_9_leaves_no_part_of_vllm_behind(
    tmp_path: Path, checkpoint: Path, place: Path
) -> None:
    tiny = {
        "engine": "vllm",
        "source": str(checkpoint),
        "options": {"enforce_eager": True, "max_model_len": 128},
        "memory": "4500MiB",
        "preload": True,
    }
    file = tmp_path / "modelyard.yaml"
    server = {"port": 0, "state_dir": str(tmp_path / "state")}
    written = {"server": server, "engines": {"vllm": str(place)}, "models": {"tiny": tiny}}
    file.write_text(json.dumps(written))
    command = (sys.executable, "-m", "modelyard.cli", "serve", "--config", str(file))
    quiet = asyncio.subprocess.DEVNULL
    modelyard = await asyncio.create_subprocess_exec(*command, stdout=quiet, stderr=quiet)
    root = psutil.Process(modelyard.pid)
    try:
        async with asyncio.timeout(START_S):
            while not _titled(root, "VLLM::EngineCore"):
                await asyncio.sleep(0.2)
        left = root.children(recursive=True)
    finally:
        modelyard.kill()
        await modelyard.wait()

    async with asyncio.timeout(30):
        while any(process.is_running() for process in left):
            await asyncio.sleep(0.1)
    assert len(left) >= 3


async def test_options_are_checked_against_what_the_installed_vllm_prints(
    model: Model, answers: Path, place: Path
) -> None:
    options = {"enforce_eagr": True, "swap_space": 4, "enable_sleep_mode": True, "task": "generate"}
    wrong = model("wrong", **options)
    config = Config(
        server=Server(state_dir=answers), engines=Engines(vllm=str(place)), models=(wrong,)
    )

    here = await asyncio.to_thread(find_vllm, config)

    build = here.build_of(())
    assert (build.version, build.platform) == ("0.32.0", "cpu")
    assert build.told == recorded("0.32.0")
    told = engine_problems(config, here)
    assert [problem.split(":")[0] for problem in told] == [
        "models.wrong.options.enforce_eagr",
        "models.wrong.options.swap_space",
        "models.wrong.options.enable_sleep_mode",
    ]
    assert "did you mean enforce_eager?" in told[0]


async def test_two_engines_at_once_have_cores_of_their_own(model: Model, serve: Serve) -> None:
    async with serve(model("left"), model("right")) as yard:
        await asyncio.gather(yard.chat("left"), yard.chat("right"))
        workers = [await yard.titled(name, "VLLM::Worker") for name in ("left", "right")]
        bound = [_cores_of_busy_threads(worker) for worker in workers]
        said = [worker.environ()["VLLM_CPU_OMP_THREADS_BIND"] for worker in workers]
        answers = await asyncio.gather(*(yard.chat(name) for name in ("left", "right") * 4))

    assert len(set(said)) == 2
    assert bound[0]
    assert bound[1]
    assert not bound[0] & bound[1]
    assert {answer["model"] for answer in answers} == {"left", "right"}


def _titled(root: psutil.Process, title: str) -> bool:
    with suppress(psutil.NoSuchProcess):
        return any(" ".join(p.cmdline()).startswith(title) for p in root.children(recursive=True))
    return False


def _cores_of_busy_threads(process: psutil.Process) -> set[int]:
    """Cores of the threads that are bound to fewer than there are."""
    allowed = set(psutil.Process().cpu_affinity() or ())
    cores: set[int] = set()
    for thread in process.threads():
        with suppress(psutil.NoSuchProcess):
            mine = set(psutil.Process(thread.id).cpu_affinity() or ())
            cores |= mine if mine < allowed else set()
    return cores


async def _phases(http: httpx.AsyncClient, model: str) -> list[tuple[str, float | None]]:
    """What the admin API's events say of a start, until it is ready."""
    seen: list[tuple[str, float | None]] = []
    async with http.stream("GET", "/api/events") as events:
        async for line in events.aiter_lines():
            if not line.startswith("data:"):
                continue
            view = json.loads(line[5:])
            view = view.get("data", view)
            if not isinstance(view, dict) or view.get("id") != model:
                continue
            if view["state"] == "ready":
                return seen
            if view["phase"]:
                seen.append((view["phase"], view["percent"]))
    return seen


async def _streamed(http: httpx.AsyncClient, request: dict[str, Any]) -> str:
    """The text of a streamed chat."""
    messages = [{"role": "user", "content": "the signal"}]
    body = {**request, "messages": messages, "stream": True}
    text = ""
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                choices = json.loads(line[6:])["choices"]
                text += "".join(each["delta"].get("content") or "" for each in choices)
    return text
