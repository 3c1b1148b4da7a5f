"""What a model is for: the words for it, and how the header of a GGUF file tells it.

Laws of this file:
- Pure: a header and a file name in, a verdict out; the first rule that matches decides.
- Pooling goes before the chat template: embedding models inherit the template of the chat model
  they were made from, and a template alone proves nothing.
- The verdict says which fact of the file decided it, so that a person can check it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from modelyard.catalog.gguf import GgufHeader, Omitted
from modelyard.core.specs import Task

POOLING_RANK: Final = 4
POOLING_EMBEDDING: Final = (1, 2, 3)
"""Mean, first token, last token: `llama_pooling_type` in llama.h; 0 is none, 4 is rank."""

_CLASSIFIER_TENSORS: Final = frozenset({"cls.weight", "cls.output.weight"})
_ENCODERS: Final = frozenset({"t5encoder"})
_BASE_WORDS: Final = frozenset({"base", "pretrain", "pretrained"})
_CODECS: Final = frozenset({"wavtokenizer-dec"})
_SHARD: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.I)


class Kind(StrEnum):
    """What a file is. Only a `MODEL` can be asked anything."""

    MODEL = "model"
    PROJECTOR = "projector"
    """Turns images or sound into input for the model that lies beside it."""
    ADAPTER = "adapter"
    DRAFT = "draft"
    """Guesses ahead for a larger model (speculative decoding); of no use alone."""
    IMATRIX = "imatrix"
    VOCABULARY = "vocabulary"
    UNSERVED = "unserved"
    """A model of a kind that no engine here serves."""


class Ability(StrEnum):
    """What a model does, finer than the tasks that requests can name."""

    CHAT = "chat"
    BASE = "base"
    """Goes on with a text; it was not taught to converse."""
    EMBEDDING = "embedding"
    RERANK = "rerank"
    CLASSIFICATION = "classification"
    """Labels or rewards: a number for each of several classes, or for how good an answer is."""
    TRANSCRIPTION = "transcription"
    SPEECH = "speech"
    IMAGE = "image"
    """Draws images. A model that looks at them has `Input.IMAGE`."""


class Input(StrEnum):
    """What a model takes besides text."""

    IMAGE = "image"
    AUDIO = "audio"
    VIDEO = "video"


TASKS: Final[Mapping[Ability, frozenset[Task]]] = MappingProxyType(
    {
        Ability.CHAT: frozenset({Task.CHAT, Task.COMPLETION}),
        Ability.BASE: frozenset({Task.COMPLETION}),
        Ability.EMBEDDING: frozenset({Task.EMBEDDING}),
        Ability.RERANK: frozenset({Task.RERANK}),
        Ability.CLASSIFICATION: frozenset({Task.CLASSIFICATION}),
        Ability.TRANSCRIPTION: frozenset({Task.TRANSCRIPTION}),
        Ability.SPEECH: frozenset({Task.SPEECH}),
        Ability.IMAGE: frozenset({Task.IMAGE}),
    }
)
"""The tasks of each ability."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a file is, which tasks it serves (none unless it is a model), and what told so."""

    kind: Kind
    tasks: frozenset[Task]
    reason: str
    ability: Ability | None = None
    inputs: frozenset[Input] = frozenset()


def model_verdict(ability: Ability, reason: str, inputs: frozenset[Input] = frozenset()) -> Verdict:
    """A model with this ability."""
    return Verdict(Kind.MODEL, TASKS[ability], reason, ability, inputs)


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of a split model, by its name `{stem}-{number}-of-{count}.gguf`."""

    stem: str
    number: int
    count: int

    def file_name(self, number: int, suffix: str) -> str:
        """The name of another file of the same model; `suffix` as this file spells it."""
        return f"{self.stem}-{number:05d}-of-{self.count:05d}{suffix}"


def shard_of(file_name: str) -> Shard | None:
    """Which file of a split model this is; None for a model in one file."""
    match = _SHARD.fullmatch(file_name)
    if match is None:
        return None
    return Shard(match["stem"], int(match["number"]), int(match["count"]))


def classify(header: GgufHeader, file_name: str) -> Verdict:
    """Tell what a file is; the header of a split model must have the tensors of all its files.

    Raises BadModelFile where the pooling type of the file is no number.
    """
    return _other_than_model(header, file_name) or _model(header)


def _other_than_model(header: GgufHeader, file_name: str) -> Verdict | None:
    def verdict(kind: Kind, reason: str) -> Verdict:
        return Verdict(kind, frozenset(), reason)

    declared = header.metadata.get("general.type")
    if file_name.lower().startswith("mmproj"):
        return verdict(Kind.PROJECTOR, "its name begins with mmproj")
    if header.architecture == "clip" or declared == "mmproj":
        return verdict(Kind.PROJECTOR, "its architecture is clip")
    if declared == "adapter":
        return verdict(Kind.ADAPTER, "general.type is adapter")
    if declared == "imatrix" or header.architecture == "imatrix":
        return verdict(Kind.IMATRIX, "general.type is imatrix")
    if header.architecture is None:
        return verdict(Kind.UNSERVED, "general.architecture is missing")
    if header.architecture in _CODECS:
        return verdict(Kind.UNSERVED, f"{header.architecture} decodes sound")
    if any(key.startswith("diffusion.") for key in header.metadata):
        return verdict(Kind.UNSERVED, "it writes by diffusion, which the llama.cpp server does not")
    if not header.tensors:
        return verdict(Kind.VOCABULARY, "it has no tensors")
    return None


def _model(header: GgufHeader) -> Verdict:
    arch = header.architecture
    pooling = header.count("pooling_type")
    if pooling == POOLING_RANK:
        return model_verdict(Ability.RERANK, f"{arch}.pooling_type is 4 (rank)")
    classifier = _CLASSIFIER_TENSORS.intersection(tensor.name for tensor in header.tensors)
    if classifier:
        return model_verdict(Ability.RERANK, f"it has the tensor {min(classifier)}")
    if isinstance(header.of_model("classifier.output_labels"), Omitted | tuple):
        return model_verdict(Ability.RERANK, f"it has {arch}.classifier.output_labels")
    if pooling in POOLING_EMBEDDING:
        return model_verdict(Ability.EMBEDDING, f"{arch}.pooling_type is {pooling}")
    if not is_causal(header):
        return model_verdict(Ability.EMBEDDING, "its attention looks both ways")
    if "tokenizer.chat_template" not in header.metadata:
        return model_verdict(Ability.BASE, "it has no chat template")
    finetune = header.metadata.get("general.finetune")
    if isinstance(finetune, str) and finetune.lower() in _BASE_WORDS:
        reason = f"general.finetune is {finetune}; its chat template was inherited"
        return model_verdict(Ability.BASE, reason)
    return model_verdict(Ability.CHAT, "it has a chat template")


def is_causal(header: GgufHeader) -> bool:
    """Whether a token sees only those before it, as writing needs. Encoders need no KV cache."""
    if header.of_model("attention.causal") is False:
        return False
    return header.architecture not in _ENCODERS
