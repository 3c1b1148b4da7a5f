"""The embedding and rerank server, inside the test's own process, next to its libraries."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import pytest_asyncio
from httpx import ASGITransport, AsyncClient, Response
from safetensors import SafetensorError

from modelyard.engines.transformers import Transformers
from modelyard.servers.lifeline import Unusable
from modelyard.servers.transformers.settings import Duty, Settings
from modelyard.servers.transformers.web import Application

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLOSE = 2e-6
"""Largest difference to the library: the order of additions depends on who shares a batch."""
TEXTS = [
    "the cat sat on the mat",
    "what is the moon?",
    "bread",
    "knead the flour with water and yeast, and bake it at the city of berlin by the river",
    "a planet orbits a star",
]
QUESTION = "how to bake bread"

Server = Callable[..., Awaitable[AsyncClient]]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def server(tiny_models: Path) -> AsyncIterator[Server]:
    """`await server("mean", "embedding")`: a client of that model, made once for each."""
    clients: dict[tuple[object, ...], AsyncClient] = {}

    async def begin(name: str, *tasks: str, **settings: Any) -> AsyncClient:
        key = (name, tasks, tuple(sorted(settings.items())))
        if key not in clients:
            app = await loaded(tiny_models / name, tasks, Settings(**settings))
            clients[key] = AsyncClient(transport=ASGITransport(app), base_url="http://engine")
        return clients[key]

    yield begin
    for client in clients.values():
        await client.aclose()


async def loaded(folder: Path, tasks: tuple[str, ...], settings: Settings) -> Application:
    from modelyard.servers.transformers.loading import load

    app = Application(["tiny", "gpt-4o"], [Duty(task) for task in tasks], settings)
    app.computing.start(lambda: load(str(folder), tasks[0], settings))
    async with asyncio.timeout(60):
        while app.computing.model is None:
            await asyncio.sleep(0.01)
    return app


def sentence_transformer(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


def cross_encoder(folder: Path, **more: Any) -> Any:
    from sentence_transformers import CrossEncoder

    return CrossEncoder(str(folder), device="cpu", **more)


async def embed(client: AsyncClient, given: object, **more: object) -> npt.NDArray[np.float32]:
    answer = await client.post("/v1/embeddings", json={"model": "tiny", "input": given, **more})
    assert answer.status_code == 200, answer.text
    return np.array([each["embedding"] for each in answer.json()["data"]], dtype=np.float32)


async def rerank(client: AsyncClient, **more: object) -> list[dict[str, Any]]:
    asked = {"query": QUESTION, "documents": TEXTS, **more}
    answer = await client.post("/v1/rerank", json=asked)
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


def by_index(results: list[dict[str, Any]]) -> list[float]:
    return [each["relevance_score"] for each in sorted(results, key=lambda one: int(one["index"]))]


def apart(left: Any, right: Any) -> float:
    return float(np.max(np.abs(np.asarray(left, dtype=np.float64) - np.asarray(right))))


# --------------------------------------------------------------------------------- same as library


@pytest.mark.parametrize("kind", ["mean", "cls-normalized", "prompted", "static"])
async def test_vectors_are_those_of_the_library(
    server: Server, tiny_models: Path, kind: str
) -> None:
    expected = sentence_transformer(tiny_models / kind).encode(TEXTS)

    assert apart(await embed(await server(kind, "embedding"), TEXTS), expected) < CLOSE


async def test_a_text_gives_the_same_vector_alone_and_in_company(server: Server) -> None:
    client = await server("mean", "embedding")
    alone = [(await embed(client, text))[0] for text in TEXTS]
    together = await asyncio.gather(*(embed(client, [text]) for text in TEXTS * 5))

    assert apart([each[0] for each in together], alone * 5) < CLOSE


@pytest.mark.parametrize(
    ("named", "library"),
    [
        ({"input_type": "query"}, "encode_query"),
        ({"input_type": "search_document"}, "encode_document"),
    ],
)
async def test_prompts_of_the_model_card_are_those_of_the_task(
    server: Server, tiny_models: Path, named: dict[str, str], library: str
) -> None:
    expected = getattr(sentence_transformer(tiny_models / "prompted"), library)(TEXTS)

    assert apart(await embed(await server("prompted", "embedding"), TEXTS, **named), expected) < (
        CLOSE
    )


async def test_a_prompt_can_be_named(server: Server, tiny_models: Path) -> None:
    client = await server("prompted", "embedding")
    expected = sentence_transformer(tiny_models / "prompted").encode(TEXTS, prompt_name="document")

    assert apart(await embed(client, TEXTS, prompt_name="document"), expected) < CLOSE


async def test_an_input_that_is_cut_is_cut_as_the_library_cuts(
    server: Server, tiny_models: Path
) -> None:
    client = await server("mean", "embedding")
    long = "the river runs to the city of paris " * 20
    expected = sentence_transformer(tiny_models / "mean").encode([long])

    assert apart(await embed(client, long, truncate_prompt_tokens=-1), expected) < CLOSE
    assert apart(await embed(client, long, truncate=True), expected) < CLOSE
    assert (
        apart(
            await embed(client, long, truncate_prompt_tokens=5),
            await embed(client, "the river runs"),
        )
        < CLOSE
    )


async def test_dimensions_are_the_first_ones_of_length_1_again(
    server: Server, tiny_models: Path
) -> None:
    client = await server("prompted", "embedding")
    model = sentence_transformer(tiny_models / "prompted")
    expected = model.encode(TEXTS, truncate_dim=5, normalize_embeddings=True)

    assert apart(await embed(client, TEXTS, dimensions=5), expected) < CLOSE


async def test_vectors_that_are_no_unit_vectors_stay_as_they_are_when_cut(server: Server) -> None:
    client = await server("mean", "embedding")
    whole = await embed(client, TEXTS)

    assert apart(await embed(client, TEXTS, dimensions=7), whole[:, :7]) < CLOSE


async def test_settings_normalise_and_cut_vectors(server: Server, tiny_models: Path) -> None:
    client = await server("mean", "embedding", normalize_embeddings=True, truncate_dim=8)
    model = sentence_transformer(tiny_models / "mean")
    expected = model.encode(TEXTS, normalize_embeddings=True, truncate_dim=8)

    assert apart(await embed(client, TEXTS), expected) < CLOSE


async def test_base64_holds_the_same_numbers(server: Server) -> None:
    client = await server("mean", "embedding")
    asked = {"input": TEXTS, "encoding_format": "base64"}
    data = (await client.post("/v1/embeddings", json=asked)).json()["data"]
    vectors = [np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in data]

    assert apart(vectors, await embed(client, TEXTS)) < CLOSE


async def test_tokens_are_taken_as_they_are(server: Server, tiny_models: Path) -> None:
    client = await server("mean", "embedding")
    tokens = sentence_transformer(tiny_models / "mean").tokenizer(TEXTS)["input_ids"]
    by_text = await embed(client, TEXTS)

    assert apart(await embed(client, tokens), by_text) < CLOSE
    assert apart(await embed(client, tokens[0]), by_text[:1]) < CLOSE


@pytest.mark.parametrize("kind", ["mean", "static"])
async def test_usage_counts_what_was_read(server: Server, tiny_models: Path, kind: str) -> None:
    client = await server(kind, "embedding")
    counts = [
        (await client.post("/tokenize", json={"prompt": text})).json()["count"] for text in TEXTS
    ]
    usage = (await client.post("/v1/embeddings", json={"input": TEXTS})).json()["usage"]

    assert usage == {"prompt_tokens": sum(counts), "total_tokens": sum(counts)}


@pytest.mark.parametrize("placed", [{"max_memory": {"cpu": "4GiB"}}, {"dtype": "bfloat16"}])
async def test_a_model_is_placed_and_typed_as_the_settings_say(
    tiny_models: Path, placed: dict[str, Any]
) -> None:
    app = await loaded(tiny_models / "mean", ("embedding",), Settings(**placed))
    model = app.computing.model
    expected = sentence_transformer(tiny_models / "mean").encode(TEXTS)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://engine") as client:
        found = await embed(client, TEXTS)

    assert model is not None
    assert str(model.model.dtype) == f"torch.{placed.get('dtype', 'float32')}"
    assert apart(found, expected) < (CLOSE if "max_memory" in placed else 0.2)


async def test_weights_that_fit_nowhere_are_read_from_the_disk_as_they_are_needed(
    tiny_models: Path, tmp_path: Path
) -> None:
    settings = Settings(
        max_memory={"cpu": 20_000},
        offload_folder=str(tmp_path),
    )
    app = await loaded(tiny_models / "mean", ("embedding",), settings)
    expected = sentence_transformer(tiny_models / "mean").encode(TEXTS)
    assert app.computing.model is not None
    devices = {each.device.type for each in app.computing.model.model.parameters()}
    async with AsyncClient(transport=ASGITransport(app), base_url="http://engine") as client:
        found = await embed(client, TEXTS)

    assert "meta" in devices
    assert apart(found, expected) < CLOSE


# ------------------------------------------------------------------------------------------ rerank


async def test_a_cross_encoder_scores_as_the_library_does(
    server: Server, tiny_models: Path
) -> None:
    expected = cross_encoder(tiny_models / "cross").predict([(QUESTION, text) for text in TEXTS])
    results = await rerank(await server("cross", "rerank"))

    assert apart(by_index(results), expected) < CLOSE
    assert [each["index"] for each in results] == list(np.argsort(-expected, kind="stable"))


async def test_raw_scores_are_those_before_the_activation(
    server: Server, tiny_models: Path
) -> None:
    from torch.nn import Identity

    model = cross_encoder(tiny_models / "cross")
    expected = model.predict([(QUESTION, text) for text in TEXTS], activation_fn=Identity())
    results = await rerank(await server("cross", "rerank"), raw_scores=True)

    assert apart(by_index(results), expected) < CLOSE * 5


async def test_qwen3_reranker_gets_the_words_it_was_trained_with(
    server: Server, tiny_models: Path
) -> None:
    """By the formula of its model card: the odds of `yes` against `no` after its template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(tiny_models / "qwen3-reranker")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])

    def scored(document: str, task: str) -> float:
        text = (
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the "
            'Query and the Instruct provided. Note that the answer can only be "yes" or "no".'
            f"<|im_end|>\n<|im_start|>user\n<Instruct>: {task}\n<Query>: {QUESTION}\n<Document>: "
            f"{document}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        )
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            last = model(input_ids=ids).logits[0, -1]
        return float(torch.softmax(last[[no, yes]], 0)[1])

    client = await server("qwen3-reranker", "rerank")
    usual = "Given a web search query, retrieve relevant passages that answer the query"
    for told, task in (({}, usual), ({"instruction": "find the cat"}, "find the cat")):
        results = await rerank(client, **told)
        assert apart(by_index(results), [scored(text, task) for text in TEXTS]) < CLOSE * 5


async def test_late_interaction_compares_token_by_token(server: Server, tiny_models: Path) -> None:
    from sentence_transformers import MultiVectorEncoder

    model = MultiVectorEncoder(str(tiny_models / "late"), device="cpu")
    expected = model.similarity(model.encode_query([QUESTION]), model.encode_document(TEXTS))[0]
    results = await rerank(await server("late", "rerank"))

    assert apart(by_index(results), expected) < CLOSE * 50  # sums of 16 numbers around 1


async def test_an_embedding_model_reranks_by_similarity(server: Server, tiny_models: Path) -> None:
    model = sentence_transformer(tiny_models / "prompted")
    query, documents = model.encode_query([QUESTION]), model.encode_document(TEXTS)
    results = await rerank(await server("prompted", "embedding", "rerank"))

    assert apart(by_index(results), model.similarity(query, documents)[0]) < CLOSE


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
async def test_every_spelling_of_rerank_takes_top_n_and_objects(server: Server, path: str) -> None:
    client = await server("cross", "rerank")
    documents = [{"text": text} for text in TEXTS]
    asked = {"query": QUESTION, "documents": documents, "top_n": 2, "return_documents": True}
    results = (await client.post(path, json=asked)).json()["results"]

    assert len(results) == 2
    assert all(each["document"] == {"text": TEXTS[each["index"]]} for each in results)
    assert results[0]["relevance_score"] >= results[1]["relevance_score"]


@pytest.mark.parametrize("kind", ["cross", "late", "prompted"])
async def test_score_pairs_one_with_many_or_each_with_its_own(server: Server, kind: str) -> None:
    tasks = ("embedding", "rerank") if kind == "prompted" else ("rerank",)
    client = await server(kind, *tasks)
    expected = by_index(await rerank(client))

    async def scores(**asked: object) -> list[float]:
        answer = (await client.post("/v1/score", json=asked)).json()
        return [each["score"] for each in answer["data"]]

    for asked in (
        {"text_1": QUESTION, "text_2": TEXTS},
        {"text_1": [QUESTION] * 5, "text_2": TEXTS},
        {"queries": QUESTION, "documents": TEXTS},
    ):
        assert apart(await scores(**asked), expected) < CLOSE * 50


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"input": "the cat " * 40}, "input 0 has 82 tokens, and at most 64 are read"),
        ({"input": ["a", "b " * 80]}, "input 1 has 82 tokens"),
        ({"input": "a" * 65_000}, "input 0 has 65000 characters, and the model reads 64 tokens"),
        ({"input": []}, "input is empty"),
        ({"input": ["a"] * 11}, "input has 11 texts; at most 10 are taken"),
        ({"input": ["a", 3]}, "input 1 is no text, as those before it are"),
        ({"input": [[1, "a"]]}, "input 0 is neither a text nor a list of tokens"),
        ({"input": [[]]}, "input 0 has no tokens"),
        ({"input": [[1, 9999]]}, "input 0 has a token that this model does not know"),
        ({"input": [-1]}, "input 0 has a token that this model does not know"),
        ({"input": [5] * 70}, "input 0 has 70 tokens, and at most 64 are read"),
        ({"input": [5], "prompt_name": "x"}, "tokens cannot be given a prompt"),
        ({"input": "a", "prompt_name": "x"}, "this model has no prompt 'x'; it has document"),
        ({"input": "a", "input_type": "x"}, "input_type cannot be 'x'; write one of query"),
        ({"input": "a", "dimensions": 33}, "this model's vectors have 32 dimensions, not 33"),
        ({"input": "a", "dimensions": 0}, "the request is not what this route takes"),
        ({"input": "a", "encoding_format": "hex"}, "the request is not what this route takes"),
        ({"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens: 0 would leave"),
        ({"input": {"a": 1}}, "the request is not what this route takes"),
        ({}, "the request is not what this route takes: Object missing required field `input`"),
        ([], "the request is not what this route takes"),
    ],
)  # fmt: skip
async def test_an_embedding_request_that_cannot_be_served_is_told_why(
    server: Server, body: object, told: str
) -> None:
    client = await server("mean", "embedding", max_inputs=10)
    answer = await client.post("/v1/embeddings", json=body)

    assert answer.status_code == 400
    assert refusal(answer)["message"].startswith(told)
    assert refusal(answer)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"query": "a", "documents": []}, "documents is empty"),
        ({"query": "a", "documents": [1]}, "documents[0] must be a text, or an object with one"),
        ({"query": "a", "documents": [{"t": "x"}]}, "documents[0] must be a text"),
        ({"query": "a", "documents": ["b " * 80]}, "input 0 has 84 tokens"),
        ({"query": "a"}, "the request is not what this route takes"),
        ({"query": "a", "documents": ["b"], "top_n": 0}, "the request is not what this route"),
    ],
)  # fmt: skip
async def test_a_rerank_request_that_cannot_be_served_is_told_why(
    server: Server, body: object, told: str
) -> None:
    answer = await (await server("cross", "rerank")).post("/v1/rerank", json=body)

    assert answer.status_code == 400
    assert refusal(answer)["message"].startswith(told)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"text_1": "a"}, "text_2 is missing"),
        ({"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_1 has 2 texts and text_2 3"),
    ],
)
async def test_a_score_request_that_cannot_be_served_is_told_why(
    server: Server, body: object, told: str
) -> None:
    answer = await (await server("cross", "rerank")).post("/score", json=body)

    assert (answer.status_code, refusal(answer)["message"][: len(told)]) == (400, told)


