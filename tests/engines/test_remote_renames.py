"""What a remote calls the parameters of a chat: OpenAI's newer models have another bound."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelyard.config import load
from modelyard.config.publish import describe
from modelyard.core.errors import ConfigError
from modelyard.core.specs import ModelSpec
from modelyard.engines.remote import Remote
from modelyard.engines.rename import with_parameters

CHAT = "/v1/chat/completions"
ASKED = b'{"model": "m", "max_tokens": 7, "top_p": 0.90}'
RENAMED = b'{"model":"m","max_completion_tokens":7,"top_p":0.90}'
"""Numbers stay as the client wrote them."""


def configured(tmp_path: Path, upstream: str) -> ModelSpec:
    path = tmp_path / "modelyard.yaml"
    path.write_text(
        f"models:\n  m:\n    engine: remote\n    tasks: [chat]\n    upstreams: [{upstream}]\n"
    )
    return load(path, env={}).models[0]


@pytest.mark.parametrize(
    ("upstream", "expected"),
    [
        ("{url: 'https://api.openai.com/v1'}", RENAMED),
        ("{url: 'https://api.openai.com/v1', renames: {}}", ASKED),
        ("{url: 'https://api.example.com/v1'}", ASKED),
        ("{url: 'http://a', renames: {max_tokens: max_completion_tokens}}", RENAMED),
    ],
)
def test_a_bound_is_renamed_for_openai_itself_and_where_it_is_wanted(
    tmp_path: Path, upstream: str, expected: bytes
) -> None:
    (target,) = Remote().targets(configured(tmp_path, upstream))

    assert target.quirks.request(CHAT, ASKED) == expected
    assert target.quirks.request("/v1/completions", ASKED) == ASKED


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"b": 1, "a": [1 , 2]}', b'{"b":1,"z":[1 , 2]}'),
        (b'{"a": 1, "z": 2}', b'{"z":2}'),
        (b'{"z": 2, "a": 1}', b'{"z":2}'),
        (b'{"b": {"a": 1} }', b'{"b": {"a": 1} }'),
        (b"[1", b"[1"),
        (b'"a"', b'"a"'),
        (b"\xff", b"\xff"),
    ],
)
def test_only_members_of_the_request_itself_are_renamed(body: bytes, expected: bytes) -> None:
    assert with_parameters(body, {"a": "z"}) == expected


@pytest.mark.parametrize(
    ("renames", "said"),
    [
        ("[max_tokens]", "renames: must be usual names and theirs, not a list"),
        ("{model: name}", "renames: 'model' says where a request goes and cannot be renamed"),
        ("{max_tokens: stream}", "renames: 'stream' says where a request goes"),
        ("{a: x, b: x}", "renames: gives two parameters the same name"),
    ],
)
def test_renames_that_cannot_be_meant_are_refused(tmp_path: Path, renames: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"upstreams\[0\]") as refused:
        configured(tmp_path, f"{{url: 'http://a', renames: {renames}}}")

    assert said in str(refused.value)


def test_renames_are_shown_as_they_are_written(tmp_path: Path) -> None:
    configured(tmp_path, "{url: 'http://a', renames: {a: b}}")
    shown = describe(load(tmp_path / "modelyard.yaml", env={}))

    assert shown["models"]["m"]["upstreams"][0]["renames"] == {"a": "b"}
