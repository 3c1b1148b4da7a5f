from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from modelyard.testing.fake_gpu import HOST, Book
from modelyard.testing.fake_vllm import executable

PATIENCE_S = 60.0
AWAKE_MIB = 300 + 4915
"""Context beside the budget, and 0.6 of 8 GiB (less what rounding leaves)."""


@dataclass
class Vllm:
    process: asyncio.subprocess.Process
    client: httpx.AsyncClient
    book: Book
    output: Path

    @property
    def log(self) -> str:
        return self.output.read_text()

    async def until(self, happened: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not happened():
                await asyncio.sleep(0.005)

    async def until_ready(self) -> None:
        await self.until(lambda: "startup complete" in self.log or self.ended)
        assert "startup complete" in self.log, self.log

    @property
    def ended(self) -> bool:
        return self.process.returncode is not None

    async def exit_code(self) -> int:
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()

    def children(self) -> list[psutil.Process]:
        """Engine and workers, found by their titles as anybody would find them."""
        mine = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in mine if _title(child).startswith("VLLM::")]

    @property
    def core(self) -> psutil.Process:
        return next(child for child in self.children() if child.name() == "VLLM::EngineCore")

    def used(self, index: int = 0) -> int:
        return self.book.accounts()[index].used_mib

    async def chat(self, **rest: object) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": "one two"}], "max_tokens": 6, **rest}
        return await self.client.post("/v1/chat/completions", json=body)

    async def text(self) -> str:
        said: str = (await self.chat()).json()["choices"][0]["message"]["content"]
        return said

    async def post(self, path: str, **body: object) -> Any:
        answer = await self.client.post(path, json=body or None)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def is_sleeping(self) -> bool:
        asleep: bool = (await self.client.get("/is_sleeping")).json()["is_sleeping"]
        return asleep


Start = Callable[..., Awaitable[Vllm]]


def _title(process: psutil.Process) -> str:
    """What a process is called; nothing of one that has ended or is just beginning."""
    try:
        return (process.cmdline() or [""])[0]
    except psutil.NoSuchProcess:
        return ""


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book.create(tmp_path / "gpus", ["8GiB", "8GiB"])


@pytest.fixture
async def start(
    book: Book, tmp_path: Path, unused_tcp_port_factory: Callable[[], int]
) -> AsyncIterator[Start]:
    engines: list[Vllm] = []

    async def begin(
        *flags: str,
        ready: bool = True,
        port: int = 0,
        context: tuple[str, ...] = ("--max-model-len", "2048"),
        **variables: str,
    ) -> Vllm:
        port = port or unused_tcp_port_factory()
        output = tmp_path / f"engine-{len(engines)}.log"
        environment = {
            **os.environ,
            "MODELYARD_FAKE_GPUS": str(book.folder),
            "VLLM_SERVER_DEV_MODE": "1",
            "CUDA_VISIBLE_DEVICES": "0",
            "MODELYARD_FAKE_VLLM": "--fake-weights 3GiB",
            **variables,
        }
        with output.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "modelyard.testing.fake_vllm", "serve", "some/model",
                "--host", "127.0.0.1", "--port", str(port), "--served-model-name", "yard", "alias",
                "--gpu-memory-utilization", "0.6", *context,
                "--enable-sleep-mode", *flags,
                env=environment, stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip
        client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S)
        engines.append(Vllm(process, client, book, output))
        if ready:
            await engines[-1].until_ready()
        return engines[-1]

    yield begin
    for engine in engines:
        await engine.client.aclose()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(engine.process.pid, signal.SIGKILL)
        await engine.process.wait()
    for engine in engines:
        await engine.until(lambda: not any(each.by_process_mib for each in book.accounts()))


# ---------------------------------------------------------------------------------------- loading