@pytest.mark.parametrize(
    ("body", "told"),
    [(b"{", "the body is not JSON"), (b"\xff", "the body is not JSON"), (b"", "the body is not"),
     (b"[" * 100_000, "the request is not what"), (b'"\\ud800"', "the ")],
)  # fmt: skip
async def test_a_body_that_is_no_json_is_refused(server: Server, body: bytes, told: str) -> None:
    answer = await (await server("mean", "embedding")).post("/v1/embeddings", content=body)

    assert answer.status_code == 400
    assert refusal(answer)["message"].startswith(told)


async def test_half_a_surrogate_is_no_reason_to_fail(server: Server) -> None:
    client = await server("mean", "embedding")
    answer = await client.post("/v1/embeddings", content=b'{"input": "cat \\ud800 dog"}')

    assert answer.status_code in (200, 400, 422)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/embeddings", 405), ("POST", "/v1/rerank", 404), ("GET", "/", 404),
     ("POST", "/health", 404)],
)  # fmt: skip
async def test_only_routes_of_its_tasks_are_there(
    server: Server, method: str, path: str, status: int
) -> None:
    answer = await (await server("mean", "embedding")).request(method, path, json={})

    assert answer.status_code == status
    assert refusal(answer)["message"]


async def test_a_body_beyond_the_bound_is_refused(server: Server) -> None:
    client = await server("mean", "embedding", max_body_bytes=1000)
    answer = await client.post("/v1/embeddings", json={"input": "a" * 2000})

    assert (answer.status_code, refusal(answer)["message"]) == (
        413, "the body is larger than 1000 bytes",
    )  # fmt: skip


