"""A trained embedding model that people use, behind Modelyard.

The wheel `wordllama` (MIT licence) contains the weights of `l2_supercat_256`: 32000 vectors of 256
numbers, trained for similarity, which sentence-transformers calls a `StaticEmbedding`.
"""

from __future__ import annotations

import asyncio
import base64
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from httpx import AsyncClient

from modelyard.core.specs import ModelSpec, Task

CLOSE = 1e-6
TEXTS = [
    "How do I bake bread?",
    "Knead flour, water and yeast, and let the dough rise.",
    "The committee raised the tax on tobacco.",
    "A new levy on cigarettes was passed by parliament.",
    "A dog.",
    "Ein Brot, bitte!",
    "x" * 300,
]


@pytest.fixture(scope="module")
def real_embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's weights as a checkpoint of sentence-transformers."""
    from safetensors.numpy import load_file
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    wheel = importlib.util.find_spec("wordllama")
    assert wheel is not None
    assert wheel.origin is not None
    inside = Path(wheel.origin).parent
    weights = load_file(inside / "weights/l2_supercat_256.safetensors")["embedding.weight"]
    tokenizer = Tokenizer.from_file(str(inside / "tokenizers/l2_supercat_tokenizer_config.json"))
    static = StaticEmbedding(tokenizer, embedding_weights=weights.astype(np.float32))
    folder = tmp_path_factory.mktemp("real") / "l2_supercat_256"
    SentenceTransformer(modules=[static], device="cpu").save(str(folder))
    return folder


async def test_a_real_models_vectors_are_those_of_its_library(
    serve: Any, real_embedder: Path, nothing_left: None, capsys: pytest.CaptureFixture[str]
) -> None:
    from sentence_transformers import SentenceTransformer

    library = SentenceTransformer(str(real_embedder), device="cpu")
    vectors = library.encode(TEXTS)
    cut = library.encode(TEXTS, truncate_dim=64)
    spec = ModelSpec(
        "real",
        "transformers",
        frozenset({Task.EMBEDDING}),
        source=str(real_embedder),
        estimate_mib=900,
    )
    async with (
        serve(spec, mib=4000) as running,
        AsyncClient(base_url=running.url, timeout=60) as client,
    ):

        async def off(given: object, expected: Any, **more: object) -> float:
            asked = {"model": "real", "input": given, **more}
            answer = await client.post("/v1/embeddings", json=asked)
            assert answer.status_code == 200, answer.text
            data = [each["embedding"] for each in answer.json()["data"]]
            if more.get("encoding_format") == "base64":
                data = [np.frombuffer(base64.b64decode(each), "<f4") for each in data]
            return float(np.max(np.abs(np.asarray(data, dtype=np.float64) - expected)))

        alone = [await off(TEXTS[0], vectors[:1]), await off(TEXTS, vectors)]
        together = await asyncio.gather(
            *(off(TEXTS[at % 7], vectors[[at % 7]]) for at in range(20)),
            *(off(TEXTS, vectors) for _ in range(10)),
            *(off(TEXTS, cut, dimensions=64) for _ in range(10)),
            *(off(TEXTS[at:], vectors[at:], encoding_format="base64") for at in range(5)),
            *(off(TEXTS[::-1], vectors[::-1]) for _ in range(5)),
        )

    with capsys.disabled():
        print(f"\nreal embedding: alone {max(alone):.1e}, 50 together {max(together):.1e}")
    assert len(together) == 50
    assert max(*alone, *together) <= CLOSE


def test_the_real_model_knows_what_is_alike(real_embedder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    library = SentenceTransformer(str(real_embedder), device="cpu")
    likeness = library.similarity(*[library.encode(TEXTS[:4])] * 2).numpy()

    assert likeness[0, 1] > max(likeness[0, 2:])
    assert likeness[2, 3] > max(likeness[2, :2])