async def test_the_phases_of_a_load_are_logged_in_order(start: Start) -> None:
    vllm = await start("--fake-load", "40ms")
    phases = [
        "non-default args",
        "Resolved architecture: FakeForCausalLM",
        "Initializing a V1 LLM engine",
        "Starting to load model some/model",
        "Loading safetensors checkpoint shards:   0%",
        "Loading safetensors checkpoint shards:  50%",
        "Loading safetensors checkpoint shards: 100%",
        "Loading weights took 0.02 seconds",
        "Model loading took 3.00 GiB memory and 0.020000 seconds",
        "Dynamo bytecode transform",
        "Compiling a graph",
        "Estimated CUDA graph memory: 0.05 GiB",
        "Available KV cache memory: 1.65 GiB",
        "GPU KV cache size: 54,176 tokens, Maximum concurrency for 2,048 tokens per request: 26.4",
        "Capturing CUDA graphs (decode, FULL): 100%",
        "Graph capturing finished in",
        "Actual usage is 3.00 GiB for consumed memory (weights + non-torch), 0.10 GiB for peak act",
        "ivation, and 0.05 GiB for CUDAGraph memory. Replace",
        "init engine",
        "Starting vLLM server on http://127.0.0.1:",
    ]
    places = [vllm.log.find(phase) for phase in phases]

    assert dict.fromkeys(phases, True) == {
        phase: place >= 0 for phase, place in zip(phases, places, strict=True)
    }
    assert places == sorted(places)


async def test_connections_are_refused_until_the_load_is_over(start: Start) -> None:
    vllm = await start("--fake-load", "60m", ready=False)
    await vllm.until(lambda: "Starting to load model" in vllm.log)

    with pytest.raises(httpx.ConnectError):
        await vllm.client.get("/health")


async def test_memory_is_taken_step_by_step_up_to_the_utilisation(start: Start, book: Book) -> None:
    vllm = await start()
    steps = [(event.tag, event.used_mib) for event in book.events() if event.what == "take"]

    assert steps == [
        ("context", 300), ("weights", 1068), ("weights", 1836), ("weights", 2604),
        ("weights", 3372), ("activation", 3472), ("kv_cache", 5165), ("graphs", AWAKE_MIB),
    ]  # fmt: skip
    assert dict(book.accounts()[0].by_process_mib) == {vllm.core.pid: AWAKE_MIB}


async def test_a_device_that_is_too_full_is_refused_at_start_in_vllms_words(
    start: Start, book: Book
) -> None:
    book.stranger(book.accounts()[0].id, "4GiB")
    vllm = await start(ready=False)

    assert await vllm.exit_code() == 1
    assert (
        "ValueError: Free memory on device cuda:0 (3.71/8.00 GiB) on startup is less than desired"
        " GPU memory utilization (0.6, 4.80 GiB). Decrease GPU memory utilization" in vllm.log
    )
    assert "Engine core initialization failed" in vllm.log
    assert book.accounts()[0].used_mib == 4096


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--fake-weights", "5GiB"), "No available memory for the cache blocks"),
        (("--max-model-len", "64K"), "the estimated maximum model length is 54176"),
        (("--fake-weights", "9GiB"), "OutOfMemory: CUDA out of memory. Tried to allocate"),
        (("--fake-crash-while-loading",), "the load was to fail halfway"),
        (("-tp", "2"), "No CUDA GPUs are available: 2 needed, 1 visible"),
    ],
)
async def test_a_load_that_cannot_succeed_says_why_and_ends(
    start: Start, flags: tuple[str, ...], words: str
) -> None:
    vllm = await start(*flags, ready=False)

    assert await vllm.exit_code() == 1
    assert words in vllm.log


async def test_memory_that_others_free_while_it_is_measured_breaks_the_load(
    start: Start, book: Book
) -> None:
    gpu = book.accounts()[0].id
    book.stranger(gpu, "2GiB")
    vllm = await start("--fake-load", "2s", "--fake-weights", "1GiB", ready=False)
    await vllm.until(lambda: "shards:   0%" in vllm.log)
    book.stranger(gpu, 0)

    assert await vllm.exit_code() == 1
    assert "AssertionError: Error in memory profiling" in vllm.log


async def test_memory_that_others_take_while_it_is_measured_is_billed_to_the_cache(
    start: Start, book: Book
) -> None:
    vllm = await start("--fake-load", "2s", ready=False)
    await vllm.until(lambda: "shards:   0%" in vllm.log)
    book.stranger(book.accounts()[0].id, "1GiB")
    await vllm.until_ready()

    assert "Available KV cache memory: 0.65 GiB" in vllm.log