async def test_more_than_the_queue_holds_is_turned_away_at_once(server: Server) -> None:
    client = await server("mean", "embedding", max_queue=4, max_inputs=4)
    answers = await asyncio.gather(
        *(client.post("/v1/embeddings", json={"input": ["a", "b", "c"]}) for _ in range(8))
    )
    turned_away = [answer for answer in answers if answer.status_code == 503]

    assert {answer.status_code for answer in answers} == {200, 503}
    assert {refusal(answer)["code"] for answer in turned_away} == {"queue_full"}
    assert (await embed(client, "a")).shape == (1, 32)


async def test_all_names_are_listed_and_the_one_used_is_in_the_answer(server: Server) -> None:
    client = await server("mean", "embedding")
    models = (await client.get("/v1/models")).json()["data"]
    asked = {"model": "gpt-4o", "input": "a"}
    answer = (await client.post("/v1/embeddings", json=asked)).json()

    assert [each["id"] for each in models] == ["tiny", "gpt-4o"]
    assert {each["max_model_len"] for each in models} == {64}
    assert answer["model"] == "gpt-4o"


async def test_what_is_not_begun_for_a_client_that_has_gone_is_not_computed(
    tiny_models: Path,
) -> None:
    app = await loaded(tiny_models / "mean", ("embedding",), Settings(batch_size=1))
    many = json.dumps({"input": TEXTS * 200}).encode()

    async def gone() -> dict[str, Any]:
        if not sent:
            sent.append(True)
            return {"type": "http.request", "body": many}
        while not app.computing.counts.inputs:
            await asyncio.sleep(0.001)
        return {"type": "http.disconnect"}

    async def send(_: object) -> None:
        raise AssertionError("nobody is there to be answered")

    sent: list[bool] = []
    scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": []}
    await app(scope, gone, send)

    assert app.computing.waiting == 0
    assert app.computing.counts.inputs < 1000
    async with AsyncClient(transport=ASGITransport(app), base_url="http://engine") as client:
        assert "modelyard_reader_inputs_taken_on 0\n" in (await client.get("/metrics")).text


