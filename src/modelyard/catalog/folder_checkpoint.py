"""A model in a folder of the Hugging Face kind: `config.json`, a tokenizer, weights in files.

Laws of this file:
- A model is whole or not there at all, and what is missing is named.
- A folder that merely holds other things (a LoRA, an image pipeline, a stray `config.json`) is
  told from a broken model.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelyard.catalog.classify import Ability, Kind, Verdict
from modelyard.catalog.classify_folder import classify_folder
from modelyard.catalog.description import CONFIG, Description, describe
from modelyard.catalog.errors import BadModelFile
from modelyard.catalog.quantization import Quantization, of_config, plain_label
from modelyard.catalog.recent import stamps_of
from modelyard.catalog.weights import Weights, has_weights, read_weights

_TOKENIZERS: Final = re.compile(
    r"tokenizer\.json|tokenizer\.model(\.v\d+m?\d*)?|vocab\.(json|txt|bpe)|spiece\.model"
    r"|sentencepiece\.bpe\.model|tekken\.json|.+\.tiktoken|merges\.txt|bpe\.codes"
    r"|tokenization_\w+\.py|.+\.spm|source\.spm|wordlevel\.json"
)
_WITHOUT_TOKENIZER: Final = frozenset({Ability.SPEECH, Ability.IMAGE, Ability.TRANSCRIPTION})
_CONTEXT_KEYS: Final = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_sequence_length",
    "max_target_positions",
    "n_ctx",
)


@dataclass(frozen=True, slots=True)
class FolderCheckpoint:
    """A whole model in a folder."""

    folder: Path
    description: Description
    weights: Weights
    verdict: Verdict
    quantization: Quantization | None
    revision: str
    """Another one when a file of the folder was replaced or rewritten."""

    @property
    def label(self) -> str:
        """What the weights are stored in, as people say it."""
        if self.quantization is not None:
            return self.quantization.label
        return "pickled" if self.weights.pickled else plain_label(self.weights.by_dtype)

    @property
    def context_length(self) -> int | None:
        """Tokens that the model was made for; None where its configuration does not say."""
        told = self.description.text.count(*_CONTEXT_KEYS)
        if told is None:
            told = self.description.config.count(*_CONTEXT_KEYS)
        positions = self.description.config.count("pad_token_id") or 0
        if told and "roberta" in self.description.model_type and told % 128 == positions + 1:
            # RoBERTa counts positions from the padding token on: 514 of them are for 512 tokens.
            return told - positions - 1
        return told


def is_model_folder(files: Mapping[str, Path]) -> bool:
    """Whether the folder of these files is to be read as one model, whole or broken."""
    return CONFIG in files and has_weights(files)


def read_folder(folder: Path, name: str, files: Mapping[str, Path]) -> FolderCheckpoint:
    """Read the model in `folder`, which is called `name` and has these `files`.

    Raises BadModelFile where something is missing, truncated or contradicts itself.
    """
    if CONFIG not in files:
        raise BadModelFile(folder, f"it has weights and no {CONFIG}")
    description = describe(name, files)
    verdict = classify_folder(description)
    quantization = of_config(description.config)
    factor = 1 if quantization is None else quantization.pack_factor
    weights = read_weights(folder, files, pack_factor=factor)
    _check_tokenizer(folder, verdict, files)
    stamps = stamps_of(files[each] for each in sorted(files))
    return FolderCheckpoint(
        folder=folder,
        description=description,
        weights=weights,
        verdict=verdict,
        quantization=quantization,
        revision=hashlib.blake2b(repr(stamps).encode(), digest_size=8).hexdigest(),
    )


def other_than_model(files: Mapping[str, Path]) -> Verdict | None:
    """What the folder holds where it is recognisably something that is not served alone."""
    if "adapter_config.json" in files and CONFIG not in files:
        return Verdict(Kind.ADAPTER, frozenset(), "it has an adapter_config.json")
    if "model_index.json" in files:
        reason = "model_index.json makes it a pipeline of diffusers, which draws images"
        return Verdict(Kind.UNSERVED, frozenset(), reason, Ability.IMAGE)
    return None


def _check_tokenizer(folder: Path, verdict: Verdict, files: Mapping[str, Path]) -> None:
    if verdict.kind is not Kind.MODEL or verdict.ability in _WITHOUT_TOKENIZER:
        return
    if not any(_TOKENIZERS.fullmatch(name) for name in files):
        raise BadModelFile(
            folder,
            "it has no tokenizer (tokenizer.json, tokenizer.model, vocab.txt or the like)",
            hint="fetch the rest of the model's files",
        )
