"""What a file is for, told from its header."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from modelyard.catalog.classify import Kind, Shard, classify, shard_of
from modelyard.catalog.gguf import read_header
from modelyard.core.specs import Task

if TYPE_CHECKING:
    from tests.catalog.conftest import Folder

CHAT = frozenset({Task.CHAT, Task.COMPLETION})
TEMPLATE = {"tokenizer.chat_template": "{{ messages }}"}


@pytest.mark.parametrize(
    ("extra", "tasks"),
    [
        ({}, {Task.COMPLETION}),
        (TEMPLATE, CHAT),
        ({**TEMPLATE, "llama.pooling_type": 0}, CHAT),
        ({"llama.pooling_type": 1}, {Task.EMBEDDING}),
        ({"llama.pooling_type": 2}, {Task.EMBEDDING}),
        ({**TEMPLATE, "llama.pooling_type": 3}, {Task.EMBEDDING}),
        ({**TEMPLATE, "llama.pooling_type": 4}, {Task.RERANK}),
        ({**TEMPLATE, "llama.attention.causal": False}, {Task.EMBEDDING}),
        ({**TEMPLATE, "llama.attention.causal": True}, CHAT),
        ({"llama.classifier.output_labels": ["yes", "no"]}, {Task.RERANK}),
        ({"general.architecture": "t5encoder"}, {Task.EMBEDDING}),
    ],
)
def test_tasks_follow_pooling_then_attention_then_the_template(
    folder: Folder, extra: dict[str, object], tasks: set[Task]
) -> None:
    verdict = classify(read_header(folder.write(extra=extra)), "model.gguf")

    assert verdict.kind is Kind.MODEL
    assert verdict.tasks == tasks


@pytest.mark.parametrize("name", ["cls.weight", "cls.output.weight"])
def test_a_classifier_tensor_makes_a_reranker_of_an_embedding_model(
    folder: Folder, name: str
) -> None:
    path = folder.write(extra={"llama.pooling_type": 2}, tensors=((name, (32,), 0, 128),))

    verdict = classify(read_header(path), path.name)

    assert verdict.tasks == {Task.RERANK}
    assert verdict.reason == f"it has the tensor {name}"


@pytest.mark.parametrize(
    ("name", "extra", "kind"),
    [
        ("mmproj-model-f16.gguf", {}, Kind.PROJECTOR),
        ("MMProj.gguf", {}, Kind.PROJECTOR),
        ("vision.gguf", {"general.architecture": "clip"}, Kind.PROJECTOR),
        ("vision.gguf", {"general.type": "mmproj"}, Kind.PROJECTOR),
        ("lora.gguf", {"general.type": "adapter"}, Kind.ADAPTER),
        ("weights.gguf", {"general.type": "imatrix"}, Kind.IMATRIX),
        ("voice.gguf", {"general.architecture": "wavtokenizer-dec"}, Kind.UNSERVED),
        ("dream.gguf", {"diffusion.shift_logits": True}, Kind.UNSERVED),
    ],
)
def test_files_beside_models_are_told_from_models(
    folder: Folder, name: str, extra: dict[str, object], kind: Kind
) -> None:
    verdict = classify(read_header(folder.write(name, extra)), name)

    assert (verdict.kind, verdict.tasks) == (kind, frozenset())


def test_a_file_without_tensors_is_a_vocabulary(folder: Folder) -> None:
    assert classify(read_header(folder.write(tensors=())), "v.gguf").kind is Kind.VOCABULARY


def test_a_file_that_names_no_architecture_is_not_served(folder: Folder) -> None:
    path = folder.write(without=["general.architecture"])

    assert classify(read_header(path), path.name).reason == "general.architecture is missing"


def test_split_models_are_told_by_their_names() -> None:
    assert shard_of("big-Q4-00002-of-00011.gguf") == Shard("big-Q4", 2, 11)
    assert shard_of("big-2-of-11.gguf") is None
    assert Shard("big", 2, 11).file_name(1, ".GGUF") == "big-00001-of-00011.GGUF"