# ----------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize(
    ("kind", "task", "told"),
    [
        ("classes", "rerank", "gives 3 scores for a text: it sorts into classes"),
        ("late", "embedding", "is a MultiVectorEncoder, which has no single vector"),
        ("cross", "embedding", "is a CrossEncoder, which has no single vector"),
        ("nothing", "embedding", "is not a folder"),
        ("", "embedding", "holds no model: neither config.json nor modules.json"),
    ],
)
async def test_a_folder_of_another_kind_is_refused_with_what_it_is(
    tiny_models: Path, kind: str, task: str, told: str
) -> None:
    from modelyard.servers.transformers.loading import load

    with pytest.raises(Unusable, match=told):
        load(str(tiny_models / kind), task, Settings())


async def test_damaged_weights_are_told_as_such(tiny_models: Path, tmp_path: Path) -> None:
    from modelyard.servers.transformers.loading import load

    folder = tmp_path / "damaged"
    shutil.copytree(tiny_models / "mean", folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(SafetensorError) as raised:
        load(str(folder), "embedding", Settings())
    line = f"modelyard: the model could not be loaded: {raised.type.__name__}: {raised.value}"
    failure = Transformers("python").failure("exit code 1", [line])

    assert failure.permanent
    assert failure.reason.startswith("the weights are incomplete or damaged")


async def test_a_writer_whose_template_shows_no_pair_needs_one(
    tiny_models: Path, tmp_path: Path
) -> None:
    """Without ChatML's tokens it is no Qwen3-Reranker, and nobody knows what words it needs."""
    from modelyard.servers.transformers.loading import load

    folder = tmp_path / "writer"
    shutil.copytree(tiny_models / "qwen3-base", folder)
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("<|im_start|>", "<|begin|>"))
    with pytest.raises(Unusable, match="shows neither query nor document; give one with"):
        load(str(folder), "rerank", Settings())


async def test_a_template_of_ones_own_is_used(tiny_models: Path) -> None:
    template = "{{ messages[0].content }} and {{ messages[1].content }}"
    folder = tiny_models / "qwen3-reranker"
    app = await loaded(folder, ("rerank",), Settings(chat_template=template))
    async with AsyncClient(transport=ASGITransport(app), base_url="http://engine") as client:
        own = by_index(await rerank(client))
    model = cross_encoder(folder, processor_kwargs={"chat_template": template})
    expected = model.predict([(QUESTION, text) for text in TEXTS])

    assert apart(own, expected) < CLOSE * 5


def refusal(answer: Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    return error
