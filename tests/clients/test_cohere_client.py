"""The official Cohere client, both its versions, against a real reranker."""

from __future__ import annotations

from collections.abc import AsyncIterator

import cohere
import httpx
import pytest
import pytest_asyncio

from modelyard.config import Config, Devices
from modelyard.testing.server import DEMO_MODELS, Running, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUERY = "How do I cook rice?"
DOCUMENTS = [
    "The train to the city leaves at noon.",
    "Rice is cooked in boiling water for fifteen minutes.",
    "Football is played by two teams.",
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """One server for all these tests: none depends on what runs."""
    config = Config(models_dirs=(DEMO_MODELS,), devices=Devices(budget_mib={"cpu": 1000}))
    async with running(config, tmp_path_factory.mktemp("state")) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def v1(server: Running) -> AsyncIterator[cohere.AsyncClient]:
    async with httpx.AsyncClient(timeout=60) as http:
        yield cohere.AsyncClient("any", base_url=server.url, httpx_client=http)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def v2(server: Running) -> AsyncIterator[cohere.AsyncClientV2]:
    async with httpx.AsyncClient(timeout=60) as http:
        yield cohere.AsyncClientV2("any", base_url=server.url, httpx_client=http)


@pytest.mark.shows(route="/v2/rerank", engine="llamacpp", dialect="rerank")
async def test_the_second_version_ranks_strings(v2: cohere.AsyncClientV2) -> None:
    answer = await v2.rerank(model="yard-rerank", query=QUERY, documents=DOCUMENTS, top_n=2)

    assert answer.results[0].index == 1
    assert len(answer.results) == 2
    assert answer.results[0].relevance_score > answer.results[1].relevance_score


@pytest.mark.shows(route="/v1/rerank", engine="llamacpp", dialect="rerank")
async def test_the_first_version_ranks_objects_and_returns_them(v1: cohere.AsyncClient) -> None:
    answer = await v1.rerank(
        model="yard-rerank",
        query=QUERY,
        documents=[{"text": text} for text in DOCUMENTS],
        return_documents=True,
        max_chunks_per_doc=1,
    )

    best = answer.results[0]
    assert best.index == 1
    assert best.document is not None
    assert best.document.text == DOCUMENTS[1]
    assert answer.id
    assert answer.meta is not None
    assert answer.meta.tokens is not None
    assert (answer.meta.tokens.input_tokens or 0) > 10


async def test_chosen_fields_of_a_document_are_ranked(v1: cohere.AsyncClient) -> None:
    answer = await v1.rerank(
        model="yard-rerank",
        query=QUERY,
        documents=[
            {"title": "Trains", "body": DOCUMENTS[0]},
            {"title": "Cooking", "body": DOCUMENTS[1]},
        ],
        rank_fields=["title", "body"],
        top_n=1,
    )

    assert [result.index for result in answer.results] == [1]


async def test_errors_arrive_as_the_clients_own_exceptions(
    v1: cohere.AsyncClient, v2: cohere.AsyncClientV2
) -> None:
    with pytest.raises(cohere.NotFoundError, match="yard-rank"):
        await v2.rerank(model="yard-rank", query=QUERY, documents=DOCUMENTS)
    with pytest.raises(cohere.BadRequestError) as wrong:
        await v1.rerank(model="yard-chat", query=QUERY, documents=DOCUMENTS)
    assert "asks for rerank" in wrong.value.body["message"]


@pytest.mark.shows(route="/rerank", engine="llamacpp", dialect="rerank")
async def test_text_embeddings_inference_is_spoken_on_the_same_path(server: Running) -> None:
    request = {"model": "yard-rerank", "query": QUERY, "texts": DOCUMENTS, "return_text": True}
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        ranked = (await http.post("/rerank", json=request)).json()

    assert ranked[0]["index"] == 1
    assert ranked[0]["text"] == DOCUMENTS[1]
    assert ranked[0].keys() == {"index", "text", "score"}
