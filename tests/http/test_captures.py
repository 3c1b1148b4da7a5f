"""Captures: nothing unless they are switched on, and then neither secrets nor endless memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.http.keyed import CHAT_PATH, chat, client, key, serve_keyed, text_of

from modelyard.config.secrets import secrets_of
from modelyard.config.values import Captures as Settings
from modelyard.config.values import Config, Downloads
from modelyard.core.keys import Scope
from modelyard.core.shaping import Shape
from modelyard.core.specs import ModelSpec, RemoteModel, RemoteUpstream
from modelyard.http import captures as module
from modelyard.http.captures import Captures
from modelyard.http.record import Record
from modelyard.testing.server import fake_model

SECRET = "hf_0123456789abcdef"
ADMIN = frozenset({Scope.ADMIN, Scope.INFERENCE})


def captured(
    captures: Captures, request: bytes, *answer: bytes, name: str = "r", **headers: str
) -> bytes:
    """Send a request and its answer through the captures; what the client got."""
    sent: list[bytes] = []
    lines = [(name.encode(), value.encode()) for name, value in headers.items()]
    capture = captures.open(Record(name, 1.0, "/v1"), lines, sent.append)
    for part in answer:
        capture.write(part)
    capture.end(request)
    return b"".join(sent)


def test_nothing_is_captured_unless_it_is_asked_for() -> None:
    assert not Captures(Settings()).are_on
    assert Captures(Settings(last=1)).are_on


def test_the_client_gets_everything_whatever_is_kept_of_it() -> None:
    captures = Captures(Settings(last=2, max_body_bytes=4), [SECRET])
    answer = [b"abcdef", SECRET.encode(), b"ghi"]

    assert captured(captures, b"0123456789", *answer) == b"".join(answer)
    (kept,) = captures.newest()
    assert (kept.request, bytes(kept.answer), kept.answer_bytes) == (b"0123", b"abcd", 28)


def test_the_newest_are_kept_and_a_smaller_number_drops_the_others() -> None:
    captures = Captures(Settings(last=3))
    for name in "abcd":
        captured(captures, b"", name=name)
    before = [kept.record.id for kept in captures.newest()]
    captures.follow(Settings(last=1), [])
    after = [kept.record.id for kept in captures.newest()]
    captures.follow(Settings(), [])

    assert (before, after, captures.newest(), captures.held) == (["d", "c", "b"], ["d"], [], 0)


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (f"key is {SECRET}!", "key is <hidden>!"),
        (SECRET * 2, "<hidden><hidden>"),
        (f"me: {text_of('ann')}.", "me: <hidden>."),
        (f"{'x' * 90}{SECRET}", f"{'x' * 90}<hidden>"),
        (f"{'x' * 90}{text_of('ann')}", f"{'x' * 90}<hidden>"),
        (f"{'x' * 96}{SECRET}", f"{'x' * 96}<hidden>"),
        ("my-dog", "my-dog"),
    ],
)
def test_secrets_are_hidden_also_where_the_bound_cuts_them(sent: str, kept: str) -> None:
    captures = Captures(Settings(last=2, max_body_bytes=100), [SECRET])
    captured(captures, sent.encode(), sent.encode())
    (capture,) = captures.newest()

    assert capture.request.decode() == kept
    assert capture.answer.decode() == kept


@settings(max_examples=200)
@given(st.binary(max_size=60), st.binary(max_size=60), st.integers(1, 150), st.integers(0, 40))
def test_no_part_of_a_secret_long_enough_to_matter_is_ever_kept(
    before: bytes, after: bytes, bound: int, cut: int
) -> None:
    captures = Captures(Settings(last=2, max_body_bytes=bound), [SECRET])
    whole = before + SECRET.encode() + after
    captured(captures, whole, whole[:cut], whole[cut:])
    (capture,) = captures.newest()

    for kept in (capture.request, bytes(capture.answer)):
        assert SECRET.encode()[: module.SHORTEST_CUT] not in kept.replace(before, b"")


def test_credentials_in_headers_are_hidden_by_their_name() -> None:
    captures = Captures(Settings(last=2))
    named = {
        "authorization": "Bearer abc", "x-api-key": "abc", "api-key": "abc", "cookie": "s=abc",
        "proxy-authorization": "abc", "x-auth-token": "abc", "content-type": "text/x",
        "x-note": f"it is {SECRET}",
    }  # fmt: skip
    captures.follow(Settings(last=2), [SECRET])
    captured(captures, b"", **named)
    (capture,) = captures.newest()

    shown = {name.decode(): value.decode() for name, value in capture.headers}
    assert {name for name, value in shown.items() if value == "<hidden>"} == {
        "authorization", "x-api-key", "api-key", "cookie", "proxy-authorization", "x-auth-token",
    }  # fmt: skip
    assert (shown["content-type"], shown["x-note"]) == ("text/x", "it is <hidden>")


def test_all_captures_together_are_bounded_those_under_way_included(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_HELD", 1000)
    captures = Captures(Settings(last=1000, max_body_bytes=300))
    running = [captures.open(Record(str(at), 0.0, "/"), [], lambda _: None) for at in range(50)]
    for capture in running:
        capture.write(b"x" * 5000)
        assert captures.held <= 1000
    for capture in running:
        capture.end(b"y" * 5000)
        assert captures.held <= 1300
    captures.clear()

    assert (captures.held, captures.newest()) == (0, [])


def test_every_secret_of_a_configuration_is_known() -> None:
    remote = RemoteModel((RemoteUpstream("http://a/v1", key="enc:sealed"),))
    config = Config(
        downloads=Downloads(token="token-of-hub", modelscope_token="short"),
        models=(
            ModelSpec("a", "remote", frozenset(), remote=remote),
            dataclasses.replace(
                fake_model("b"),
                env=MappingProxyType({"API_KEY": "key-in-env", "LEVEL": "not-a-secret"}),
                options=MappingProxyType({"api_key": "key-in-options", "ctx_size": 5}),
                shape=Shape(headers={"authorization": "key-for-engine", "x-note": "no-secret-at"}),
                command=("x", "--api-key", "key-behind-flag", "--token=key-in-flag", "--y", "z"),
            ),
        ),
    )

    assert secrets_of(config, lambda key: key.replace("enc:sealed", "what-was-sealed")) == {
        "token-of-hub", "what-was-sealed", "key-in-env", "key-in-options", "key-behind-flag",
        "key-in-flag", "key-for-engine",
    }  # fmt: skip


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("stream", [False, True])
async def test_an_admin_sees_requests_and_answers_as_they_were(
    tmp_path: Path, stream: bool
) -> None:
    keys = (key("ann"), key("root", scopes=ADMIN))
    words = f"my key is {text_of('ann')}"
    asked: dict[str, Any] = chat(stream=stream, messages=[{"role": "user", "content": words}])
    async with (
        serve_keyed(
            tmp_path, fake_model("m"), keys=keys, captures=Settings(last=5, max_body_bytes=4096)
        ) as server,
        client(server, "ann") as http,
        client(server, "root") as admin,
    ):
        named = {"x-request-id": "mine/1"}
        answer = await http.post(CHAT_PATH, json=asked, headers=named)
        listed = (await admin.get("/api/captures")).json()
        one = (await admin.get("/api/captures/mine/1")).json()
        missing = await admin.get("/api/captures/other")
        hidden = await http.get("/api/captures")
        cleared = await admin.delete("/api/captures")
        empty = (await admin.get("/api/captures")).json()

    assert [(each["id"], each["request"], each["answer"]) for each in listed] == [
        ("mine/1", "", "")
    ]
    assert '"my key is <hidden>"' in one["request"]
    assert (one["key"], one["model"], one["status"]) == ("ann", "m", 200)
    assert one["answer"].startswith("HTTP/1.1 200 OK\r\n")
    assert answer.text.replace(text_of("ann"), "<hidden>")[:20] in one["answer"]
    assert ["authorization", "<hidden>"] in one["request_headers"]
    assert text_of("ann") not in str(one)
    assert (missing.status_code, hidden.status_code, cleared.status_code) == (404, 403, 204)
    assert empty == []


@pytest.mark.usefixtures("nothing_left")
async def test_without_captures_there_is_nothing_to_see(tmp_path: Path) -> None:
    async with serve_keyed(tmp_path, fake_model("m")) as server, client(server) as http:
        await http.post(CHAT_PATH, json=chat())
        told = await http.get("/api/captures")

    assert (told.json(), server.yard.gateway.captures.held) == ([], 0)
