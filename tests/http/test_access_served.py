"""Keys at a whole server: every route asks for the right one, and no header gets around it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import httpx
import pytest
from openai import AsyncOpenAI, AuthenticationError, NotFoundError
from tests.http.keyed import CHAT_PATH, chat, client, key, serve_keyed, text_of

from modelyard.config.values import Captures
from modelyard.core.keys import Scope
from modelyard.testing.server import fake_model

pytestmark = pytest.mark.usefixtures("nothing_left")

ADMIN = frozenset({Scope.ADMIN, Scope.INFERENCE})
PAGE = "https://chat.example.com"


async def test_openais_client_is_let_in_with_its_key_and_told_why_without(tmp_path: Path) -> None:
    async with serve_keyed(tmp_path, fake_model("m"), keys=(key("ann"),)) as server:
        base = f"{server.url}/v1"
        async with AsyncOpenAI(base_url=base, api_key=text_of("ann"), max_retries=0) as known:
            answer = await known.chat.completions.create(**chat())
            names = [model.id async for model in known.models.list()]
        async with AsyncOpenAI(base_url=base, api_key="sk-made-up", max_retries=0) as stranger:
            with pytest.raises(AuthenticationError) as refused:
                await stranger.chat.completions.create(**chat())

    assert answer.choices[0].message.content
    assert names == ["m"]
    assert refused.value.code == "invalid_api_key"


async def test_a_key_may_come_in_each_header_for_keys_and_in_nothing_else(tmp_path: Path) -> None:
    async with (
        serve_keyed(tmp_path, fake_model("m"), keys=(key("ann"),)) as server,
        client(server) as http,
    ):
        answers = [
            await http.post(CHAT_PATH, json=chat(), headers={name: value})
            for name, value in (
                ("x-api-key", text_of("ann")),
                ("api-key", text_of("ann")),
                ("authorization", f"bearer {text_of('ann')}"),
                ("cookie", f"authorization=Bearer {text_of('ann')}"),
                ("proxy-authorization", f"Bearer {text_of('ann')}"),
            )
        ]
        in_query = await http.post(f"{CHAT_PATH}?api_key={text_of('ann')}", json=chat())

    assert [answer.status_code for answer in answers] == [200, 200, 200, 401, 401]
    assert in_query.status_code == 401


async def test_a_bound_key_sees_and_asks_its_own_models_alone(tmp_path: Path) -> None:
    shared = dataclasses.replace(fake_model("shared"), aliases=("gpt-4o",))
    hidden = dataclasses.replace(fake_model("hidden"), aliases=("gpt-secret",))
    keys = (key("ann", models=("sha*",)), key("bob"))
    async with (
        serve_keyed(tmp_path, shared, hidden, keys=keys) as server,
        client(server, "ann") as ann,
        client(server, "bob") as bob,
    ):
        asked = {
            name: (await ann.post(CHAT_PATH, json=chat(name))).status_code
            for name in ("shared", "gpt-4o", "hidden", "gpt-secret")
        }
        refused = await ann.post(CHAT_PATH, json=chat("hidden"))
        wrong_task = await ann.post("/v1/embeddings", json={"model": "hidden", "input": "x"})
        mistyped = await ann.post(CHAT_PATH, json=chat("hiddn"))
        told = (await bob.post(CHAT_PATH, json=chat("hiddn"))).json()["error"]["message"]
        listed = [
            [model["id"] for model in (await http.get("/v1/models")).json()["data"]]
            for http in (ann, bob)
        ]
        one = await ann.get("/v1/models/hidden")

    assert asked == {"shared": 200, "gpt-4o": 200, "hidden": 404, "gpt-secret": 404}
    assert refused.json()["error"]["code"] == "model_not_found"
    assert (wrong_task.status_code, one.status_code) == (404, 404)
    assert "did you mean" not in mistyped.text
    assert "did you mean hidden" in told
    assert listed == [["shared"], ["hidden", "shared"]]


async def test_a_refusal_for_a_model_says_the_same_as_for_none_at_all(tmp_path: Path) -> None:
    keys = (key("ann", models=("other",)),)
    async with (
        serve_keyed(tmp_path, fake_model("m"), keys=keys) as server,
        AsyncOpenAI(base_url=f"{server.url}/v1", api_key=text_of("ann"), max_retries=0) as http,
    ):
        messages = []
        for name in ("m", "n"):
            with pytest.raises(NotFoundError) as refused:
                await http.chat.completions.create(**chat(name))
            messages.append(str(refused.value))

    assert messages[0].replace("'m'", "'n'") == messages[1]


async def test_the_admin_api_opens_to_its_scopes_alone(tmp_path: Path) -> None:
    keys = (key("ann"), key("eve", scopes=frozenset({Scope.READ})), key("root", scopes=ADMIN))
    capture = Captures(last=5)
    async with (
        serve_keyed(tmp_path, fake_model("m"), keys=keys, captures=capture) as server,
        client(server) as nobody,
        client(server, "ann") as ann,
        client(server, "eve") as eve,
        client(server, "root") as root,
    ):
        told = [
            [
                (await http.request(method, path)).status_code
                for method, path in (
                    ("GET", "/health"),
                    ("GET", "/api/models"),
                    ("GET", "/api/requests"),
                    ("GET", "/api/keys"),
                    ("GET", "/api/captures"),
                    ("POST", "/api/models/m/stop"),
                    ("DELETE", "/api/requests/none"),
                    ("GET", "/nowhere"),
                )
            ]
            for http in (nobody, ann, eve, root)
        ]

    assert told == [
        [200, 401, 401, 401, 401, 401, 401, 401],
        [200, 403, 403, 403, 403, 403, 403, 403],
        [200, 200, 200, 403, 403, 403, 403, 404],
        [200, 200, 200, 200, 200, 202, 404, 404],
    ]


@pytest.mark.parametrize(
    "path",
    [
        "//api/models", "/api//models", "/v1/../api/models", "/%61pi/models", "/api/models/",
        "/api/models%2f", "/health/../api/models", "/api/health/../models", "/api/models?x=/health",
    ],
)  # fmt: skip
async def test_no_spelling_of_a_path_gets_around_the_keys(tmp_path: Path, path: str) -> None:
    async with (
        serve_keyed(tmp_path, keys=(key("root", scopes=ADMIN),)) as server,
        httpx.AsyncClient(timeout=60) as http,
    ):
        url = httpx.URL(server.url).copy_with(raw_path=path.encode())
        answer = await http.get(url, headers={"x-original-url": "/health"})

    assert answer.status_code == 401


async def test_a_body_is_not_read_for_somebody_who_is_not_let_in(tmp_path: Path) -> None:
    async with serve_keyed(tmp_path, fake_model("m"), keys=(key("ann"),)) as server:
        async with client(server) as http:
            answer = await http.post(CHAT_PATH, content=b"x" * 5_000_000)
        exchanges = server.yard.gateway.records.newest(1)

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert exchanges[0].bytes_in == 0


async def test_without_keys_any_key_will_do(tmp_path: Path) -> None:
    async with (
        serve_keyed(tmp_path, fake_model("m")) as server,
        client(server, "anything") as http,
    ):
        asked = await http.post(CHAT_PATH, json=chat())
        looked = await http.get("/api/models")

    assert (asked.status_code, looked.status_code) == (200, 200)


# --------------------------------------------------------------------------------------------- CORS


async def test_pages_that_are_named_may_ask_models_and_the_admin_api(tmp_path: Path) -> None:
    preflight = {
        "origin": PAGE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type, x-stainless-os",
    }
    keys = (key("root", scopes=ADMIN),)
    async with (
        serve_keyed(tmp_path, fake_model("m"), keys=keys, cors_origins=(PAGE,)) as server,
        client(server) as page,
        client(server, "root", origin=PAGE) as http,
    ):
        asks = [await page.options(path, headers=preflight) for path in (CHAT_PATH, "/api/models")]
        answers = [
            await http.post(CHAT_PATH, json=chat()),
            await http.post(CHAT_PATH, json=chat(stream=True)),
            await http.post(CHAT_PATH, json=chat("none")),
            await http.get("/api/models"),
            await http.get("/api/models/none"),
            await page.get("/api/models", headers={"origin": PAGE}),
        ]
        del http.headers["origin"]
        plain = await http.get("/api/models")

    assert [(ask.status_code, ask.content) for ask in asks] == [(204, b"")] * 2
    granted = [ask.headers["access-control-allow-headers"] for ask in asks]
    assert granted == ["authorization, content-type, x-stainless-os"] * 2
    assert [answer.status_code for answer in answers] == [200, 200, 404, 200, 404, 401]
    for answer in (*asks, *answers):
        assert answer.headers.get_list("access-control-allow-origin") == [PAGE]
    assert "access-control-allow-origin" not in plain.headers


async def test_other_pages_and_unconfigured_servers_grant_nothing(tmp_path: Path) -> None:
    preflight = {"origin": "https://evil.org", "access-control-request-method": "POST"}
    async with (
        serve_keyed(tmp_path / "a", fake_model("m"), cors_origins=(PAGE,)) as server,
        client(server) as http,
    ):
        answers = [
            await http.options(CHAT_PATH, headers=preflight),
            await http.post(CHAT_PATH, json=chat(), headers={"origin": "https://evil.org"}),
            await http.get("/api/models", headers={"origin": "https://evil.org"}),
        ]
    async with serve_keyed(tmp_path / "b", fake_model("m")) as server, client(server) as http:
        answers.append(await http.options(CHAT_PATH, headers={**preflight, "origin": PAGE}))

    assert [answer.status_code for answer in answers] == [403] * 4
    assert not any("access-control-allow-origin" in answer.headers for answer in answers)
