"""Engines that lie about lengths, stop in the middle, or send garbage: what their clients see."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.conftest import Serve
from tests.http.corpus.wire import converse

from modelyard.core.specs import Limits, ModelSpec, Task
from modelyard.testing.server import Running

pytestmark = pytest.mark.usefixtures("nothing_left")

ENGINE = Path(__file__).with_name("hostile_engine.py")
JSON = "Content-Type: application/json\r\n"
OK = "HTTP/1.1 200 OK\r\n" + JSON
CHUNKED = OK + "Transfer-Encoding: chunked\r\n\r\n"
EVENTS = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = 'data: {"choices": []}\n\n'
WHOLE = OK + "Content-Length: 2\r\n\r\n{}"
CUT = 0
"""In place of a status: the client sees that the answer is not whole."""


@dataclass(frozen=True)
class Lie:
    name: str
    parts: list[str]
    end: str
    status: int
    body: bytes | None = None
    stream: bool = False


def chunk(text: str) -> str:
    return f"{len(text.encode('latin-1')):x}\r\n{text}\r\n"


def lies() -> Iterator[Lie]:
    yield Lie("whole", [WHOLE], "stay", 200, b"{}")
    yield Lie("byte by byte", list(WHOLE), "stay", 200, b"{}")
    yield Lie("until close", [OK + "\r\n{}"], "close", 200, b"{}")
    yield Lie("http/1.0", [WHOLE.replace("1.1", "1.0")], "close", 200, b"{}")
    yield Lie("interim answers", ["HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" * 3 + WHOLE], "stay", 200)
    yield Lie("nothing", [], "close", 502)
    yield Lie("reset", [], "reset", 502)
    yield Lie("garbage", ["\x00\x01\x02\r\n\r\n"], "stay", 502)
    yield Lie("half a head", ["HTTP/1.1 200 OK\r\nConte"], "close", 502)
    yield Lie("other protocol", ["SSH-2.0-OpenSSH_9.6\r\n"], "stay", 502)
    yield Lie("status 999", [WHOLE.replace("200", "999")], "stay", 502)
    yield Lie("status 42", [WHOLE.replace("200", "42")], "stay", 502)
    yield Lie(
        "switching", ["HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"], "stay", 502
    )
    yield Lie("only interim", ["HTTP/1.1 100 Continue\r\n\r\n"], "close", 502)
    yield Lie("head without end", ["HTTP/1.1 200 OK\r\nX: " + "a" * 300_000], "silence", 502)
    yield Lie("many headers", [OK + "X: y\r\n" * 5000 + "\r\n"], "silence", 502)
    yield Lie("two lengths", [OK + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"], "stay", 502)
    yield Lie("no number", [OK + "Content-Length: two\r\n\r\n{}"], "stay", 502)
    yield Lie(
        "length and chunks",
        [CHUNKED.replace("\r\n\r\n", "\r\nContent-Length: 2\r\n\r\n")],
        "stay",
        502,
    )
    yield Lie("folded header", [OK + "X: a\r\n b\r\nContent-Length: 2\r\n\r\n{}"], "stay", 502)
    yield Lie("nul in header", [OK + "X: a\x00b\r\nContent-Length: 2\r\n\r\n{}"], "stay", 502)
    yield Lie("shorter than said", [OK + "Content-Length: 9\r\n\r\n{}"], "close", CUT)
    yield Lie("longer than said", [WHOLE + "tail"], "stay", 200, b"{}")
    yield Lie("two answers at once", [WHOLE + WHOLE.replace("{}", "[]")], "stay", 200, b"{}")
    yield Lie("an answer too late", [WHOLE, WHOLE.replace("{}", "[]")], "stay", 200, b"{}")
    yield Lie("chunks", [CHUNKED + chunk("{}") + "0\r\n\r\n"], "stay", 200, b"{}")
    yield Lie("chunks without end", [CHUNKED + chunk("{}")], "close", CUT)
    yield Lie("stops in a chunk", [CHUNKED + "9\r\n{}"], "close", CUT)
    yield Lie("stops in a size", [CHUNKED + chunk("{}") + "1"], "close", CUT)
    yield Lie("chunk of no size", [CHUNKED, "zz\r\n{}\r\n"], "stay", 502)
    yield Lie("chunk too long", [CHUNKED + "1\r\n{}\r\n0\r\n\r\n"], "stay", 502)
    yield Lie("trailers", [CHUNKED + chunk("{}") + "0\r\nX-Sum: 1\r\n\r\n"], "stay", 200, b"{}")
    yield Lie("204 with a body", ["HTTP/1.1 204 No\r\nContent-Length: 2\r\n\r\n{}"], "stay", 204)
    yield Lie(
        "redirect",
        ["HTTP/1.1 302 Go\r\nLocation: http://evil/\r\nContent-Length: 0\r\n\r\n"],
        "stay",
        502,
    )
    yield Lie("error without a body", ["HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"], "stay", 500)
    yield Lie("error of html", ["HTTP/1.1 400 No\r\nContent-Length: 6\r\n\r\n<html>"], "stay", 400)
    yield Lie("error cut", ["HTTP/1.1 500 No\r\nContent-Length: 60\r\n\r\n<html>"], "close", 502)
    yield Lie(
        "stream",
        [EVENTS, chunk(EVENT), chunk("data: [DONE]\n\n"), "0\r\n\r\n"],
        "stay",
        200,
        stream=True,
    )
    yield Lie("stream cut", [EVENTS, chunk(EVENT)], "close", 200, b"engine_died", stream=True)
    yield Lie("stream reset", [EVENTS, chunk(EVENT)], "reset", 200, b"engine_died", stream=True)
    yield Lie(
        "stream of garbage",
        [EVENTS, chunk(EVENT), "zz\r\n"],
        "stay",
        200,
        b"bad_engine_answer",
        stream=True,
    )
    yield Lie(
        "half an event",
        [EVENTS, chunk(EVENT[:9])],
        "close",
        502,  # nothing of it has been shown
        stream=True,
    )
    yield Lie("stream of nothing", [EVENTS], "close", 502, stream=True)
    yield Lie("json for a stream", [WHOLE], "stay", 200, b"{}", stream=True)


def hostile(name: str = "m") -> ModelSpec:
    return ModelSpec(
        name,
        "command",
        frozenset({Task.CHAT}),
        command=(sys.executable, str(ENGINE), "--port", "{port}"),
        estimate_mib=10,
        limits=Limits(stop_grace_s=2.0, response_timeout_s=5.0),
        health_path="/health",
    )


def asked(lie: Lie) -> bytes:
    wire = {"parts": lie.parts, "end": lie.end}
    body = json.dumps({"model": "m", "messages": [], "stream": lie.stream, "wire": wire}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def test_whatever_an_engine_sends_its_client_sees_an_honest_answer(serve: Serve) -> None:
    wrong = []
    async with serve(hostile()) as server:
        for lie in lies():
            heard = await converse(server.port, asked(lie), wanted=1)
            shown = heard.answers[0] if heard.answers else None
            status = shown.status if shown else CUT
            if status != lie.status or bool(heard.trouble) != (lie.status == CUT):
                wrong.append(f"{lie.name}: {heard.statuses} {heard.trouble!r}, not {lie.status}")
            elif shown and lie.body is not None and not _says(lie, shown.body):
                wrong.append(f"{lie.name}: {shown.body[:200]!r}, not {lie.body!r}")
            if lie.name == "an answer too late":  # it must have come before the next is asked
                await _no_idle_connection(server)
            if problem := await _next_is_its_own(server):
                wrong.append(f"after {lie.name}: {problem}")
        left = (len(server.yard.gateway.active), server.yard.loop.scheduler.models["m"].in_flight)

    assert not wrong, "\n".join(wrong)
    assert left == (0, 0)


async def _no_idle_connection(server: Running) -> None:
    """Return when the connection on which something came that nobody asked for is closed."""
    (run,) = server.yard.loop.runs.values()
    async with asyncio.timeout(60):
        while run.upstream._idle:
            await asyncio.sleep(0.005)


def _says(lie: Lie, body: bytes) -> bool:
    assert lie.body is not None
    return lie.body in body if lie.stream and lie.body != b"{}" else body == lie.body


async def _next_is_its_own(server: Running) -> str:
    """A further request gets its own answer, whatever the one before has left behind."""
    heard = await converse(
        server.port, asked(Lie("", [WHOLE.replace("{}", "[7")], "stay", 0)), wanted=1
    )
    if heard.statuses != [200] or heard.answers[0].body != b"[7":
        return f"{heard.statuses} {heard.trouble} {[a.body[:99] for a in heard.answers]}"
    return ""
