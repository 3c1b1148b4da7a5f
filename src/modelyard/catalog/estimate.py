"""What one llama.cpp engine on the host is expected to hold, before it has ever run.

Laws of this file:
- Pure arithmetic over the header. Each term says what it is and how it was reckoned, so that a
  person can check it and a measurement can replace it.
- Rather a little too much than too little: the engine's memory is what it holds while it works on
  a full batch, pages of the mapped file included.

PLACEHOLDER
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from modelyard.catalog.classify import classify, is_causal
from modelyard.catalog.gguf import GgufHeader, Omitted, TensorInfo
from modelyard.catalog.kv import context_memory, padded_context, window_cells
from modelyard.core.specs import Task

FALLBACK_CONTEXT: Final = 4096
"""Tokens, for a file that does not say what it was trained with."""
DEFAULT_UBATCH: Final = 512
"""Tokens that llama.cpp computes at once while it writes text."""
MIB: Final = 2**20

PROCESS_MIB: Final = 38.0
TOKEN_BYTES: Final = 230
MERGE_BYTES: Final = 270
REPACKED_TYPES: Final = frozenset({"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"})


@dataclass(frozen=True, slots=True)
class Term:
    """One part of the memory: what it is, how much, and how that was reckoned."""

    name: str
    mib: float
    formula: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """The memory of one engine, part by part; `context` is what it makes room for, in tokens."""

    terms: tuple[Term, ...]
    context: int

    @property
    def total_mib(self) -> int:
        return math.ceil(sum(term.mib for term in self.terms))


def estimate(
    header: GgufHeader,
    file_bytes: int,
    *,
    context: int | None = None,
    parallel: int = 1,
    ubatch: int | None = None,
) -> Estimate:
    """What an engine for this model holds in host memory while it works.

    `file_bytes` is the size of all files of the model, and `header` has the tensors of all;
    `context` is in tokens, shared by `parallel` sequences, and None or 0 takes what the model was
    trained with, as llama.cpp does. `ubatch` is the number of tokens computed at once; None takes
    512 where text is written, and the whole context where an input must be computed as one
    (embedding, reranking). Raises BadModelFile where the header contradicts itself.
    """
    sequences = max(1, parallel)
    tokens = context or header.count("context_length") or FALLBACK_CONTEXT
    per_sequence = padded_context(tokens, sequences)
    tasks = classify(header, header.path.name).tasks
    reads_only = bool(tasks & {Task.EMBEDDING, Task.RERANK})
    batch = ubatch or (tokens if reads_only else DEFAULT_UBATCH)
    batch = min(batch, per_sequence * sequences)
    memory = context_memory(header, context=tokens, parallel=sequences, ubatch=batch)
    return Estimate(
        terms=(
            Term("weights", file_bytes / MIB, f"{file_bytes} bytes of files, mapped"),
            _repacked(header),
            Term("kv cache", memory.n_bytes / MIB, memory.formula),
            _compute(header, batch, per_sequence, reads_only=reads_only),
            _outputs(header, batch if reads_only else sequences),
            _process(header),
        ),
        context=per_sequence * sequences,
    )


def _repacked(header: GgufHeader) -> Term:
    """Copies of weights in the order that the processor's instructions like."""
    tied = all(tensor.name != "output.weight" for tensor in header.tensors)
    copied = sum(tensor.n_bytes for tensor in header.tensors if _is_repacked(tensor, tied=tied))
    return Term("repacked weights", copied / MIB, f"second copy of {copied} bytes of 4-bit weights")


def _is_repacked(tensor: TensorInfo, *, tied: bool) -> bool:
    if tensor.type.name not in REPACKED_TYPES or len(tensor.shape) < 2:
        return False
    # The embedding table is only looked up, unless it also serves as the output layer.
    return tied or tensor.name != "token_embd.weight"


def _compute(header: GgufHeader, batch: int, cells: int, *, reads_only: bool) -> Term:
    """Intermediate results of one batch at the widest point of a layer, and the attention mask."""
    embedding = header.count("embedding_length") or 0
    forward = _widest_forward(header)
    floats = 3 * forward + 5 * embedding
    words = f"3 x {forward} + 5 x {embedding}"
    vocabulary = _length(header, "tokenizer.ggml.tokens")
    if reads_only and is_causal(header) and vocabulary > 3 * forward:
        floats = vocabulary + 5 * embedding
        words = f"{vocabulary} + 5 x {embedding}"
    masked = cells + window_cells(header, cells, batch)
    # Activations are converted to the format of the weights before they are multiplied.
    converted = 2 * max(forward, embedding)
    n_bytes = batch * (4 * floats + converted + 2 * masked)
    return Term(
        "compute buffer",
        n_bytes / MIB,
        f"{batch} tokens x (4 x ({words}) + {converted} + mask 2 x {masked}) bytes",
    )


def _outputs(header: GgufHeader, rows: int) -> Term:
    """llama.cpp keeps a score for every word for each token whose result is asked for, and an
    embedding asks for those of all its tokens."""
    width = _length(header, "tokenizer.ggml.tokens") + (header.count("embedding_length") or 0)
    return Term("outputs", 4 * rows * width / MIB, f"{rows} rows x {width} x 4 bytes")


def _process(header: GgufHeader) -> Term:
    tokens = _length(header, "tokenizer.ggml.tokens")
    merges = _length(header, "tokenizer.ggml.merges")
    n_bytes = tokens * TOKEN_BYTES + merges * MERGE_BYTES
    return Term(
        "process",
        PROCESS_MIB + n_bytes / MIB,
        f"{PROCESS_MIB:g} MiB + {tokens} words x {TOKEN_BYTES} + {merges} merges x {MERGE_BYTES}",
    )


def _widest_forward(header: GgufHeader) -> int:
    """Width of the feed-forward part; with experts, of all that one token uses together."""
    value = header.of_model("feed_forward_length")
    layers = len(value) if isinstance(value, tuple) else 1
    dense = max(header.counts("feed_forward_length", layers) or (0,))
    used = header.count("expert_used_count") or 0
    expert = header.count("expert_feed_forward_length") or (dense if used else 0)
    return max(used * expert, 0 if used else dense)


def _length(header: GgufHeader, key: str) -> int:
    value = header.metadata.get(key)
    return value.length if isinstance(value, Omitted) else 0
