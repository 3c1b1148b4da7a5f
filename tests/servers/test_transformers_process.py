"""The process of the engine `transformers`: how it begins, what it tells, how it ends."""

from __future__ import annotations

import json
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

from modelyard.core.specs import Endpoint, ModelSpec, OptionValue, Placement, Progress, Task
from modelyard.engines.transformers import Transformers
from modelyard.servers.lifeline import Unusable
from modelyard.servers.processors import usable_processors
from modelyard.servers.transformers.settings import ChatSettings, Settings, read_settings

ADAPTER = Transformers(sys.executable)
PATIENCE_S = 60.0
CHAT = frozenset({Task.CHAT, Task.COMPLETION})
EMBEDDING = frozenset({Task.EMBEDDING})


@dataclass
class Engine:
    """A started engine process and its output so far."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def request(self, path: str, body: object = None) -> tuple[int, Any]:
        """Status and JSON of the answer; 0 where nobody listens."""
        data = None if body is None else json.dumps(body).encode()
        url = f"http://127.0.0.1:{self.port}{path}"
        asked = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(asked) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read() or b"null")
        except (OSError, TimeoutError):
            return 0, None

    def until_health(self, status: int) -> None:
        until = time.monotonic() + PATIENCE_S
        while self.request("/health")[0] != status:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.005)

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def progress(self) -> list[str]:
        """The phases that the adapter hears of."""
        told = (ADAPTER.progress(line) for line in self.lines())
        return [each.phase for each in told if isinstance(each, Progress)]

    def close(self) -> None:
        if self.process.stdin:
            self.process.stdin.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


Start = Callable[..., Engine]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a model as the adapter says; every process is gone afterwards."""
    engines: list[Engine] = []

    def begin(
        source: Path, tasks: frozenset[Task], *, port: int | None = None, **options: OptionValue
    ) -> Engine:
        with socket.create_server(("127.0.0.1", port or 0)) as probe:
            free: int = probe.getsockname()[1]
        return command(source, tasks, free, options)

    def command(
        source: Path, tasks: frozenset[Task], port: int, options: dict[str, OptionValue]
    ) -> Engine:
        spec = ModelSpec("tiny", "transformers", tasks, ("gpt-4o",), str(source), options=options)
        order = ADAPTER.command(spec, Placement("default", {"cpu": 1}), Endpoint("127.0.0.1", port))
        log = tmp_path / f"log-{len(engines)}"
        with log.open("wb") as output:
            process = subprocess.Popen(
                order.argv,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **order.env},
            )
        engines.append(Engine(process, port, log))
        return engines[-1]

    begin.command = command  # type: ignore[attr-defined]
    yield begin
    for engine in engines:
        engine.close()


# --------------------------------------------------------------------------------------- beginning


def test_it_answers_while_it_loads_and_tells_its_phases(start: Start, tiny_models: Path) -> None:
    engine = start(tiny_models / "mean", EMBEDDING)
    engine.until_health(503)
    status, answer = engine.request("/v1/embeddings", {"input": "the cat"})
    if status != 200:  # it may have become ready meanwhile
        assert (status, answer["error"]["code"]) == (503, "loading")
    engine.until_health(200)
    phases = list(dict.fromkeys(engine.progress()))

    assert engine.request("/v1/embeddings", {"input": "the cat"})[0] == 200
    assert phases == ["starting torch", "loading weights", "warming up", "ready"]


