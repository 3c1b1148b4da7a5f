"""The client: against a real server, and against answers that no server should give."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelyard.client import (
    DEFAULT_URL,
    ApiError,
    Client,
    ConnectionLost,
    NotModelyard,
    ServerNotRunning,
    ServerSilent,
    find_url,
)
from modelyard.config import Config, Devices
from modelyard.core.errors import InvalidRequest
from modelyard.core.specs import Call, SleepLevel, Task
from modelyard.core.views import ModelView
from modelyard.testing.server import Running, fake_model, running

NAP = SleepLevel((Call("GET", "/health"),), (Call("GET", "/health"),))
UNUSED_URL = "http://127.0.0.1:1"

# ------------------------------------------------------------------------------------- real server


@pytest.fixture
async def yard(tmp_path: Path) -> AsyncIterator[Running]:
    models = (
        fake_model("quick", "--tokens", "5"),
        fake_model("org/with space", "--tokens", "5"),
        replace(fake_model("naps a lot"), sleep={1: NAP}),
        fake_model("endless", "--tps", "50", "--tokens", "100000"),
        fake_model("cut", "--cut-after", "2"),
        fake_model("base", tasks=frozenset({Task.COMPLETION})),
        fake_model("vectors", tasks=frozenset({Task.EMBEDDING})),
        fake_model("ranks", tasks=frozenset({Task.RERANK})),
    )
    config = Config(models=models, devices=Devices(budget_mib={"cpu": 1000}))
    async with running(config, tmp_path) as server:
        yield server


async def ask(yard: Running, question: Callable[[Client], Any]) -> Any:
    """What a client in a thread of its own is answered; the server runs in this one's loop."""

    def answered() -> Any:
        with Client(yard.url) as client:
            return question(client)

    return await asyncio.to_thread(answered)


async def test_the_admin_api_is_answered_with_typed_values(yard: Running) -> None:
    def question(client: Client) -> Any:
        return client.info(), client.devices(), client.models(), client.model("quick")

    info, devices, models, model = await ask(yard, question)
    assert info.url == yard.url
    assert [device.capacity_mib for device in devices] == [1000]
    assert [view.id for view in models] == sorted(view.id for view in models)
    assert (model.id, model.state, model.tasks) == ("quick", "stopped", ["chat", "completion"])


async def test_a_model_is_started_and_stopped_while_its_news_are_heard(yard: Running) -> None:
    def question(client: Client) -> list[str]:
        events = client.events(["models"])
        states: list[str] = []
        client.start("quick")
        for event in events:
            view = event.data
            if isinstance(view, ModelView) and view.id == "quick" and view.state not in states[-1:]:
                states.append(view.state)
                if view.state == "ready":
                    client.stop("quick")
                if view.state == "stopped" and len(states) > 2:
                    events.close()
        return states

    states = await ask(yard, question)
    assert states[-4:] == ["starting", "ready", "stopping", "stopped"]


async def test_a_model_is_put_to_sleep_woken_and_stopped_by_its_levels(yard: Running) -> None:
    def question(client: Client) -> list[tuple[str, int]]:
        told = []
        with closing(client.events(["models"])) as events:
            client.start("naps a lot")
            for event in events:
                view = event.data
                if not isinstance(view, ModelView) or view.id != "naps a lot":
                    continue
                told.append((view.state, view.sleep_level))
                if told[-1] == ("ready", 0) and ("asleep", 1) not in told:
                    client.sleep(view.id, 1)
                elif told[-1] == ("asleep", 1) and ("waking", 0) not in told:
                    client.wake(view.id)
                elif told[-1] == ("ready", 0):
                    client.sleep(view.id, 3)
                elif told[-1] == ("stopped", 0) and ("waking", 0) in told:
                    break
        return list(dict.fromkeys(told))

    assert await ask(yard, question) == [
        ("stopped", 0),
        ("starting", 0),
        ("ready", 0),
        ("suspending", 0),
        ("asleep", 1),
        ("waking", 0),
        ("stopping", 0),
    ]


async def test_a_level_that_an_engine_has_not_is_refused_with_those_it_has(yard: Running) -> None:
    def question(client: Client) -> None:
        client.sleep("naps a lot", 2)

    with pytest.raises(ApiError, match="cannot sleep at level 2; its levels: 1") as refused:
        await ask(yard, question)
    assert refused.value.code == "invalid_request"


