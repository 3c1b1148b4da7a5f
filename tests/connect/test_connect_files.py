"""Clients' files are changed so that everything can be taken back."""

import json
import tomllib
from pathlib import Path

import pytest

from modelyard.connect.files import CannotEdit, Journal, connect, disconnect
from modelyard.connect.recipes import CLIENTS, Merge, Recipe, Target

TARGET = Target("http://127.0.0.1:8080", "qwen3", "my-a-secret", 40960)
WRITTEN = [name for name, client in CLIENTS.items() if client.recipe(TARGET, Path("/h")).edits]


def recipe(client: str, home: Path) -> Recipe:
    return CLIENTS[client].recipe(TARGET, home)


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(autouse=True)
def own_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CODEX_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("client", WRITTEN)
def test_a_client_without_files_gets_them_and_loses_them_again(client: str, tmp_path: Path) -> None:
    home, journal = tmp_path / "home", Journal(tmp_path / "state", client)
    home.mkdir()
    done = connect(recipe(client, home).edits, journal)
    again = connect(recipe(client, home).edits, journal)
    text = "".join(tree(home).values())

    assert [each.action for each in done] == ["written"]
    assert [each.action for each in again] == ["unchanged"]
    assert "qwen3" in text
    assert "127.0.0.1:8080" in text
    assert all(path.stat().st_mode & 0o077 == 0 for path in home.rglob("*") if path.is_file())
    assert [each.action for each in disconnect(journal)] == ["removed"]
    assert tree(home) == {}
    assert disconnect(journal) == []


BEFORE = {
    "claude-code": (
        ".claude/settings.json",
        '{"model": "opus", "env": {"ANTHROPIC_MODEL": "mine", "X": "1"}}',
    ),
    "opencode": (".config/opencode/opencode.json", '{"theme": "system"}'),
    "zed": (".config/zed/settings.json", '{"language_models": {"openai": {"x": 1}}}'),
    "continue": (
        ".continue/config.yaml",
        "# mine\nname: Work\nversion: 2.0.0\nschema: v1\nmodels:\n- name: other # keep\n",
    ),
    "aider": (".aider.conf.yml", "# mine\nmodel: gpt  # my model\ndark-mode: true\n"),
}


@pytest.mark.parametrize("client", BEFORE)
def test_what_a_client_had_stays_and_comes_back(client: str, tmp_path: Path) -> None:
    home, journal = tmp_path / "home", Journal(tmp_path / "state", client)
    name, text = BEFORE[client]
    file = home / name
    file.parent.mkdir(parents=True)
    file.write_text(text)
    file.chmod(0o640)
    (done,) = connect(recipe(client, home).edits, journal)
    connected = file.read_text()
    disconnect(journal)
    after = file.read_text()

    assert done.action == "changed"
    assert "qwen3" in connected
    assert file.stat().st_mode & 0o777 == 0o640
    if name.endswith(".json"):
        assert json.loads(after) == json.loads(text)
    else:
        assert "# mine" in connected
        assert "# mine" in after
        assert "qwen3" not in after
        assert "my model" in after or "# keep" in after


def test_what_somebody_changed_since_is_left_alone(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state", "claude-code")
    file = tmp_path / ".claude" / "settings.json"
    connect(recipe("claude-code", tmp_path).edits, journal)
    changed = json.loads(file.read_text())
    changed["env"]["ANTHROPIC_MODEL"] = "another"
    file.write_text(json.dumps(changed))
    (done,) = disconnect(journal)

    assert done.action == "left"
    assert json.loads(file.read_text()) == {"env": {"ANTHROPIC_MODEL": "another"}}


def test_connecting_to_another_model_still_undoes_to_the_beginning(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state", "aider")
    file = tmp_path / ".aider.conf.yml"
    file.write_text("model: mine\n")
    connect(recipe("aider", tmp_path).edits, journal)
    other = Target("http://127.0.0.1:8080", "other")
    connect(CLIENTS["aider"].recipe(other, tmp_path).edits, journal)

    assert "openai/other" in file.read_text()
    disconnect(journal)
    assert file.read_text() == "model: mine\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, // comment\n}', "not plain JSON"),
        ("[1]", "holds no keys"),
        ('{"env": 3}', "env holds no keys"),
        ("\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_edited_is_not_touched(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "settings.json"
    file.write_bytes(text.encode("latin-1"))
    journal = Journal(tmp_path / "state", "x")

    with pytest.raises(CannotEdit, match=words):
        connect([Merge(file, {"env": {"a": "b"}})], journal)
    assert file.read_bytes() == text.encode("latin-1")
    assert journal.entries() == []


def test_codex_gets_a_profile_that_is_toml(tmp_path: Path) -> None:
    connect(recipe("codex", tmp_path).edits, Journal(tmp_path / "state", "codex"))
    profile = tomllib.loads((tmp_path / ".codex" / "modelyard.config.toml").read_text())

    assert profile["model_provider"] == "modelyard"
    assert profile["model_providers"]["modelyard"] == {
        "name": "Modelyard",
        "base_url": "http://127.0.0.1:8080/v1",
        "wire_api": "responses",
        "env_key": "MODELYARD_API_KEY",
    }


@pytest.mark.parametrize("client", CLIENTS)
def test_every_client_is_told_where_and_what(client: str, tmp_path: Path) -> None:
    told = recipe(client, tmp_path)

    assert TARGET.url in str(told)
    if client != "open-webui":
        assert TARGET.model in str(told)
    assert told.advice