def test_the_end_of_stdin_ends_a_loading_process(start: Start, tiny_models: Path) -> None:
    engine = start(tiny_models / "mean", EMBEDDING)
    engine.until_health(503)
    assert engine.process.stdin is not None
    engine.process.stdin.close()

    assert engine.process.wait(PATIENCE_S) in (0, -signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once(start: Start, tiny_models: Path, number: signal.Signals) -> None:
    engine = start(tiny_models / "mean", EMBEDDING)
    engine.until_health(503)
    engine.process.send_signal(number)

    assert engine.process.wait(PATIENCE_S) == -number


# --------------------------------------------------------------------------------------------- end


def test_a_missing_folder_is_a_permanent_failure(start: Start, tmp_path: Path) -> None:
    engine = start(tmp_path / "gone", EMBEDDING)
    code = engine.process.wait(PATIENCE_S)
    failure = ADAPTER.failure(f"exit code {code}", engine.lines()[-8:])

    assert (failure.reason, failure.permanent) == (
        f"the model {tmp_path}/gone is not a folder", True,
    )  # fmt: skip


@pytest.mark.parametrize("tasks", [EMBEDDING, CHAT])
def test_a_port_in_use_is_worth_another_try(
    start: Start, tiny_models: Path, tasks: frozenset[Task]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        engine = start.command(tiny_models / "mean", tasks, taken.getsockname()[1], {})  # type: ignore[attr-defined]
        code = engine.process.wait(PATIENCE_S)
    failure = ADAPTER.failure(f"exit code {code}", engine.lines()[-8:])

    assert (failure.reason, failure.permanent) == ("its port was taken by another program", False)


# ---------------------------------------------------------------------------------------- settings


def of_reading(setting: str) -> Settings:
    return read_settings(Settings, [setting])


def of_writing(setting: str) -> ChatSettings:
    return read_settings(ChatSettings, [setting])


@pytest.mark.parametrize(
    ("read", "setting", "told"),
    [
        (of_reading, "batch_sizes=1", "there is no option batch_sizes; did you mean batch_size?"),
        (of_reading, "batch_size=0", "an option is wrong: batch_size must be at least 1, not 0"),
        (of_reading, 'batch_size="1"', "an option is wrong: Expected `int`, got `str`"),
        (of_reading, "batch_size", "--set batch_size: write NAME=JSON"),
        (of_reading, "batch_size={", "--set batch_size={: the value is not JSON"),
        (of_reading, 'overlong="x"', "an option is wrong: Invalid enum value 'x'"),
        (of_reading, "max_inputs=9999", "an option is wrong: max_inputs (9999) is more than"),
        (of_writing, "threads=0", "an option is wrong: threads must be at least 1"),
        (of_writing, "batch_size=1", "there is no option batch_size"),
    ],
)
def test_a_wrong_setting_is_told(read: Callable[[str], object], setting: str, told: str) -> None:
    with pytest.raises(Unusable) as raised:
        read(setting)

    assert str(raised.value).startswith(told)


@pytest.mark.parametrize(("limit", "expected"), [("100000 100000", 1), ("150000 100000", 2)])
def test_a_containers_share_bounds_the_threads(tmp_path: Path, limit: str, expected: int) -> None:
    (tmp_path / "cpu.max").write_text(f"{limit}\n")

    assert usable_processors(tmp_path / "cpu.max") == min(expected, len(os.sched_getaffinity(0)))


def test_every_option_of_the_adapter_is_one_of_the_server() -> None:
    """But for the template, which is handed over as a file."""
    from modelyard.engines.transformers_options import READING, TEMPLATE_FILE, WRITING

    reading = set(READING) - {TEMPLATE_FILE}

    assert reading == set(Settings.__struct_fields__) - {"chat_template"}
    assert set(WRITING) == set(ChatSettings.__struct_fields__)


def test_every_option_of_chat_is_one_of_transformers_serve() -> None:
    import inspect

    from transformers.cli.serve import Serve

    known = set(inspect.signature(Serve.__init__).parameters)

    assert set(ChatSettings.__struct_fields__) - {"max_body_bytes", "threads"} <= known


# -------------------------------------------------------------------------------------------- chat


@pytest.fixture(scope="module")
def chat(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One chat engine for all tests below."""
    tmp = tmp_path_factory.mktemp("chat")
    spec = ModelSpec(
        "tiny", "transformers", CHAT, ("gpt-4o",), str(tiny_models / "qwen3-chat"),
        options={"default_seed": 3, "dtype": "float32"},
    )  # fmt: skip
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    order = ADAPTER.command(spec, Placement("default", {"cpu": 1}), Endpoint("127.0.0.1", port))
    with (tmp / "log").open("wb") as output:
        process = subprocess.Popen(
            order.argv,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **order.env},
        )
    engine = Engine(process, port, tmp / "log")
    try:
        engine.until_health(200)
        yield engine
    finally:
        engine.close()


QUESTION: dict[str, Any] = {
    "messages": [{"role": "user", "content": "the cat"}], "max_tokens": 4, "temperature": 0,
}  # fmt: skip


def test_a_chat_model_answers_by_each_of_its_names(chat: Engine) -> None:
    answers = [
        chat.request("/v1/chat/completions", {**QUESTION, "model": name})[1]
        for name in ("tiny", "gpt-4o")
    ]

    assert [answer["model"] for answer in answers] == ["tiny", "gpt-4o"]
    assert answers[0]["usage"]["completion_tokens"] == 4
    assert answers[0]["choices"][0]["message"] == answers[1]["choices"][0]["message"]


def test_a_prompt_is_completed(chat: Engine) -> None:
    status, answer = chat.request("/v1/completions", {"prompt": "the cat", "max_tokens": 3})

    assert (status, answer["model"], answer["usage"]["completion_tokens"]) == (200, "tiny", 3)


@pytest.mark.parametrize("wanted", [True, False])
def test_a_stream_ends_with_usage_for_those_who_ask_and_done(chat: Engine, wanted: bool) -> None:
    body = {**QUESTION, "model": "gpt-4o", "stream": True}
    body["stream_options"] = {"include_usage": wanted}
    url = f"http://127.0.0.1:{chat.port}/v1/chat/completions"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode())) as answer:
        events = answer.read().decode().strip().split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    usages = [chunk["usage"]["completion_tokens"] for chunk in chunks if chunk.get("usage")]

    assert events[-1] == "data: [DONE]"
    assert {chunk["model"] for chunk in chunks} == {"gpt-4o"}
    assert usages == ([4] if wanted else [])
    assert (chunks[-1]["choices"] == []) is wanted


@pytest.mark.parametrize(
    ("path", "body", "status", "told"),
    [
        ("/load_model", {"model": "x"}, 404, "there is no route POST /load_model here"),
        ("/reset", {}, 404, "there is no route POST /reset here"),
        ("/v1/chat/completions", {"messages": 3}, 400, "messages must be a list with at least"),
        ("/v1/chat/completions", {"messages": [1]}, 400, "messages[0] must be an object with a"),
        ("/v1/chat/completions", [], 400, "the body must be a JSON object"),
        ("/v1/completions", {"prompt": [1]}, 400, "prompt must be a string."),
        ("/v1/chat/completions", {"messages": [{"role": "user"}], "max_tokens": "x"}, 500,
         "transformers failed: "),
    ],
)  # fmt: skip
def test_a_chat_request_that_cannot_be_served_is_told_why(
    chat: Engine, path: str, body: object, status: int, told: str
) -> None:
    found, answer = chat.request(path, body)

    assert (found, answer["error"]["message"][: len(told)]) == (status, told)


def test_only_its_names_are_listed_and_no_path_is_told(chat: Engine, tiny_models: Path) -> None:
    _, models = chat.request("/v1/models")

    assert [each["id"] for each in models["data"]] == ["tiny", "gpt-4o"]
    assert not any(str(tiny_models) in line for line in chat.lines())
