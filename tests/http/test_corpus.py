"""Every odd request of the corpus gets the answer that it must get, and no engine sees more."""

from __future__ import annotations

import json
from collections import Counter

import httpx
import pytest
from tests.conftest import Serve
from tests.http.corpus.cases import Case, cases
from tests.http.corpus.wire import Answered, converse

from modelyard.testing.server import Running, fake_model

pytestmark = pytest.mark.usefixtures("nothing_left")

AFTER = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


async def test_every_odd_request_gets_the_answer_it_must_get(serve: Serve) -> None:
    failures = []
    async with serve(fake_model("m", "--tokens", "2"), fake_model("n")) as server:
        await _start(server)
        asked = await _requests(server)
        for case in cases():
            failures += await _try(server, case)
            seen = await _requests(server) - asked
            asked += seen
            wanted = _inferences(case)
            if seen != wanted:
                failures.append(f"{case.name}: the engine got {seen} requests of {wanted}")
        left = len(server.yard.gateway.active)

    assert not failures, "\n".join(failures)
    assert left == 0


def test_the_corpus_is_large_and_its_names_are_unique() -> None:
    names = Counter(case.name for case in cases())

    assert len(names) >= 60
    assert [name for name, times in names.items() if times > 1] == []


async def _try(server: Running, case: Case) -> list[str]:
    heard = await converse(
        server.port, case.data, wanted=len(case.answers), then=AFTER if case.open else b""
    )
    wanted = [*case.answers, 200] if case.open else list(case.answers)
    problems = []
    if heard.statuses != wanted or heard.trouble:
        problems.append(f"{heard.statuses} {heard.trouble} in place of {wanted}")
    problems += [problem for answer in heard.answers if (problem := _shape(answer))]
    return [f"{case.name}: {problem}" for problem in problems]


def _shape(answer: Answered) -> str:
    """What is wrong with an error's form."""
    if answer.status < 400:
        return ""
    if "x-request-id" not in answer.headers and answer.status not in (403, 404, 405):
        return f"a {answer.status} without an id"
    try:
        error = json.loads(answer.body)["error"]
    except (ValueError, KeyError):
        return f"a {answer.status} that says {answer.body[:80]!r}"
    return "" if error["message"] and "code" in error else f"an empty error: {error}"


def _inferences(case: Case) -> int:
    """How many requests the engine must have seen."""
    return case.answers.count(200) - case.data.count(b"GET /v1/models") * (200 in case.answers)


async def _start(server: Running) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        assert (await http.post("/v1/chat/completions", json=body)).status_code == 200


async def _requests(server: Running) -> int:
    """How many requests the engine has had."""
    port = server.yard.loop.runs["m", 1].endpoint.port
    asked = b"GET /stats HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    heard = await converse(port, asked, wanted=1)
    return int(json.loads(heard.answers[0].body)["requests"])
