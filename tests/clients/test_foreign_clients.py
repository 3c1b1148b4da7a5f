"""LangChain, LlamaIndex and LiteLLM against real models, each in a process of its own.

Their libraries want other versions of ours, so they have an environment of their own, which
`make test` makes: `.venv-clients`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Serve

from modelyard.core.specs import Limits, ModelSpec, Task
from modelyard.testing.server import DEMO_MODELS, Running

pytestmark = pytest.mark.usefixtures("nothing_left")

HERE = Path(__file__).parent
PYTHON = HERE.parents[1] / ".venv-clients" / "bin" / "python"
SUM = "2 + 3 = 5."
CALL = ["weather", {"city": "Rome"}]
CALLING = ModelSpec(
    "caller",
    "command",
    frozenset({Task.CHAT}),
    command=(sys.executable, str(HERE / "calling_engine.py"), "{port}"),
    estimate_mib=10,
    limits=Limits(stop_grace_s=2.0),
)


@pytest.fixture
async def server(serve: Serve) -> AsyncIterator[Running]:
    async with serve(CALLING, dirs=(DEMO_MODELS,)) as server:
        yield server


async def told(script: str, server: Running, *models: str) -> Any:
    """What a script says of the answers that its library got."""
    assert PYTHON.exists(), "no environment for these clients: `make test` makes it"
    environment = {
        name: value for name, value in os.environ.items() if name in ("HOME", "PATH", "TMPDIR")
    } | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "*"}
    process = await asyncio.create_subprocess_exec(
        PYTHON,
        HERE / "foreign" / f"{script}_script.py",
        server.url,
        *models,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        said, complaints = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0, complaints.decode()[-4000:]
    return json.loads(said.splitlines()[-1])


@pytest.mark.shows(route="/v1/chat/completions", engine="llamacpp", dialect="openai")
@pytest.mark.shows(route="/v1/embeddings", engine="llamacpp", dialect="openai")
@pytest.mark.shows(route="/api/chat", engine="llamacpp", dialect="ollama")
@pytest.mark.shows(route="/api/embed", engine="llamacpp", dialect="ollama")
async def test_langchain_speaks_openai_and_ollama(server: Running) -> None:
    answers = await told("langchain", server, "yard-chat", "caller", "yard-embed")

    for answer in answers.values():
        assert (answer["whole"], answer["streamed"]) == (SUM, SUM)
        assert answer["parts"] > 3
        whole, streamed = answer["usage"]
        assert whole["output_tokens"] > 5
        assert whole["total_tokens"] == streamed["total_tokens"]
        assert answer["called"] == [CALL]
        assert answer["answered"].strip() == "It said: warm in Rome"
        assert answer["structured"]
        assert answer["vectors"] == [192, 192]
        assert "nobody" in answer["error"]
    assert "model_not_found" in answers["openai"]["error"]
    assert answers["ollama"]["error"].startswith("ResponseError")


@pytest.mark.shows(route="/v1/chat/completions", engine="llamacpp", dialect="openai")
@pytest.mark.shows(route="/v1/completions", engine="llamacpp", dialect="openai")
@pytest.mark.shows(route="/v1/embeddings", engine="llamacpp", dialect="openai")
async def test_llamaindex_speaks_openai(server: Running) -> None:
    answer = await told("llamaindex", server, "yard-chat", "caller", "yard-embed")

    assert (answer["whole"], answer["streamed"]) == (SUM, SUM)
    assert answer["parts"] > 3
    assert answer["called"] == [CALL]
    assert "model" in answer["completed"]
    assert answer["vectors"] == [192, 192]
    assert answer["error"].startswith("NotFoundError")


@pytest.mark.shows(route="/v1/chat/completions", engine="llamacpp", dialect="openai")
@pytest.mark.shows(route="/api/chat", engine="llamacpp", dialect="ollama")
@pytest.mark.shows(route="/v1/rerank", engine="llamacpp", dialect="rerank")
@pytest.mark.shows(route="/v2/rerank", engine="llamacpp", dialect="rerank")
async def test_litellm_speaks_openai_ollama_and_rerank(server: Running) -> None:
    models = ("yard-chat", "caller", "yard-embed", "yard-rerank")
    answers = await told("litellm", server, *models)

    for dialect in ("openai", "ollama"):
        answer = answers[dialect]
        assert (answer["whole"], answer["streamed"]) == (SUM, SUM)
        assert all(count > 5 for count in answer["usage"])
        assert answer["called"] == [CALL]
        assert "nobody" in answer["error"]
    assert answers["openai"]["error"].startswith("NotFoundError")
    assert answers["vectors"] == [192, 192]
    assert answers["ranked"] == [[1], [1]]
