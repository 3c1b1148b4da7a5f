"""Endpoints whose models are served without being written down one by one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.http.remote_peer import Peer, Script, answer, peer

from modelyard.config import Config
from modelyard.config.values import RemoteEndpoint
from modelyard.core.errors import ConfigError
from modelyard.core.specs import Limits, ModelSpec, RemoteUpstream, Task
from modelyard.engines.remote import Remote
from modelyard.runtime.remote_lists import FILE, RemoteLists
from modelyard.testing.server import Running, running

pytestmark = pytest.mark.usefixtures("nothing_left")


def listing(*names: str, **more: Any) -> bytes:
    data = [{"id": name, "object": "model"} for name in names]
    return json.dumps({"object": "list", "data": data, **more}).encode()


def lists(*names: str) -> Script:
    """An endpoint that lists these models and answers everybody."""
    return lambda head: answer(200, listing(*names)) if head.startswith(b"GET ") else answer(200)


def endpoint(there: Peer, name: str = "far", **fields: Any) -> RemoteEndpoint:
    upstream = RemoteUpstream(there.url(), key="ours")
    return RemoteEndpoint(name, upstream, **{"prefix": name, "refresh_s": 0.05, **fields})


async def known(server: Running, *names: str) -> dict[str, ModelSpec]:
    """The models, once those of these names are served and no others."""
    async with asyncio.timeout(60):
        while (models := server.yard.loop.scheduler.models).keys() != set(names):
            await asyncio.sleep(0.01)
    return {name: slot.spec for name, slot in models.items()}


async def told(server: Running) -> str:
    """The problem, once there is one."""
    async with asyncio.timeout(60):
        while not server.yard.facts.problems:
            await asyncio.sleep(0.01)
    (problem,) = server.yard.facts.problems
    return problem


async def chat(server: Running, model: str) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        return await http.post("/v1/chat/completions", json=body)


async def test_what_an_endpoint_lists_is_served_under_its_prefix(tmp_path: Path) -> None:
    async with (
        peer(lists("gpt-x", "text-embed")) as there,
        running(Config(remotes=(endpoint(there),)), tmp_path) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
    ):
        models = await known(server, "far/gpt-x", "far/text-embed")
        said = await chat(server, "far/gpt-x")
        shown = (await http.get("/v1/models")).json()

    assert said.status_code == 200
    assert json.loads(there.bodies[0])["model"] == "gpt-x"
    assert b"authorization: Bearer ours\r\n" in there.probes[0]
    assert there.probes[0].startswith(b"GET /v1/models HTTP/1.1\r\n")
    assert {model["id"] for model in shown["data"]} == set(models)
    assert models["far/text-embed"].tasks == {Task.EMBEDDING}


async def test_a_new_model_of_an_endpoint_appears_and_an_old_one_goes(tmp_path: Path) -> None:
    async with (
        peer(lists("a", "b")) as there,
        running(Config(remotes=(endpoint(there),)), tmp_path) as server,
    ):
        await known(server, "far/a", "far/b")
        there.script = lists("b", "c")
        await known(server, "far/b", "far/c")


async def test_an_endpoint_that_is_down_keeps_the_models_of_an_earlier_life(tmp_path: Path) -> None:
    async with peer(lists("a")) as there:
        config = Config(remotes=(endpoint(there),))
        async with running(config, tmp_path) as server:
            await known(server, "far/a")
        await there.stop()

        async with running(config, tmp_path) as server:
            at_once = set(server.yard.loop.scheduler.models)
            problem = await told(server)
            await known(server, "far/a")

    assert at_once == {"far/a"}
    assert problem.startswith("remote far: its models cannot be listed: ")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (answer(401, b'{"error": "no such key: ours"}'), "it refuses the key (status 401)"),
        (answer(307, b"", "location: http://127.0.0.1:1/ours"), "a redirect (307), not followed"),
        (answer(200, b"<html>"), "its list of models is not JSON"),
        (answer(200, b'{"models": 3}'), "it answers without a list of models"),
        (answer(200, b"[" * 100_000), "its list of models is not JSON"),
        (answer(500), "it answers with status 500"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "its models cannot be listed: "),
    ],
)
async def test_why_an_endpoint_lists_nothing_is_told_without_its_words(
    tmp_path: Path, said: bytes, why: str
) -> None:
    async with (
        peer(lambda _: said) as there,
        running(Config(remotes=(endpoint(there),)), tmp_path) as server,
    ):
        problem = await told(server)

    assert problem.startswith("remote far: ")
    assert why in problem
    assert "ours" not in problem


async def test_a_name_that_is_taken_is_left_out_and_told(tmp_path: Path) -> None:
    here = ModelSpec("far/a", "command", frozenset({Task.CHAT}), command=("x", "{port}"))
    async with peer(lists("a", "b")) as there, peer(lists("b", "c")) as other:
        remotes = (endpoint(there), endpoint(other, "again", prefix="far"))
        async with running(Config(models=(here,), remotes=remotes), tmp_path) as server:
            models = await known(server, "far/a", "far/b", "far/c")
            problems = list(server.yard.facts.problems)

    assert models["far/a"].engine == "command"
    assert models["far/b"].remote.upstreams[0].url == there.url()
    why = "left out, because other models have these names"
    assert problems == [
        f"remote far: {why}: far/a; give remotes.far another prefix",
        f"remote again: {why}: far/b; give remotes.again another prefix",
    ]


async def test_of_models_that_are_written_down_nobody_is_asked(tmp_path: Path) -> None:
    async with peer() as there:
        mapped = endpoint(there, models={"big": "gpt-x-2026"}, prefix="")
        async with running(Config(remotes=(mapped,)), tmp_path) as server:
            models = set(server.yard.loop.scheduler.models)
            await chat(server, "big")

    assert models == {"big"}
    assert json.loads(there.bodies[0])["model"] == "gpt-x-2026"
    assert there.probes == []


async def test_anthropics_list_comes_in_pages(tmp_path: Path) -> None:
    def script(head: bytes) -> bytes:
        if b"after_id=opus" in head:
            return answer(200, listing("haiku", has_more=False, last_id="haiku"))
        return answer(200, listing("opus", has_more=True, last_id="opus"))

    async with peer(script) as there:
        upstream = RemoteUpstream(
            there.url(path=""), key="ours", key_header="x-api-key", dialect="anthropic"
        )
        remote = RemoteEndpoint("an", upstream, prefix="an", refresh_s=None)
        async with running(Config(remotes=(remote,)), tmp_path) as server:
            models = await known(server, "an/opus", "an/haiku")

    assert [spec.tasks for spec in models.values()] == [{Task.CHAT}, {Task.CHAT}]
    assert [head.split(b" ")[1] for head in there.probes] == [
        b"/v1/models?limit=1000",
        b"/v1/models?limit=1000&after_id=opus",
    ]
    assert all(b"x-api-key: ours\r\n" in head for head in there.probes)
    assert all(b"anthropic-version: 2023-06-01\r\n" in head for head in there.probes)


async def test_a_key_that_cannot_be_decrypted_is_a_problem_of_the_configuration(
    tmp_path: Path,
) -> None:
    upstream = RemoteUpstream("http://127.0.0.1:1", key="enc:abc")

    with pytest.raises(ConfigError, match=r"remotes\.far\.key: there is no .*secret\.key"):
        async with running(Config(remotes=(RemoteEndpoint("far", upstream),)), tmp_path):
            pass


async def test_a_new_configuration_asks_other_endpoints(tmp_path: Path) -> None:
    async with peer(lists("a")) as there, peer(lists("b")) as other:
        remotes = RemoteLists(Remote(), tmp_path)
        heard = asyncio.Event()
        remotes.begin(heard.set)
        try:
            for each, name in ((there, "far/a"), (other, "far/b")):
                heard.clear()
                await remotes.follow([endpoint(each, refresh_s=None)])
                async with asyncio.timeout(60):
                    await heard.wait()
                models, problems = remotes.specs(Limits(), ())
                assert ([spec.id for spec in models], problems) == ([name], [])
            await remotes.follow([])
            assert remotes.specs(Limits(), ()) == ([], [])
        finally:
            await remotes.close()

    assert len(there.probes) == len(other.probes) == 1


async def test_a_file_of_lists_that_is_damaged_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"a": 3}')
    async with peer(lists("a")) as there:
        remotes = (endpoint(there, refresh_s=None),)
        async with running(Config(remotes=remotes), tmp_path) as server:
            await known(server, "far/a")

    (kept,) = json.loads((tmp_path / FILE).read_text()).values()
    assert [offer["name"] for offer in kept] == ["a"]
    assert "ours" not in (tmp_path / FILE).read_text()
