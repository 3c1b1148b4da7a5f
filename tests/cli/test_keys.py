"""keys add, keys list, keys rm, requests, cancel: by the server, and in the file without one."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tests.cli.conftest import UNUSED_URL, clean_environment, fake, served

from modelyard.client import Client
from modelyard.core.keys import KEY_TEXT, digest_of, key_text

if TYPE_CHECKING:
    from tests.cli.conftest import Ran, Run

COMMENTED = """\
# Ours.
server: {port: 0, state_dir: STATE, shutdown_timeout: 2s}
devices: {budget: {cpu: 1000MiB}}   # enough for all
models:
  quick: QUICK
  # It never ends.
  steady: STEADY
"""


def written(folder: Path) -> Path:
    file = folder / "modelyard.yaml"
    text = COMMENTED.replace("QUICK", json.dumps(fake("quick", "--tokens", "8")))
    text = text.replace("STEADY", json.dumps(fake("steady", "--tps", "50", "--tokens", "99999")))
    file.write_text(text.replace("STATE", str(folder / "state")))
    return file


@pytest.fixture
def nobody(tmp_path: Path, alone: Run, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Run]:
    """A file that no server uses, and the commands for it."""
    monkeypatch.setenv("MODELYARD_URL", UNUSED_URL)
    file = written(tmp_path)

    def run(*arguments: str) -> Ran:
        return alone(*arguments, "--config", str(file))

    return file, run


@pytest.fixture(scope="module")
def owned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("keys")
    file = written(folder)
    with served(file, folder / "log", clean_environment()) as (_, told):
        yield told["url"], file


@pytest.fixture
def owner(
    owned: tuple[str, Path], alone: Run, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Path, Run]]:
    """A server, its file, which is afterwards as it was before, and the commands for it."""
    url, file = owned
    monkeypatch.setenv("MODELYARD_URL", url)
    before = file.read_bytes()
    yield url, file, alone
    file.write_bytes(before)


def use(key: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the commands show this key from now on."""
    if key is None:
        monkeypatch.delenv("MODELYARD_API_KEY", raising=False)
    else:
        monkeypatch.setenv("MODELYARD_API_KEY", key)


# --------------------------------------------------------------------------------- without a server


def test_a_key_is_printed_once_and_its_digest_is_written(nobody: tuple[Path, Run]) -> None:
    file, run = nobody
    before = file.read_text()
    limits = ("--requests", "60/min", "--tokens", "1k/s", "--concurrency", "2", "--priority", "3")
    added = run("keys", "add", "ann", "--model", "quick", "--host", "10.0.0.0/8", *limits)
    text = added.out.strip()
    after = file.read_text()

    assert added.code == 0
    assert KEY_TEXT.fullmatch(text.encode())
    assert text.startswith("my-ann-")
    assert after.startswith(before)
    assert f'digest: "{digest_of(text)}"' in after
    assert text not in after
    assert "only time" in added.err
    assert "The admin API asks nobody on this machine" in added.err


def test_two_keys_are_never_the_same(nobody: tuple[Path, Run]) -> None:
    _, run = nobody

    assert len({run("keys", "add", name, "--json").json["key"][-43:] for name in "abc"}) == 3


def test_keys_are_listed_with_all_that_they_allow_and_removed(nobody: tuple[Path, Run]) -> None:
    file, run = nobody
    before = file.read_text()
    none = run("keys", "list")
    run("keys", "add", "ann", "-m", "quick", "-m", "qwen*", "--tokens", "100k/min")
    run("keys", "add", "bob", "--admin", "--expires", "2020-01-01")
    run("keys", "add", "eve", "--scope", "read", "--scope", "inference", "--expires", "30d")
    shown, listed = run("keys", "list"), run("keys", "list", "--json").json
    removed = [run("keys", "rm", name).code for name in ("ann", "bob", "eve")]
    again = run("keys", "rm", "eve")

    assert "There are no keys" in none.err
    assert [(key["name"], key["scopes"], key["has_expired"]) for key in listed] == [
        ("ann", ["inference"], False),
        ("bob", ["inference", "admin"], True),
        ("eve", ["inference", "read"], False),
    ]
    lines = shown.out.splitlines()
    assert lines[1].split()[:3] == ["ann", "inference", "quick,"]
    assert "100k/min tokens" in lines[1]
    assert "2020-01-01 (over)" in lines[2]
    assert "sha256" not in shown.out
    assert removed == [0, 0, 0]
    assert (again.code, "no key named 'eve'" in again.err) == (4, True)
    assert file.read_text().removesuffix("keys:\n") == before


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("a b",), 2, "cannot be the name of a key"),
        (("my/key",), 2, "cannot be the name of a key"),
        (("ann", "--requests", "60"), 2, "keys.ann.limits.requests: '60' is not so much per time"),
        (("ann", "--host", "box"), 2, "keys.ann.hosts[0]: 'box' is not an address"),
        (("ann", "--expires", "soon"), 2, "keys.ann.expires: 'soon' is not a date"),
        (("ann", "--scope", "root"), 2, "keys.ann.scopes[0]: 'root' is not a scope"),
        (("ann", "--admin", "--scope", "read"), 2, "exclude each other"),
    ],
)
def test_a_key_that_cannot_be_leaves_the_file_as_it_is(
    nobody: tuple[Path, Run], arguments: tuple[str, ...], code: int, words: str
) -> None:
    file, run = nobody
    before = file.read_bytes()
    refused = run("keys", "add", *arguments)

    assert (refused.code, refused.out, words in refused.err) == (code, "", True)
    assert file.read_bytes() == before