async def test_a_fixed_cache_is_taken_as_it_was_said(start: Start, book: Book) -> None:
    vllm = await start("--kv-cache-memory-bytes", "512M")

    assert book.held(book.accounts()[0].id, pid=vllm.core.pid)["kv_cache"] == 512


@pytest.mark.parametrize(("asked", "length"), [((), 4096), (("--max-model-len", "auto"), 512)])
async def test_a_context_nobody_chose_is_the_models_and_auto_is_what_fits(
    start: Start, asked: tuple[str, ...], length: int
) -> None:
    cache = ("--kv-cache-memory-bytes", "16M") if asked else ()
    vllm = await start("--fake-derived-len", "4K", *cache, *asked, context=())

    assert (await vllm.client.get("/v1/models")).json()["data"][0]["max_model_len"] == length


async def test_a_port_that_is_taken_is_told_before_anything_is_loaded(
    start: Start, book: Book
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        vllm = await start(ready=False, port=taken.getsockname()[1])

        assert await vllm.exit_code() == 1
    assert "Address already in use" in vllm.log
    assert book.events() == []


async def test_devices_are_chosen_by_index_or_uuid(start: Start, book: Book) -> None:
    first, second = book.accounts()
    by_index = await start(CUDA_VISIBLE_DEVICES="1")
    by_uuid = await start(CUDA_VISIBLE_DEVICES=first.id)

    assert list(book.account(second.id).by_process_mib) == [by_index.core.pid]
    assert list(book.account(first.id).by_process_mib) == [by_uuid.core.pid]


async def test_a_model_over_two_devices_has_a_worker_on_each(start: Start, book: Book) -> None:
    vllm = await start("-tp", "2", "--fake-load", "10ms", CUDA_VISIBLE_DEVICES="0,1")
    names = sorted(child.name() for child in vllm.children())
    workers = [child.pid for child in vllm.children() if "Worker" in child.name()]
    holders = [pid for account in book.accounts() for pid in account.by_process_mib]

    assert names == ["VLLM::EngineCore", "VLLM::Worker_TP0", "VLLM::Worker_TP1"]
    assert sorted(holders) == sorted(workers)
    assert [book.held(account.id, pid=pid)["weights"] for account in book.accounts()
            for pid in account.by_process_mib] == [1536, 1536]  # fmt: skip


async def test_a_worker_that_dies_takes_the_engine_along(start: Start) -> None:
    vllm = await start("-tp", "2", CUDA_VISIBLE_DEVICES="0,1")
    next(child for child in vllm.children() if "Worker_TP1" in child.name()).kill()

    assert await vllm.exit_code() == 1
    await vllm.until(lambda: vllm.used(0) + vllm.used(1) == 0)


# -------------------------------------------------------------------------------- the command line


def vllm_says(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "modelyard.testing.fake_vllm", *arguments],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("serve", "m", "--swap-space", "4"), "vllm: error: unrecognized arguments: --swap-space"),
        (("serve", "m", "--port", "x"), "argument --port: invalid int value: 'x'"),
        (("serve", "m", "--max-model-len", "4x"), "invalid context_length value: '4x'"),
        (("serve", "m", "--gpu-memory-utilization", "1.2"), "invalid share value: '1.2'"),
        (("serve", "m", "n"), "unrecognized arguments: n"),
        (("serve", "m", "--fake-residue", "10MiB"), "--fake-residue includes --fake-graphs"),
    ],
)
def test_what_vllm_does_not_take_is_refused(arguments: tuple[str, ...], words: str) -> None:
    done = vllm_says(*arguments)

    assert done.returncode == 2
    assert words in done.stderr


def test_a_program_called_vllm_tells_version_and_options(tmp_path: Path) -> None:
    program = executable(tmp_path)
    version, options = (
        subprocess.run([program, *words], capture_output=True, text=True, check=True).stdout
        for words in (["--version"], ["serve", "--help"])
    )

    assert version.strip() == "0.32.0"
    assert re.search(r"^  --enable-sleep-mode", options, re.MULTILINE)
    assert "--swap-space" not in options


