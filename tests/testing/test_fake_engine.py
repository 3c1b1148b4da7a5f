from __future__ import annotations

import asyncio
import json
import math
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import httpx
import pytest

from modelyard.testing.fake_engine import duration

PATIENCE_S = 60.0


@dataclass
class Fake:
    process: asyncio.subprocess.Process
    client: httpx.AsyncClient

    async def until_listening(self) -> None:
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            async for line in self.process.stdout:
                if b"listening on" in line:
                    return
        raise AssertionError("it never listened")

    async def chat(self, **rest: object) -> httpx.Response:
        body = {"model": "yard", "messages": [{"role": "user", "content": "one two"}], **rest}
        return await self.client.post("/v1/chat/completions", json=body)

    async def exit_code(self) -> int:
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()


Start = Callable[..., Awaitable[Fake]]


@pytest.fixture
async def start(unused_tcp_port_factory: Callable[[], int]) -> AsyncIterator[Start]:
    fakes: list[Fake] = []

    async def begin(*flags: str, listening: bool = True) -> Fake:
        port = unused_tcp_port_factory()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "modelyard.testing.fake_engine", "--model", "yard",
            "--port", str(port), *flags,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S)
        fakes.append(Fake(process, client))
        if listening:
            await fakes[-1].until_listening()
        return fakes[-1]

    yield begin
    for fake in fakes:
        await fake.client.aclose()
        if fake.process.returncode is None:
            fake.process.kill()
        # Reads what is left, so that the pipe closes with the process.
        await fake.process.communicate()


async def collect(answer: httpx.Response, seen: list[bytes]) -> None:
    async for part in answer.aiter_bytes():
        seen.append(part)


async def until_stats(fake: Fake, **expected: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            stats = (await fake.client.get("/stats")).json()
            if expected.items() <= stats.items():
                return
            await asyncio.sleep(0.01)


# ---------------------------------------------------------------------------------------- answers


async def test_an_answer_tells_who_gave_it_and_to_what(start: Start) -> None:
    fake = await start()
    answer = (await fake.chat(max_tokens=7)).json()

    assert answer["model"] == "yard"
    assert answer["choices"][0]["message"]["content"] == "yard: echo of one two 1 2"
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 7, "total_tokens": 9}


async def test_a_stream_says_the_same_and_ends_with_the_usage_asked_for(start: Start) -> None:
    fake = await start()
    answer = await fake.chat(max_tokens=7, stream=True, stream_options={"include_usage": True})
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    parts = [json.loads(event) for event in events[:-1]]
    text = "".join(
        choice["delta"].get("content", "") for part in parts for choice in part["choices"]
    )

    assert (events[-1], text) == ("[DONE]", "yard: echo of one two 1 2")
    assert parts[-1]["usage"]["completion_tokens"] == 7


async def test_a_plain_completion_is_answered(start: Start) -> None:
    fake = await start("--tokens", "4")
    answer = await fake.client.post("/v1/completions", json={"prompt": "three"})

    assert answer.json()["choices"][0]["text"] == "yard: echo of three"


async def test_embeddings_are_unit_vectors_that_depend_on_the_text(start: Start) -> None:
    fake = await start("--embedding-dim", "5")
    answer = await fake.client.post("/v1/embeddings", json={"input": ["a", "b", "a"]})
    one, two, again = (item["embedding"] for item in answer.json()["data"])

    assert (len(one), one == two, one == again) == (5, False, True)
    assert math.hypot(*one) == pytest.approx(1.0)


async def test_a_ranking_is_by_the_words_of_the_query(start: Start) -> None:
    fake = await start()
    body = {"query": "red fox", "documents": ["blue", "a red fox", "red"], "top_n": 2}
    answer = await fake.client.post("/v1/rerank", json=body)

    assert [result["index"] for result in answer.json()["results"]] == [1, 2]


async def test_a_task_that_is_not_served_is_refused(start: Start) -> None:
    fake = await start("--tasks", "embedding")

    assert (await fake.chat()).status_code == 400