def test_a_name_is_taken_only_once(nobody: tuple[Path, Run]) -> None:
    _, run = nobody
    run("keys", "add", "ann")
    again = run("keys", "add", "ann")

    assert (again.code, "there is a key named 'ann' already" in again.err) == (2, True)


# ------------------------------------------------------------------------------------ with a server


def test_a_server_follows_its_keys_at_once_and_every_command_shows_its_own(
    owner: tuple[str, Path, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, file, run = owner
    before = file.read_text()
    asked = run("run", "quick", "hi").code
    ann = run("keys", "add", "ann", "--model", "quick").out.strip()
    without = run("run", "quick", "hi")
    looked = run("ps").code
    use(ann, monkeypatch)
    mine, not_mine = run("run", "quick", "hi").code, run("run", "steady", "hi")
    root = run("keys", "add", "root", "--admin").out.strip()
    too_little = run("ps")
    use("my-root-wrong", monkeypatch)
    wrong = run("ps")
    use(root, monkeypatch)
    listed = run("keys", "list", "--json").json
    managed = [run("ps").code, run("stop", "quick").code, run("run", "quick", "hi").code]
    removed = run("keys", "rm", "ann")
    last = run("keys", "rm", "root")
    use(None, monkeypatch)
    again = run("run", "quick", "hi").code

    assert (asked, without.code, looked, mine, not_mine.code) == (0, 5, 0, 0, 4)
    assert "this server asks for a key" in without.err
    assert "set MODELYARD_API_KEY" in without.err
    assert (too_little.code, "'ann' has no scope 'read'" in too_little.err) == (5, True)
    assert (wrong.code, "does not know the key" in wrong.err) == (5, True)
    used = {key["name"]: (key["used_requests"], key["used_tokens"] > 0) for key in listed}
    assert used == {"ann": (1, True), "root": (0, False)}
    assert managed == [0, 0, 0]
    assert (removed.code, "So is the admin API" in removed.err) == (0, True)
    assert (last.code, "nobody is asked" in last.err, again) == (0, True, 0)
    assert file.read_text().removesuffix("keys:\n") == before


def test_keys_and_captures_that_a_person_writes_count_after_a_reload(
    owner: tuple[str, Path, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, file, run = owner
    before = file.read_bytes()
    text = key_text("ann", bytes(32))
    entry = f"keys: {{ann: {{digest: {digest_of(text)}, limits: {{requests: 1/day}}}}}}\n"
    file.write_bytes(before + entry.encode() + b"captures: {last: 1}\n")
    reloaded = run("config", "reload", "--json").json
    without = run("run", "quick", "hi").code
    use(text, monkeypatch)
    first, second = run("run", "quick", "hi").code, run("run", "quick", "hi")
    captured = httpx.get(f"{url}/api/captures", timeout=60).json()
    file.write_bytes(before + entry.replace(digest_of(text), "nonsense").encode())
    wrong = run("config", "reload")
    still = run("run", "quick", "hi").code
    file.write_bytes(before)
    run("config", "reload")
    use(None, monkeypatch)
    after = run("run", "quick", "hi").code

    assert reloaded["needs_restart"] == []
    assert (without, first, second.code, still, after) == (5, 0, 5, 5, 0)
    assert "may use 1 requests in 86400 s" in second.err
    assert [capture["key"] for capture in captured] == ["ann"]
    assert (wrong.code, "keys.ann.digest: is not a digest" in wrong.err) == (2, True)


def test_requests_are_shown_and_cancelled(owner: tuple[str, Path, Run]) -> None:
    url, _, run = owner
    told: list[Any] = []

    def ask() -> None:
        body = {"model": "steady", "stream": True, "messages": [{"role": "user", "content": "x"}]}
        with httpx.stream(
            "POST",
            f"{url}/v1/chat/completions",
            json=body,
            headers={"x-request-id": "long-one"},
            timeout=60,
        ) as answer:
            for line in answer.iter_lines():
                told.append(line)

    asking = threading.Thread(target=ask)
    asking.start()
    with Client(url) as client:
        while not any(view.state == "answering" for view in client.requests().running):
            pass
    shown = run("requests")
    cancelled = run("cancel", "long-one")
    asking.join(60)
    missing = run("cancel", "long-one")
    after = run("requests", "--json", "--last", "1").json

    assert "long-one" in shown.out
    assert "answering" in shown.out
    assert (cancelled.code, cancelled.out.startswith("long-one: cancelled after")) == (0, True)
    assert any("request_cancelled" in line for line in told)
    assert (missing.code, "is under way" in missing.err) == (4, True)
    (finished,) = after["finished"]
    assert (finished["id"], finished["error"]) == ("long-one", "request_cancelled")
    assert after["running"] == []


@pytest.mark.parametrize("key", ["two words", "ümlaut", "line\nbreak"])
def test_a_key_that_no_header_can_hold_is_refused_without_being_repeated(
    owner: tuple[str, Path, Run], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    _, _, run = owner
    use(key, monkeypatch)
    refused = run("ps")

    assert (refused.code, key in refused.err) == (2, False)
    assert "MODELYARD_API_KEY" in refused.err
    assert os.environ["MODELYARD_API_KEY"] == key
