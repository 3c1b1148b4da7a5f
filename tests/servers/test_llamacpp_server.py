from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import modelyard
from modelyard.core.specs import Endpoint, ModelSpec, OptionValue, Placement, Task
from modelyard.engines.llamacpp import LlamaCpp
from modelyard.servers.processors import usable_processors

MODELS = Path(modelyard.__file__).parent / "demo_models"
PATIENCE_S = 60.0
CHAT = MODELS / "yard-chat.gguf"
EMBED = MODELS / "yard-embed.gguf"
RERANK = MODELS / "yard-rerank.gguf"
ADAPTER = LlamaCpp(sys.executable)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Server:
    """A started engine process and its output so far."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def request(self, path: str, body: object = None) -> tuple[int, Any]:
        """Status and JSON of the answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        url = f"http://127.0.0.1:{self.port}{path}"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, data, headers)) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read() or b"null")

    def health(self) -> int:
        """0 where nobody listens."""
        try:
            return self.request("/health")[0]
        except (OSError, TimeoutError):
            return 0

    def until_health(self, status: int) -> None:
        until = time.monotonic() + PATIENCE_S
        while self.health() != status:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.005)

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def exit_code(self) -> int:
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        if self.process.stdin:
            self.process.stdin.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a model with options, as the adapter says; every server is gone afterwards."""
    servers: list[Server] = []

    def begin(
        source: Path | str, task: Task = Task.CHAT, *, port: int | None = None, **rest: OptionValue
    ) -> Server:
        spec = ModelSpec(
            "yard", "llamacpp", frozenset({task}), ("gpt-4o",), str(source), options=rest
        )
        where = Endpoint("127.0.0.1", port or free_port())
        command = ADAPTER.command(spec, Placement("default", {"cpu": 1}), where)
        log = tmp_path / f"log-{len(servers)}"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command.argv,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **command.env},
            )
        servers.append(Server(process, where.port, log))
        return servers[-1]

    yield begin
    for server in servers:
        server.close()


@pytest.fixture
def endless_load(tmp_path: Path) -> Path:
    """A projector that llama.cpp opens and waits for, inside the constructor of its server."""
    fifo = tmp_path / "projector.gguf"
    os.mkfifo(fifo)
    return fifo


# ---------------------------------------------------------------------------------------- answers


def test_a_chat_model_answers_under_its_id_and_its_aliases(start: Start) -> None:
    server = start(CHAT)
    server.until_health(200)
    question = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16}
    answers = [
        server.request("/v1/chat/completions", {**question, "model": name})
        for name in ("yard", "gpt-4o")
    ]
    texts = [answer["choices"][0]["message"]["content"] for _, answer in answers]

    assert [status for status, _ in answers] == [200, 200]
    assert all(texts)


def test_options_reach_the_engine(start: Start) -> None:
    server = start(CHAT, ctx_size=512, parallel=2, kv_unified=False)
    server.until_health(200)
    _, slots = server.request("/slots")

    assert [slot["n_ctx"] for slot in slots] == [256, 256]


def test_a_web_page_may_not_talk_to_the_engine(start: Start) -> None:
    server = start(CHAT)
    server.until_health(200)
    asked = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/v1/models", headers={"Origin": "http://evil.example"}
    )
    with urllib.request.urlopen(asked) as answer:
        allowed = answer.headers["Access-Control-Allow-Origin"]

    assert not allowed


def test_guessing_ahead_gives_the_same_answer(start: Start) -> None:
    question = {"model": "yard", "temperature": 0, "max_tokens": 24}
    question |= {"messages": [{"role": "user", "content": "Hello"}]}
    answers = []
    for options in ({}, {"spec_type": "ngram-simple"}):
        server = start(CHAT, **options)
        server.until_health(200)
        _, answer = server.request("/v1/chat/completions", question)
        answers.append(answer["choices"][0]["message"]["content"])

    assert answers[0] == answers[1]


def test_the_web_interface_is_off_and_metrics_are_on(start: Start) -> None:
    server = start(CHAT)
    server.until_health(200)

    assert server.request("/")[0] == 404
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b"llamacpp:requests_processing" in answer


def test_an_embedding_model_gives_unit_vectors_for_inputs_as_long_as_its_context(
    start: Start,
) -> None:
    server = start(EMBED, Task.EMBEDDING)
    server.until_health(200)
    _, models = server.request("/v1/models")
    width = models["data"][0]["meta"]["n_embd"]
    status, answer = server.request(
        "/v1/embeddings", {"model": "yard", "input": ["hello", "the yard " * 120]}
    )
    vectors = [item["embedding"] for item in answer["data"]]

    assert status == 200
    assert [len(vector) for vector in vectors] == [width, width]
    assert [math.hypot(*vector) for vector in vectors] == pytest.approx([1.0, 1.0], abs=1e-3)


def test_a_rerank_model_scores_every_document(start: Start) -> None:
    server = start(RERANK, Task.RERANK)
    server.until_health(200)
    documents = ["The moon orbits the earth.", "To bake bread, knead flour, water and yeast."]
    status, answer = server.request(
        "/v1/rerank", {"model": "yard", "query": "how to bake bread", "documents": documents}
    )
    results = sorted(answer["results"], key=lambda result: -result["relevance_score"])

    assert status == 200
    assert [result["index"] for result in results] == [1, 0]


# ------------------------------------------------------------------------------------------- ends


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_serving_process(start: Start, number: signal.Signals) -> None:
    server = start(CHAT)
    server.until_health(200)
    server.process.send_signal(number)

    assert server.exit_code() == -number


def test_the_end_of_stdin_ends_a_serving_process(start: Start) -> None:
    server = start(CHAT)
    server.until_health(200)
    assert server.process.stdin is not None
    server.process.stdin.close()

    assert server.exit_code() in (0, -signal.SIGTERM)


def test_a_signal_ends_a_loading_process(start: Start, endless_load: Path) -> None:
    server = start(CHAT, mmproj=str(endless_load))
    server.until_health(503)
    server.process.terminate()

    assert server.exit_code() == -signal.SIGTERM


def test_the_end_of_stdin_ends_a_loading_process(start: Start, endless_load: Path) -> None:
    server = start(CHAT, mmproj=str(endless_load))
    server.until_health(503)
    assert server.process.stdin is not None
    server.process.stdin.close()

    assert server.exit_code() == -signal.SIGTERM


def test_a_stdin_that_has_ended_already_starts_nothing() -> None:
    argv = [sys.executable, "-m", "modelyard.servers.llamacpp", "--exit-with-stdin"]
    argv += ["--model", str(CHAT), "--alias", "yard", "--port", str(free_port())]
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
    )

    assert (done.returncode, done.stdout) == (0, b"")


# --------------------------------------------------------------------------------------- failures


def test_a_missing_model_is_a_permanent_failure(start: Start, tmp_path: Path) -> None:
    server = start(tmp_path / "gone.gguf")

    assert server.exit_code() == 78
    assert server.lines() == [
        f"modelyard: cannot read the model {tmp_path}/gone.gguf: No such file or directory"
    ]


def test_a_folder_is_not_a_model(start: Start, tmp_path: Path) -> None:
    server = start(tmp_path)

    assert server.exit_code() == 78
    assert server.lines() == [f"modelyard: the model {tmp_path} is not a file"]


def test_a_file_of_another_format_is_named_as_such(start: Start, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04 something else")
    server = start(tmp_path / "x.gguf")

    assert server.exit_code() == 78
    assert server.lines() == [
        f"modelyard: {tmp_path}/x.gguf is not a GGUF file: it begins with b'PK\\x03\\x04'"
    ]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            lambda data: data.replace(b"qwen3", b"qwen?", 1),
            "this llama.cpp does not know the architecture qwen?",
        ),
        (
            lambda data: data[: len(data) // 2],
            "the model file is incomplete or damaged",
        ),
    ],
)
def test_a_spoilt_model_fails_for_good_with_a_reason(
    start: Start, tmp_path: Path, spoil: object, told: str
) -> None:
    assert callable(spoil)
    (tmp_path / "spoilt.gguf").write_bytes(spoil(CHAT.read_bytes()))
    server = start(tmp_path / "spoilt.gguf")
    code = server.exit_code()
    failure = ADAPTER.failure(f"exit code {code}", server.lines()[-8:])

    assert (code, failure.permanent) == (1, True)
    assert failure.reason.startswith(told)


def test_a_port_in_use_is_worth_another_try(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = start(CHAT, port=taken.getsockname()[1])
        code = server.exit_code()
    failure = ADAPTER.failure(f"exit code {code}", server.lines()[-8:])

    assert (failure.reason, failure.permanent) == ("its port was taken by another program", False)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("n_ctxx=1", "llama.cpp has no parameter 'n_ctxx'; did you mean n_ctx or n_tg?"),
        ("sampling.tmp=1", "llama.cpp has no parameter 'sampling.tmp'; did you mean sampling.temp"),
        ("n_ctx=1.5", "parameter n_ctx cannot be 1.5: it must be a whole number"),
        ("n_ctx=true", "parameter n_ctx cannot be true: it must be a whole number"),
        ("n_ctx=99999999999", "parameter n_ctx cannot be 99999999999: value too large"),
        ("ui=1", "parameter ui cannot be 1: it must be true or false"),
        ('cache_type_k="q9"', 'parameter cache_type_k cannot be "q9": it must be one of f32, f16'),
        ("sampling=1", "parameter sampling cannot be 1: it cannot be set here"),
        ("n_ctx", "--set n_ctx: write NAME=JSON"),
        ("n_ctx={", "--set n_ctx={: the value is not JSON"),
    ],
)
def test_a_wrong_parameter_is_a_permanent_failure(setting: str, told: str) -> None:
    argv = [sys.executable, "-m", "modelyard.servers.llamacpp", "--set", setting]
    argv += ["--model", str(CHAT), "--alias", "yard", "--port", "0"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 78
    assert done.stderr.startswith(f"modelyard: {told}")


# ------------------------------------------------------------------------------------- processors


@pytest.mark.parametrize(("limit", "expected"), [("100000 100000", 1), ("150000 100000", 2)])
def test_a_containers_share_bounds_the_threads(tmp_path: Path, limit: str, expected: int) -> None:
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    found = usable_processors(tmp_path / "cpu.max")

    assert found == min(expected, len(os.sched_getaffinity(0)))


def test_without_a_limit_every_processor_is_usable(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("max 100000\n")
    found = [usable_processors(tmp_path / name) for name in ("cpu.max", "gone")]

    assert found == [len(os.sched_getaffinity(0))] * 2