async def test_an_id_with_slash_and_blank_is_one_model(yard: Running) -> None:
    def question(client: Client) -> Any:
        text = "".join(client.chat("org/with space", [{"role": "user", "content": "hi"}]))
        return text, client.model("org/with space").id, client.logs("org/with space", 1).lines

    text, model_id, lines = await ask(yard, question)
    assert text == "org/with space: echo of hi 1"
    assert model_id == "org/with space"
    assert len(lines) == 1


async def test_a_chat_streams_text_and_ends_with_its_usage(yard: Running) -> None:
    def question(client: Client) -> Any:
        answer = client.chat("quick", [{"role": "user", "content": "hi"}], max_tokens=4, top_p=None)
        return list(answer), answer.usage, answer.finish_reason

    parts, usage, reason = await ask(yard, question)
    assert parts == ["quick:", " echo", " of", " hi"]
    assert usage.completion_tokens == 4
    assert reason == "length"


async def test_a_text_is_continued(yard: Running) -> None:
    text = await ask(yard, lambda client: "".join(client.complete("base", "once", max_tokens=4)))

    assert text == "base: echo of once"


async def test_vectors_come_in_the_order_of_the_texts(yard: Running) -> None:
    both = await ask(yard, lambda client: client.embed("vectors", ["one", "two"]))
    one = await ask(yard, lambda client: client.embed("vectors", ["one"]))

    assert both[0] == one[0]
    assert both[1] != both[0]


async def test_ranked_documents_come_best_first(yard: Running) -> None:
    ranked = await ask(yard, lambda client: client.rerank("ranks", "a b", ["x", "a b", "a"]))

    scores = [place.relevance_score for place in ranked]
    assert scores == sorted(scores, reverse=True)
    assert sorted(place.index for place in ranked) == [0, 1, 2]


async def test_refusals_keep_the_servers_code_and_words(yard: Running) -> None:
    with pytest.raises(ApiError, match=r"there is no model named 'quikc'.*quick") as unknown:
        await ask(yard, lambda client: client.start("quikc"))
    with pytest.raises(ApiError, match="serves embedding") as wrong:
        await ask(yard, lambda client: client.chat("vectors", []))

    assert (unknown.value.status, unknown.value.code) == (404, "model_not_found")
    assert (wrong.value.status, wrong.value.code) == (400, "wrong_task")


async def test_a_stream_that_its_engine_cuts_is_an_error_with_the_reason(yard: Running) -> None:
    with pytest.raises(ApiError, match="ended before the answer did") as cut:
        await ask(
            yard, lambda client: list(client.chat("cut", [{"role": "user", "content": "hi"}]))
        )

    assert cut.value.code == "engine_died"


async def test_closing_an_answer_stops_the_work_for_it(yard: Running) -> None:
    def question(client: Client) -> str:
        answer = client.chat("endless", [{"role": "user", "content": "hi"}])
        for text in answer:
            answer.close()
            return text
        return ""

    assert await ask(yard, question) == "endless:"
    slot = yard.yard.loop.scheduler.models["endless"]
    async with asyncio.timeout(60):
        while slot.in_flight:
            await asyncio.sleep(0.01)


async def test_a_wait_for_news_in_another_thread_can_be_ended(yard: Running) -> None:
    def question(client: Client) -> bool:
        events = client.events(["removed"])
        waiting = threading.Thread(target=lambda: list(events))
        waiting.start()
        time.sleep(0.05)
        events.close()
        waiting.join(10)
        return waiting.is_alive()

    assert await ask(yard, question) is False


# --------------------------------------------------------------------------------- canned answers