async def test_options_are_taken_in_all_of_vllms_spellings(start: Start) -> None:
    vllm = await start(
        "--max_model_len", "1K", "--no-enable-prefix-caching", "--hf-overrides.a.b", "1",
        "--tensor-parallel", "1", "--kv-cache-dtype=fp8",
    )  # fmt: skip
    models = (await vllm.client.get("/v1/models")).json()["data"]

    assert [(model["id"], model["max_model_len"]) for model in models] == [
        ("yard", 1024), ("alias", 1024),
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------- answers


async def test_an_answer_tells_who_gave_it(start: Start) -> None:
    vllm = await start()
    answer = (await vllm.chat(model="alias")).json()

    assert answer["choices"][0]["message"]["content"] == "alias: echo of one two 1"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 6, "total_tokens": 8}


async def test_a_stream_says_the_same_and_ends_with_the_usage_asked_for(start: Start) -> None:
    vllm = await start("--fake-tps", "1000")
    answer = await vllm.chat(stream=True, stream_options={"include_usage": True})
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    parts = [json.loads(event) for event in events[:-1]]
    choices = [choice for part in parts for choice in part["choices"]]

    assert events[-1] == "[DONE]"
    assert "".join(choice["delta"].get("content", "") for choice in choices) == (
        "yard: echo of one two 1"
    )
    assert choices[-1]["finish_reason"] == "length"
    assert parts[-1]["usage"]["completion_tokens"] == 6


async def test_small_routes_answer(start: Start) -> None:
    vllm = await start()
    health = await vllm.client.get("/health")
    plain = await vllm.post("/v1/completions", prompt="three", max_tokens=4)

    assert (health.status_code, health.content) == (200, b"")
    assert (await vllm.client.get("/version")).json() == {"version": "0.32.0"}
    assert plain["choices"][0]["text"] == "yard: echo of three"


async def test_a_pooling_model_embeds_and_ranks_and_does_not_chat(start: Start) -> None:
    vllm = await start("--runner", "pooling")
    embedded = await vllm.post("/v1/embeddings", input=["a", "b"])
    ranked = await vllm.post("/v1/rerank", query="fox", documents=["dog", "a fox"])

    assert [len(item["embedding"]) for item in embedded["data"]] == [8, 8]
    assert [result["index"] for result in ranked["results"]] == [1, 0]
    assert (await vllm.chat()).status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"model": "nobody"}, 404, "The model `nobody` does not exist."),
        ({"max_tokens": 4096}, 400, "maximum context length is 2048 tokens"),
        ({"messages": "hi"}, 400, "messages"),
    ],
)
async def test_a_wrong_request_is_refused(
    start: Start, body: dict[str, object], status: int, words: str
) -> None:
    vllm = await start()
    answer = await vllm.chat(**body)

    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]


async def test_a_key_guards_the_openai_routes_and_leaves_sleep_open(start: Start) -> None:
    vllm = await start("--api-key", "secret")
    refused = await vllm.chat()
    vllm.client.headers["Authorization"] = "Bearer secret"
    taken = await vllm.chat()
    del vllm.client.headers["Authorization"]

    assert (refused.status_code, taken.status_code) == (401, 200)
    assert await vllm.post("/sleep?level=1") == {"status": "sleeping", "level": 1}
    assert "secret" not in vllm.log


async def test_metrics_tell_of_work_and_sleep(start: Start) -> None:
    vllm = await start()
    await vllm.chat()
    await vllm.post("/sleep?level=2")
    waiting = asyncio.ensure_future(vllm.chat())
    label = 'engine="0",model_name="yard"'
    expected = {
        f"vllm:generation_tokens_total{{{label}}} 6.0",
        f"vllm:num_requests_waiting{{{label}}} 1.0",
        f"vllm:num_requests_running{{{label}}} 0.0",
        f"vllm:kv_cache_usage_perc{{{label}}} 0.0",
        f'vllm:engine_sleep_state{{{label},sleep_state="discard_all"}} 1.0',
        f'vllm:engine_sleep_state{{{label},sleep_state="awake"}} 0.0',
    }
    async with asyncio.timeout(PATIENCE_S):
        while not expected <= set((await vllm.client.get("/metrics")).text.splitlines()):
            await asyncio.sleep(0.005)
    await vllm.post("/wake_up")
    await waiting


# ---------------------------------------------------------------------------------- sleep and wake


