"""OpenAI's Node client passes a suite of its own, `node/suite.mjs`, against real models.

`make test` installs the client into tests/clients/node/node_modules; Node 20 or newer is needed.
"""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import pytest
from tests.conftest import Serve

from modelyard.testing.server import DEMO_MODELS, fake_model

pytestmark = pytest.mark.usefixtures("nothing_left")

HERE = Path(__file__).parent / "node"
TESTS = 14


@pytest.mark.shows(route="/v1/chat/completions", engine="llamacpp", dialect="openai")
@pytest.mark.shows(route="/v1/embeddings", engine="llamacpp", dialect="openai")
@pytest.mark.shows(route="/v1/responses", engine="llamacpp", dialect="responses")
@pytest.mark.shows(route="/v1/responses", engine="command", dialect="responses")
async def test_the_node_client_passes_its_suite(serve: Serve) -> None:
    models = fake_model("skilled", "--skilled"), fake_model("cut", "--cut-after", "3")
    async with serve(*models, dirs=(DEMO_MODELS,)) as server:
        node = await asyncio.create_subprocess_exec(
            "node",
            "--test",
            "--test-reporter=tap",
            "suite.mjs",
            cwd=HERE,
            env={"MODELYARD_URL": server.url, "PATH": os.environ["PATH"]},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        told, _ = await node.communicate()

    text = told.decode()
    assert node.returncode == 0, text
    passed = re.search(r"^# pass (\d+)$", text, re.MULTILINE)
    assert passed is not None
    assert int(passed[1]) == TESTS
