"""`modelyard connect` against a real server, with a home folder of its own."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest
from tests.conftest import Serve

from modelyard.testing.server import fake_model

pytestmark = pytest.mark.usefixtures("nothing_left")


async def connect(home: Path, *arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "modelyard.cli", "connect", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "HOME": str(home), "XDG_STATE_HOME": str(home / "state"),
             "CODEX_HOME": "", "XDG_CONFIG_HOME": ""},
    )  # fmt: skip
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_a_client_is_shown_connected_and_disconnected(serve: Serve, tmp_path: Path) -> None:
    async with serve(fake_model("m")) as server:
        url = ("--url", server.url)
        shown = await connect(tmp_path, "codex", *url)
        profile = tmp_path / ".codex" / "modelyard.config.toml"
        before = await asyncio.to_thread(profile.exists)
        written = await connect(tmp_path, "codex", "--write", "--json", *url)
        undone = await connect(tmp_path, "codex", "--undo")
        unknown = await connect(tmp_path, "codex", "--model", "nope", *url)

    assert shown[0] == 0
    assert 'wire_api = "responses"' in shown[1]
    assert not before
    assert json.loads(written[1])["files"][0]["action"] == "written"
    assert "removed" in undone[1]
    assert not await asyncio.to_thread(profile.exists)
    assert unknown[0] == 4


async def test_clients_are_listed_and_wrong_use_is_told(tmp_path: Path) -> None:
    listed = await connect(tmp_path, "--json")
    wrong = await connect(tmp_path, "emacs")
    both = await connect(tmp_path, "codex", "--write", "--undo")

    assert "claude-code" in [each["id"] for each in json.loads(listed[1])]
    assert wrong[0] == 2
    assert "modelyard connect openai" in wrong[2]
    assert both[0] == 2