async def test_models_are_listed_with_their_aliases(start: Start) -> None:
    fake = await start("--alias", "other")
    listed = (await fake.client.get("/v1/models")).json()["data"]

    assert [item["id"] for item in listed] == ["yard", "other"]


# ---------------------------------------------------------------------------------------- loading


async def test_while_loading_it_says_so_and_shows_its_progress(start: Start) -> None:
    fake = await start("--hang", "--load", "10ms", listening=False)
    assert fake.process.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        lines = [await fake.process.stdout.readline() for _ in range(12)]
    health = await fake.client.get("/health")

    assert lines[1] == b"Loading weights: 10%\n"
    assert health.status_code == 503
    assert (await fake.chat()).status_code == 503


async def test_it_can_refuse_connections_while_loading(start: Start) -> None:
    fake = await start("--refuse-while-loading", "--hang", listening=False)
    assert fake.process.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        await fake.process.stdout.readline()

    with pytest.raises(httpx.ConnectError):
        await fake.client.get("/health")


async def test_it_can_crash_while_loading_with_an_exit_code(start: Start) -> None:
    fake = await start("--crash-while-loading", "--exit-code", "3", listening=False)

    assert await fake.exit_code() == 3


async def test_its_health_can_be_bad_for_ever(start: Start) -> None:
    fake = await start("--health-status", "500")

    assert (await fake.client.get("/health")).status_code == 500


# ----------------------------------------------------------------------------------------- faults


async def test_a_client_that_leaves_is_noticed_and_counted(start: Start) -> None:
    fake = await start("--prefill", "1m")
    asking = asyncio.create_task(fake.chat())
    await until_stats(fake, active=1)
    asking.cancel()

    await until_stats(fake, requests=1, active=0, aborted=1)


async def test_a_client_that_leaves_a_stream_is_counted_too(start: Start) -> None:
    fake = await start("--tps", "50", "--tokens", "100000")
    body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
    async with fake.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        await anext(answer.aiter_bytes())

    await until_stats(fake, active=0, aborted=1)


async def test_it_crashes_after_the_requests_it_was_given(start: Start) -> None:
    fake = await start("--crash-after", "1")
    first = await fake.chat()
    with pytest.raises(httpx.TransportError):
        await fake.chat()

    assert (first.status_code, await fake.exit_code()) == (200, 1)


@pytest.mark.parametrize("flag", ["--garbage", "--wrong-length"])
async def test_it_can_break_the_protocol(start: Start, flag: str) -> None:
    fake = await start(flag)

    with pytest.raises(httpx.RemoteProtocolError):
        await fake.chat()


async def test_it_can_cut_a_stream_after_some_chunks(start: Start) -> None:
    fake = await start("--cut-after", "2")
    body = {"messages": [], "stream": True}
    seen: list[bytes] = []
    async with fake.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        with pytest.raises(httpx.RemoteProtocolError):
            await collect(answer, seen)

    assert b"".join(seen).count(b"data: ") == 2


async def test_it_can_ignore_sigterm(start: Start) -> None:
    stubborn, mild = await start("--ignore-sigterm"), await start()
    stubborn.process.terminate()
    mild.process.terminate()

    assert await mild.exit_code() == -signal.SIGTERM
    assert (await stubborn.client.get("/health")).status_code == 200


async def test_it_can_print_without_end(start: Start) -> None:
    fake = await start("--log-flood")
    assert fake.process.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        flood = await fake.process.stdout.readexactly(1_000_000)

    assert flood.startswith(b"flood ")


async def test_what_is_not_json_is_refused(start: Start) -> None:
    fake = await start()
    answers = [
        await fake.client.post("/v1/chat/completions", content=body)
        for body in (b"{", b"[]", b'{"messages": 1}')
    ]

    assert [answer.status_code for answer in answers] == [400, 400, 400]


@pytest.mark.parametrize(
    ("text", "seconds"), [("2s", 2.0), ("100ms", 0.1), ("1.5m", 90.0), ("3", 3.0)]
)
def test_durations_have_units(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)