@pytest.mark.parametrize(("level", "on_host"), [(1, 3072), (2, 0)])
async def test_sleep_gives_back_all_but_the_residue(
    start: Start, book: Book, level: int, on_host: int
) -> None:
    vllm = await start("--fake-residue", "200MiB")
    answer = await vllm.post(f"/sleep?level={level}")

    assert answer == {"status": "sleeping", "level": level}
    assert (vllm.used(), book.account(HOST).used_mib) == (200, on_host)
    assert "Sleep mode freed 4.75 GiB memory, 0.20 GiB memory is still in use." in vllm.log
    assert await vllm.is_sleeping()
    assert (await vllm.client.get("/health")).status_code == 200


async def test_after_a_level_1_sleep_everything_is_as_before(start: Start, book: Book) -> None:
    vllm = await start()
    await vllm.post("/sleep?level=1")
    answer = await vllm.post("/wake_up")

    assert (answer, await vllm.is_sleeping()) == ({"status": "awake"}, False)
    assert (vllm.used(), book.account(HOST).used_mib) == (AWAKE_MIB, 0)
    assert await vllm.text() == "yard: echo of one two 1"
    assert book.violations() == []


async def test_after_a_level_2_sleep_answers_are_garbage_until_the_weights_are_reloaded(
    start: Start,
) -> None:
    vllm = await start()
    await vllm.post("/sleep?level=2")
    await vllm.post("/wake_up")
    garbage = await vllm.text()
    await vllm.post("/collective_rpc", method="reload_weights")

    assert (garbage, await vllm.text()) == ("!!!!!!", "yard: echo of one two 1")


async def test_a_level_2_wake_by_the_book_goes_on_only_when_all_is_resident(start: Start) -> None:
    vllm = await start()
    await vllm.post("/sleep?level=2")
    waiting = asyncio.ensure_future(vllm.text())
    half = await vllm.post("/wake_up?tags=weights")
    used = vllm.used()
    reloaded = await vllm.post("/collective_rpc", method="reload_weights")
    still = (await vllm.is_sleeping(), waiting.done())
    whole = await vllm.post("/wake_up?tags=kv_cache")
    reset = await vllm.client.post("/reset_prefix_cache")

    assert (half, used, still) == ({"status": "sleeping"}, 350 + 3072, (True, False))
    assert (reloaded, whole, reset.status_code) == ({"results": [None]}, {"status": "awake"}, 200)
    assert await waiting == "yard: echo of one two 1"


async def test_weights_cannot_be_reloaded_while_they_have_no_memory(start: Start) -> None:
    vllm = await start()
    await vllm.post("/sleep?level=2")
    answer = await vllm.client.post("/collective_rpc", json={"method": "reload_weights"})

    assert (answer.status_code, "not resident" in answer.text) == (500, True)


async def test_a_sleep_aborts_what_is_in_flight_and_what_comes_later_waits(start: Start) -> None:
    vllm = await start("--fake-tps", "100")
    body = {"messages": [], "max_tokens": 1000, "stream": True}
    async with vllm.client.stream("POST", "/v1/chat/completions", json=body) as stream:
        lines = stream.aiter_lines()
        await anext(lines)
        await vllm.post("/sleep?level=1")
        rest = [line.removeprefix("data: ") async for line in lines if line]
    later = asyncio.ensure_future(vllm.text())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(later), 0.05)
    await vllm.post("/wake_up")

    assert json.loads(rest[-2])["choices"][0]["finish_reason"] == "abort"
    assert rest[-1] == "[DONE]"
    assert await later == "yard: echo of one two 1"


@pytest.mark.parametrize("mode", ["wait", "keep"])
async def test_a_sleep_may_wait_for_what_is_in_flight_or_keep_it(start: Start, mode: str) -> None:
    vllm = await start("--fake-tps", "12")
    running = asyncio.ensure_future(vllm.chat(max_tokens=12))
    async with asyncio.timeout(PATIENCE_S):
        while (
            'running{engine="0",model_name="yard"} 1.0'
            not in (await vllm.client.get("/metrics")).text
        ):
            await asyncio.sleep(0.005)
    await vllm.post(f"/sleep?level=1&mode={mode}")
    finished_before_sleep = vllm.book.events()[-1].tag == "sleep" and running.done()
    await vllm.post("/wake_up")
    choice = (await running).json()["choices"][0]

    assert finished_before_sleep == (mode == "wait")
    assert (choice["finish_reason"], choice["message"]["content"]) == (
        "length", "yard: echo of one two 1 2 3 4 5 6 7",
    )  # fmt: skip


