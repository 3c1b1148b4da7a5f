"""The engine `transformers` behind Modelyard: the numbers of the libraries, and of llama.cpp."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from httpx import AsyncClient

from modelyard.core.specs import ModelSpec, OptionValue, Task
from modelyard.testing.server import DEMO_MODELS

CLOSE = 2e-6
ACROSS_ENGINES = 5e-3
"""llama.cpp rounds activations to 8 bits where the weights have 8."""
TEXTS = [
    "How do I bake bread?",
    "The moon orbits the earth once a month.",
    "Knead flour, water and yeast, and let the dough rise before you bake it.",
    "A dog.",
    "面包怎么做？",
    "Trains leave the station every hour, and the last one goes at midnight.",
]
QUESTION = "how to bake bread"


def model(name: str, source: Path, *tasks: Task, **options: OptionValue) -> ModelSpec:
    return ModelSpec(
        name,
        "transformers",
        frozenset(tasks),
        source=str(source),
        options=options,
        estimate_mib=900,
    )


@pytest.mark.shows(
    route=["/v1/embeddings", "/v1/score", "/score"], engine="transformers", dialect="openai"
)
@pytest.mark.shows(route="/v1/rerank", engine="transformers", dialect="rerank")
@pytest.mark.shows(route="/v2/rerank", engine="transformers", dialect="rerank")
@pytest.mark.shows(route="/rerank", engine="transformers", dialect="rerank")
async def test_fifty_mixed_requests_get_what_the_libraries_give(
    serve: Any, trained_models: Path, nothing_left: None, capsys: pytest.CaptureFixture[str]
) -> None:
    from sentence_transformers import CrossEncoder, SentenceTransformer

    embedder = SentenceTransformer(str(trained_models / "embedder-model"), device="cpu")
    reranker = CrossEncoder(str(trained_models / "reranker-model"), device="cpu")
    vectors = embedder.encode(TEXTS)
    cut = embedder.encode(TEXTS, truncate_dim=16, normalize_embeddings=True)
    tokens = embedder.tokenizer(TEXTS)["input_ids"]
    scores = reranker.predict([(QUESTION, text) for text in TEXTS])

    embed = model("embed", trained_models / "embedder-model", Task.EMBEDDING)
    rank = model("rank", trained_models / "reranker-model", Task.RERANK)
    source = str(DEMO_MODELS / "yard-embed.gguf")
    llama = ModelSpec("llama", "llamacpp", frozenset({Task.EMBEDDING}), source=source)
    async with (
        serve(embed, rank, llama, mib=4000) as running,
        AsyncClient(base_url=running.url, timeout=60) as client,
    ):

        async def embedded(given: object, expected: Any, **more: object) -> float:
            asked = {"model": "embed", "input": given, **more}
            answer = await client.post("/v1/embeddings", json=asked)
            assert answer.status_code == 200, answer.text
            data = [each["embedding"] for each in answer.json()["data"]]
            if more.get("encoding_format") == "base64":
                data = [np.frombuffer(base64.b64decode(each), "<f4") for each in data]
            return float(np.max(np.abs(np.asarray(data, dtype=np.float64) - expected)))

        async def ranked(path: str) -> float:
            asked = {"model": "rank", "query": QUESTION, "documents": TEXTS}
            answer = await client.post(path, json=asked)
            assert answer.status_code == 200, answer.text
            results = answer.json()["results"]
            assert [each["index"] for each in results] == list(np.argsort(-scores, kind="stable"))
            return float(max(abs(r["relevance_score"] - scores[r["index"]]) for r in results))

        alone = [
            await embedded(TEXTS[0], vectors[:1]),
            await embedded(TEXTS, vectors),
            await ranked("/v1/rerank"),
        ]
        together = await asyncio.gather(
            *(embedded(text, vectors[[at]]) for at, text in enumerate(TEXTS * 3) if at < 6),
            *(embedded(TEXTS, vectors) for _ in range(8)),
            *(embedded(TEXTS, cut, dimensions=16) for _ in range(8)),
            *(embedded(tokens, vectors, encoding_format="base64") for _ in range(8)),
            *(ranked(path) for path in ("/v1/rerank", "/rerank", "/v2/rerank", "/v1/rerank") * 5),
        )
        pairs = {"model": "rank", "text_1": QUESTION, "text_2": TEXTS}
        scored = [(await client.post(path, json=pairs)).json() for path in ("/v1/score", "/score")]
        asked = {"model": "llama", "input": TEXTS}
        answer = (await client.post("/v1/embeddings", json=asked)).json()
        other = np.array([each["embedding"] for each in answer["data"]])
    with capsys.disabled():
        print(f"\nmax abs difference alone {max(alone):.1e}, together {max(together):.1e}")

    assert len(together) == 50
    for told in scored:
        assert [each["score"] for each in told["data"]] == pytest.approx(list(scores), abs=CLOSE)
    assert max(alone + together) < CLOSE
    assert np.max(np.abs(other - vectors)) < ACROSS_ENGINES
    assert np.min(np.sum(other * vectors, axis=1)) > 0.9999