@pytest.fixture
def canned() -> Iterator[Callable[[bytes], str]]:
    """Serves one connection with the given bytes, and closes it; returns the address."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads = []

    def serve(answer: bytes) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:  # the test is over
            return
        with connection:
            connection.recv(65536)
            connection.sendall(answer)

    def begin(answer: bytes) -> str:
        threads.append(threading.Thread(target=serve, args=(answer,)))
        threads[-1].start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield begin
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for thread in threads:
        thread.join()


def http(body: bytes | str, status: str = "200 OK") -> bytes:
    content = body.encode() if isinstance(body, str) else body
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content


@pytest.mark.parametrize(
    "answer",
    [
        http("<html>"),
        http(b"\xff\xfe"),
        http('{"version": 1}'),
        http("[]"),
        http("not found", "404 Not Found"),
        http('{"error": "no"}', "500 Oops"),
    ],
)
def test_an_answer_of_something_else_is_named_as_such(
    canned: Callable[[bytes], str], answer: bytes
) -> None:
    with Client(canned(answer)) as client, pytest.raises(NotModelyard):
        client.info()


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH_9\r\n", http("{}")[:-1]])
def test_a_connection_that_breaks_is_told_as_such(
    canned: Callable[[bytes], str], answer: bytes
) -> None:
    with Client(canned(answer)) as client, pytest.raises(ConnectionLost):
        client.info()


def test_a_server_that_is_silent_is_not_waited_for_for_ever() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as mute,
        Client(f"127.0.0.1:{mute.getsockname()[1]}", timeout_s=0.1) as client,
        pytest.raises(ServerSilent, match=r"within 0\.1 s"),
    ):
        client.info()


def test_no_server_is_told_with_the_address_and_the_way_out() -> None:
    with Client(UNUSED_URL) as client, pytest.raises(ServerNotRunning) as error:
        client.models()

    assert UNUSED_URL in str(error.value)
    assert "modelyard serve" in str(error.value)


def test_a_stream_without_an_end_is_an_error(canned: Callable[[bytes], str]) -> None:
    event = 'data: {"choices": [{"delta": {"content": "half"}}]}\n\n'

    with Client(canned(http(event))) as client:
        answer = iter(client.chat("m", []))
        first = next(answer)
        with pytest.raises(ConnectionLost, match="no end"):
            next(answer)
    assert first == "half"


def test_only_a_line_feed_ends_a_line_of_a_stream(canned: Callable[[bytes], str]) -> None:
    text = "a\u2028b\x85c"  # ends of lines for str.splitlines, and legal in JSON
    chunk = json.dumps({"choices": [{"delta": {"content": text}}]}, ensure_ascii=False)
    stream = f": ping\n\ndata: {chunk}\r\n\r\nevent: x\ndata:[DONE]\n\n"

    with Client(canned(http(stream))) as client:
        assert list(client.chat("m", [])) == [text]


def test_an_error_inside_a_stream_is_raised(canned: Callable[[bytes], str]) -> None:
    event = 'data: {"error": {"message": "it broke", "type": "x", "code": "engine_died"}}\n\n'

    with Client(canned(http(event))) as client, pytest.raises(ApiError, match="it broke"):
        list(client.chat("m", []))


def test_a_ranked_document_that_was_never_sent_is_refused(canned: Callable[[bytes], str]) -> None:
    answer = http('{"results": [{"index": 7, "relevance_score": 1.0}]}')

    with Client(canned(answer)) as client, pytest.raises(NotModelyard):
        client.rerank("m", "q", ["one"])


# ----------------------------------------------------------------------------------------- address


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("http://h:1", "http://h:1"),
        ("h:1", "http://h:1"),
        ("127.0.0.1:8080/", "http://127.0.0.1:8080"),
        ("https://h/v1", "https://h"),
        ("http://[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_an_address_may_be_written_in_short(asked: str, expected: str) -> None:
    assert find_url(asked, {}) == expected


@pytest.mark.parametrize(
    "asked",
    ["ftp://h", "http://", "http://h:port", "http://[::1", "http://h:99999", "http://h\x00"],
)
def test_what_is_no_address_is_refused(asked: str) -> None:
    with pytest.raises(InvalidRequest, match="is not the address of a server"):
        find_url(asked, {})


def test_an_address_is_looked_for_where_it_may_be(tmp_path: Path) -> None:
    (tmp_path / "server.json").write_text('{"url": "http://written:1", "pid": 1}')
    state = {"MODELYARD_SERVER__STATE_DIR": str(tmp_path)}
    named = {**state, "MODELYARD_URL": "http://variable:1"}

    assert find_url("http://asked:1", named) == "http://asked:1"
    assert find_url(None, named) == "http://variable:1"
    assert find_url(None, state) == "http://written:1"


@pytest.mark.parametrize("written", [None, b"", b"{}", b"\xff", b'{"url": 1, "pid": 1}'])
def test_a_state_file_that_cannot_be_read_counts_as_none(
    tmp_path: Path, written: bytes | None
) -> None:
    if written is not None:
        (tmp_path / "server.json").write_bytes(written)

    assert find_url(None, {"MODELYARD_SERVER__STATE_DIR": str(tmp_path)}) == DEFAULT_URL