async def test_level_0_stops_the_scheduling_and_moves_no_memory(start: Start) -> None:
    vllm = await start()
    await vllm.post("/sleep?level=0")
    asleep, used = await vllm.is_sleeping(), vllm.used()
    await vllm.post("/wake_up?tags=scheduling")

    assert (asleep, used, await vllm.is_sleeping()) == (True, AWAKE_MIB, False)


async def test_who_sleeps_already_does_not_sleep_deeper(start: Start, book: Book) -> None:
    vllm = await start()
    await vllm.post("/sleep?level=1")
    await vllm.post("/sleep?level=2")

    assert "Executor is already sleeping." in vllm.log
    assert book.account(HOST).used_mib == 3072


async def test_without_sleep_mode_a_sleep_frees_nothing(start: Start) -> None:
    vllm = await start("--no-enable-sleep-mode")
    await vllm.post("/sleep?level=2")
    used = vllm.used()
    await vllm.post("/wake_up")

    assert (used, await vllm.text()) == (AWAKE_MIB, "yard: echo of one two 1")


async def test_outside_dev_mode_there_is_no_sleep(start: Start) -> None:
    vllm = await start(VLLM_SERVER_DEV_MODE="0")
    answers = [await vllm.client.post(path) for path in ("/sleep", "/wake_up", "/collective_rpc")]

    assert [answer.status_code for answer in answers] == [404, 404, 404]


async def test_a_way_to_sleep_that_does_not_exist_is_refused(start: Start) -> None:
    vllm = await start()

    assert (await vllm.client.post("/sleep?level=3")).status_code == 400
    assert not await vllm.is_sleeping()


async def test_a_level_1_sleep_needs_host_memory(start: Start, tmp_path: Path) -> None:
    small = Book.create(tmp_path / "small", ["8GiB"], host="1GiB")
    vllm = await start(MODELYARD_FAKE_GPUS=str(small.folder))
    answer = await vllm.client.post("/sleep?level=1")

    assert (answer.status_code, "out of memory" in answer.text) == (500, True)
    assert small.accounts()[0].used_mib == AWAKE_MIB


# ------------------------------------------------------------------------------ what goes wrong


async def test_a_leak_stays_on_the_device_asleep_and_awake(start: Start) -> None:
    vllm = await start("--fake-leak", "300MiB")
    seen = []
    for _ in range(2):
        await vllm.post("/sleep?level=2")
        seen.append(vllm.used())
        await vllm.post("/wake_up")
        seen.append(vllm.used())

    assert seen == [650, AWAKE_MIB + 300] * 2


async def test_a_sleep_can_lie(start: Start) -> None:
    vllm = await start("--fake-lie-about-sleep")
    answer = await vllm.post("/sleep?level=2")

    assert (answer["status"], await vllm.is_sleeping()) == ("sleeping", True)
    assert "Sleep mode freed 4.65 GiB memory" in vllm.log
    assert vllm.used() == AWAKE_MIB


async def test_a_wake_without_room_leaves_half_of_it_and_may_be_tried_again(
    start: Start, book: Book
) -> None:
    vllm = await start()
    gpu = book.accounts()[0].id
    await vllm.post("/sleep?level=1")
    book.stranger(gpu, "4GiB")
    answer = await vllm.client.post("/wake_up")
    after = (await vllm.is_sleeping(), book.held(gpu, pid=vllm.core.pid))
    book.stranger(gpu, 0)

    assert (answer.status_code, "out of memory" in answer.text) == (500, True)
    assert after == (True, {"context": 300, "graphs": 50, "weights": 3072, "kv_cache": 423})
    assert await vllm.post("/wake_up") == {"status": "awake"}
    assert (vllm.used(), await vllm.text()) == (AWAKE_MIB, "yard: echo of one two 1")


