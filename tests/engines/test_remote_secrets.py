"""Keys that are written down encrypted: from the command to the upstream."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from tests.conftest import Serve
from tests.http.remote_peer import peer, remote

from modelyard.app import engine_problems
from modelyard.config import Config, Server, load
from modelyard.core.specs import RemoteUpstream
from modelyard.engines.remote import Remote
from modelyard.runtime.vllm_here import VllmHere
from modelyard.store.errors import StoreError
from modelyard.store.sealing import KEY_FILE, Seal

SECRET = "sk-very-secret"


def test_a_secret_comes_back_and_nothing_of_it_is_in_what_is_written(tmp_path: Path) -> None:
    hidden = Seal(tmp_path / "new").hide(SECRET)

    assert hidden.startswith("enc:")
    assert SECRET not in hidden
    assert Seal(tmp_path / "new").reveal(hidden) == SECRET
    assert Seal(tmp_path / "new").reveal("plain") == "plain"


def test_the_key_is_for_its_owner_alone_and_made_once(tmp_path: Path) -> None:
    first = Seal(tmp_path).hide(SECRET)
    made = (tmp_path / KEY_FILE).read_bytes()
    Seal(tmp_path).hide("another")

    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    assert (tmp_path / KEY_FILE).read_bytes() == made
    assert Seal(tmp_path).reveal(first) == SECRET


@pytest.mark.parametrize("harm", ["no key", "another key", "damaged", "nonsense", "readable"])
def test_what_cannot_be_decrypted_is_said_with_the_way_out(tmp_path: Path, harm: str) -> None:
    hidden = Seal(tmp_path).hide(SECRET)
    key = tmp_path / KEY_FILE
    match harm:
        case "no key":
            key.unlink()
        case "another key":
            key.unlink()
            Seal(tmp_path).hide("x")
        case "damaged":
            hidden = hidden[:-6] + "AAAA=="
        case "nonsense":
            key.write_bytes(b"nonsense")
        case "readable":
            key.chmod(0o644)
    upstream = RemoteUpstream("http://h", key=hidden)
    (problem,) = Remote(Seal(tmp_path).reveal).problems(remote(upstream))

    assert problem.startswith("upstreams[0].key: ")
    assert str(key) in problem
    assert SECRET not in problem
    with pytest.raises(StoreError):
        Seal(tmp_path).reveal(hidden)


async def test_an_encrypted_key_reaches_its_upstream_as_it_was(
    serve: Serve, tmp_path: Path
) -> None:
    hidden = Seal(tmp_path / "state").hide(SECRET)  # where `serve` has its state
    async with (
        peer() as there,
        serve(remote(RemoteUpstream(there.url(), key=hidden))) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
    ):
        chat = {"model": "m", "messages": []}
        said = await http.post("/v1/chat/completions", json=chat)

    assert said.status_code == 200
    assert f"authorization: Bearer {SECRET}\r\n".encode() in there.heads[0]


def test_the_command_writes_what_the_configuration_takes(tmp_path: Path) -> None:
    env = {**os.environ, "MODELYARD_SERVER__STATE_DIR": str(tmp_path / "state")}
    command = [sys.executable, "-m", "modelyard.cli", "secret"]
    done = subprocess.run(
        command, input=f"{SECRET}\n", env=env, capture_output=True, text=True, check=True
    )
    hidden = done.stdout.strip()
    file = tmp_path / "modelyard.yaml"
    file.write_text(
        f"models: {{m: {{engine: remote, tasks: [chat], upstreams: [{{url: 'http://h', "
        f"key: '{hidden}'}}]}}}}"
    )
    config = load(file, env=env)
    elsewhere = Config(server=Server(state_dir=tmp_path), models=config.models)

    assert SECRET not in done.stdout + done.stderr
    assert Seal(tmp_path / "state").reveal(hidden) == SECRET
    assert engine_problems(config, VllmHere({})) == []
    assert "models.m.upstreams[0].key: there is no" in engine_problems(elsewhere, VllmHere({}))[0]


@pytest.mark.parametrize("said", ["", "two words\nand lines", "x" * 5000])
def test_what_is_no_key_is_not_encrypted(tmp_path: Path, said: str) -> None:
    env = {**os.environ, "MODELYARD_SERVER__STATE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "modelyard.cli", "secret"]
    done = subprocess.run(command, input=said, env=env, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (2, "")
    assert not (tmp_path / KEY_FILE).exists()
