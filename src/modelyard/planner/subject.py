"""What a planner needs to know of a model, whether it is a GGUF file or a folder.

Laws of this file:
- Read from headers that the catalog has read already; nothing here opens a file.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from modelyard.catalog.attention import Keeps
from modelyard.catalog.attention_gguf import attention_of
from modelyard.catalog.checkpoint import Checkpoint
from modelyard.catalog.found import FoundModel
from modelyard.catalog.gguf import GgufHeader
from modelyard.core.defaults import READING

_GGUF_EXPERT: Final = re.compile(r"blk\.(\d{1,5})\.ffn_(?:up|down|gate|gate_up)_(?:ch)?exps\.")
_FALLBACK_TRAINED: Final = 4096
_CACHE_BLOCK: Final = 32


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to be planned for. Sizes are bytes."""

    found: FoundModel
    layers: int
    heads: int
    """Heads of queries, which tensor parallelism divides."""
    expert_layers: int
    """Layers with experts."""
    expert_bytes: int
    experts_used: float
    """Share of the experts that one token goes through; 1 where there are none."""
    table_bytes: int
    """The table of words, of which a token reads one row."""
    parameters: int
    cache_in_blocks: bool = True
    """llama.cpp can keep its keys and values in a format of blocks, like q8_0."""

    @property
    def reads(self) -> bool:
        """It only reads: embedding or rerank."""
        tasks = self.found.verdict.tasks
        return bool(tasks) and tasks <= READING

    @property
    def trained(self) -> int:
        return self.found.context_length or _FALLBACK_TRAINED

    @property
    def weight_bytes(self) -> int:
        return self.found.weight_bytes

    @property
    def active_bytes(self) -> int:
        """Bytes of the weights that one token goes through."""
        idle = self.expert_bytes * (1 - self.experts_used)
        return max(1, int(self.weight_bytes - idle - self.table_bytes))

    @property
    def active_parameters(self) -> int:
        """The same as a number of weights; 0 where the files do not tell."""
        if not self.weight_bytes:
            return 0
        return int(self.parameters * self.active_bytes / self.weight_bytes)


def subject_of(found: FoundModel) -> Subject:
    """Raises BadModelFile where the model's header contradicts itself."""
    if isinstance(found.checkpoint, Checkpoint):
        return _of_header(found, found.checkpoint.header)
    return _of_folder(found)


def _of_header(found: FoundModel, header: GgufHeader) -> Subject:
    experts: dict[int, int] = defaultdict(int)
    for tensor in header.tensors:
        match = _GGUF_EXPERT.match(tensor.name)
        if match:
            experts[int(match[1])] += tensor.n_bytes
    layers = header.count("block_count") or 0
    used, count = header.count("expert_used_count") or 0, header.count("expert_count") or 0
    tied = all(tensor.name != "output.weight" for tensor in header.tensors)
    table = sum(t.n_bytes for t in header.tensors if t.name == "token_embd.weight")
    return Subject(
        found,
        layers,
        max(header.counts("attention.head_count", layers) or (0,), default=0),
        len(experts),
        sum(experts.values()),
        min(1.0, used / count) if used and count else 1.0,
        0 if tied else table,
        found.parameters,
        _in_blocks(header),
    )


def _in_blocks(header: GgufHeader) -> bool:
    """Each head's numbers must fill whole blocks, or llama.cpp does not start ("K cache type q8_0
    with block size 32 does not divide n_embd_head_k", src/llama-context.cpp)."""
    groups = [group for group in attention_of(header).groups if group.keeps is not Keeps.STATE]
    whole = all(group.key % _CACHE_BLOCK == group.value % _CACHE_BLOCK == 0 for group in groups)
    return bool(groups) and whole


def _of_folder(found: FoundModel) -> Subject:
    checkpoint = found.checkpoint
    assert not isinstance(checkpoint, Checkpoint), "the caller has looked"
    text, weights = checkpoint.description.text, checkpoint.weights
    used = text.count("num_experts_per_tok", "num_experts_per_token", "moe_topk") or 0
    count = text.count("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    layers = text.count("num_hidden_layers", "n_layer", "num_layers") or len(weights.layer_bytes)
    tied = text.flag("tie_word_embeddings")
    return Subject(
        found,
        layers,
        text.count("num_attention_heads", "n_head", "num_heads") or 0,
        layers if weights.experts else 0,
        weights.experts,
        min(1.0, used / count) if used and count else 1.0,
        0 if tied else weights.embedding,
        found.parameters,
    )


def variants_of(found: FoundModel, all_found: Sequence[FoundModel]) -> list[FoundModel]:
    """Other quantisations of the same model that lie beside it, the largest first."""
    same = [
        other
        for other in all_found
        if other.base == found.base
        and other.form == found.form
        and other.source.parent == found.source.parent
        and other.id != found.id
    ]
    return sorted(same, key=lambda other: (-other.weight_bytes, other.id))
