"""The section `remotes`, and what an upstream speaks."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelyard.config import Config, load
from modelyard.config.publish import describe
from modelyard.core.errors import ConfigError
from modelyard.core.specs import Task


def configured(folder: Path, text: str, **env: str) -> Config:
    file = folder / "modelyard.yaml"
    file.write_text(text)
    return load(file, env=env)


def test_a_remote_needs_no_more_than_its_address(tmp_path: Path) -> None:
    (remote,) = configured(tmp_path, "remotes: {far: {url: 'https://api.example.com'}}").remotes

    assert (remote.name, remote.prefix, remote.models, remote.tasks) == (
        "far",
        "far",
        None,
        frozenset(),
    )
    assert remote.upstream.url == "https://api.example.com"
    assert (remote.upstream.dialect, remote.upstream.key_header) == ("openai", "authorization")
    assert remote.refresh_s == 3600


def test_everything_that_can_be_said_of_a_remote(tmp_path: Path) -> None:
    text = """
remotes:
  claude:
    url: https://api.anthropic.com
    key: ${env:KEY}
    dialect: anthropic
    models: {big: opus-2026}
    prefix: ""
    tasks: [chat]
    refresh: never
    ca_file: ca.pem
"""
    config = configured(tmp_path, text, KEY="s3cret")
    (remote,) = config.remotes
    shown = describe(config)["remotes"]["claude"]

    assert (remote.upstream.key, remote.upstream.key_header) == ("s3cret", "x-api-key")
    assert (remote.models, remote.prefix) == ({"big": "opus-2026"}, "")
    assert (remote.tasks, remote.refresh_s) == (frozenset({Task.CHAT}), None)
    assert remote.upstream.ca_file == str(tmp_path / "ca.pem")
    assert "s3cret" not in repr(config)
    assert "s3cret" not in str(shown)
    assert (shown["models"], shown["refresh"]) == ({"big": "opus-2026"}, "never")


def test_a_list_of_models_keeps_their_names(tmp_path: Path) -> None:
    text = "remotes: {far: {url: 'http://h', models: [a/b, c]}}"
    (remote,) = configured(tmp_path, text).remotes

    assert remote.models == {"a/b": "a/b", "c": "c"}


def test_an_upstream_of_anthropics_has_its_key_where_anthropic_wants_it(tmp_path: Path) -> None:
    text = """
models:
  m:
    engine: remote
    tasks: [chat]
    upstreams:
      - {url: 'https://api.anthropic.com', key: k, dialect: anthropic}
      - {url: 'https://gateway.example.com', key: k, dialect: anthropic, key_header: Authorization}
"""
    first, second = configured(tmp_path, text).models[0].remote.upstreams

    assert (first.key_header, second.key_header) == ("x-api-key", "authorization")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("{}", "remotes.far.url: is missing"),
        ("{url: ftp://h}", "remotes.far.url: must begin with https"),
        ("{url: 'http://h/v1/messages'}", "leave out /messages"),
        ("{url: 'http://h', dialect: gemini}", "remotes.far.dialect: 'gemini' is not a dialect"),
        ("{url: 'http://h', dialect: antropic}", "did you mean anthropic?"),
        ("{url: 'http://h', models: all}", "remotes.far.models: must be auto, a list"),
        ("{url: 'http://h', models: []}", "remotes.far.models: names no model"),
        ("{url: 'http://h', models: [3]}", "remotes.far.models: must be text"),
        ("{url: 'http://h', models: {a: ''}}", "remotes.far.models: must not be empty"),
        ("{url: 'http://h', prefix: ' x'}", "remotes.far.prefix: begins or ends with a space"),
        ("{url: 'http://h', tasks: [speak]}", "is not a task"),
        ("{url: 'http://h', refresh: 0s}", "remotes.far.refresh: must be more than 0"),
        ("{url: 'http://h', key: 's3cret x'}", "remotes.far.key: holds spaces"),
        ("{url: 'http://h', modles: auto}", "there is no such key; did you mean models?"),
    ],
)
def test_what_is_wrong_with_a_remote_is_said_where_it_stands(
    tmp_path: Path, keys: str, said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        configured(tmp_path, f"remotes: {{far: {keys}}}")

    assert said in str(refused.value)
    assert "s3cret" not in str(refused.value)