async def test_a_wake_can_fail_always(start: Start, book: Book) -> None:
    vllm = await start("--fake-wake-fails")
    await vllm.post("/sleep?level=2")
    answers = [await vllm.client.post("/wake_up") for _ in range(2)]

    assert [answer.status_code for answer in answers] == [500, 500]
    assert (await vllm.is_sleeping(), vllm.used()) == (True, 350 + 1536)


async def test_a_wake_can_kill_the_engine(start: Start) -> None:
    vllm = await start("--fake-crash-on-wake")
    await vllm.post("/sleep?level=2")
    answer = await vllm.client.post("/wake_up")

    assert (answer.status_code, await vllm.exit_code(), vllm.used()) == (500, 1, 0)
    assert "EngineCore hit a fatal error" in vllm.log


async def test_a_dead_engine_is_told_by_health_before_the_server_ends(start: Start) -> None:
    vllm = await start("--fake-death-notice", "2s")
    vllm.core.kill()
    async with asyncio.timeout(PATIENCE_S):
        while (await vllm.client.get("/health")).status_code == 200:
            await asyncio.sleep(0.005)

    assert (await vllm.client.get("/health")).status_code == 503
    assert await vllm.exit_code() == 1


async def test_the_engine_ends_when_its_device_is_gone_and_it_is_asked(
    start: Start, book: Book
) -> None:
    vllm = await start()
    book.vanish(book.accounts()[0].id)
    health = await vllm.client.get("/health")
    answer = await vllm.chat()

    assert (health.status_code, answer.status_code, await vllm.exit_code()) == (200, 500, 1)
    assert "DeviceLost" in vllm.log


async def test_a_killed_server_leaves_the_engine_holding_its_memory(start: Start) -> None:
    vllm = await start()
    core = vllm.core
    vllm.process.kill()
    await vllm.exit_code()
    async with asyncio.timeout(PATIENCE_S):
        while core.ppid() == vllm.process.pid:
            await asyncio.sleep(0.005)

    assert (core.is_running(), core.cmdline()[0]) == (True, "VLLM::EngineCore")
    assert dict(vllm.book.accounts()[0].by_process_mib) == {core.pid: AWAKE_MIB}


@pytest.mark.parametrize("load", ["0s", "60m"])
async def test_sigterm_ends_server_and_engine_loading_or_loaded(start: Start, load: str) -> None:
    vllm = await start("--fake-load", load, ready=load == "0s")
    await vllm.until(lambda: vllm.used() > 0)
    core = vllm.core
    vllm.process.terminate()

    assert await vllm.exit_code() == 0
    assert (core.is_running(), vllm.used()) == (False, 0)
    assert "Traceback" not in vllm.log


async def test_sigterm_aborts_what_is_in_flight(start: Start) -> None:
    vllm = await start("--fake-tps", "100")
    body = {"messages": [], "max_tokens": 1000, "stream": True}
    async with vllm.client.stream("POST", "/v1/chat/completions", json=body) as stream:
        lines = stream.aiter_lines()
        await anext(lines)
        vllm.process.terminate()
        rest = [line.removeprefix("data: ") async for line in lines if line]

    assert json.loads(rest[-2])["choices"][0]["finish_reason"] == "abort"
    assert await vllm.exit_code() == 0


async def test_who_ignores_sigterm_goes_on_and_its_engine_too(start: Start) -> None:
    vllm = await start("--fake-ignore-sigterm")
    core = vllm.core
    os.killpg(vllm.process.pid, signal.SIGTERM)

    assert await vllm.text() == "yard: echo of one two 1"
    assert (vllm.ended, core.is_running()) == (False, True)


async def test_two_engines_that_move_memory_of_one_device_at_once_are_found_out(
    start: Start, book: Book
) -> None:
    first = await start("--gpu-memory-utilization", "0.3", "--fake-weights", "1GiB",
                        "--fake-sleep-time", "1500ms")  # fmt: skip
    second = await start("--gpu-memory-utilization", "0.3", "--fake-weights", "1GiB")
    before = book.violations()
    falling_asleep = asyncio.ensure_future(first.post("/sleep?level=2"))
    await first.until(lambda: book.accounts()[0].busy)
    await second.post("/sleep?level=2")
    await falling_asleep

    assert before == []
    assert [violation.partition(" ")[0] for violation in book.violations()] == ["sleep"]
    assert f"beside sleep of {first.core.pid}" in book.violations()[0]
