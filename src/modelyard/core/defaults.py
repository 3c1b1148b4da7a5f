"""Numbers that claims and reality share: what a llama.cpp model gets where its options leave it
open, and what vLLM takes of a card outside of its own accounts.

Laws of this file:
- The engine's adapter sets these numbers and the catalog estimates with them. Neither may use its
  own, or claims and reality part.
- They bound memory: left to itself, llama.cpp makes room for all that a model was trained for,
  which for an 8B model of 128 k tokens is 16 GiB of KV cache.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from modelyard.core.specs import Task

WRITING_CONTEXT = 16384
"""Longest context of a model that writes, in tokens, unless `ctx_size` says more."""
READING_CONTEXT = 2048
"""Longest input of a model that only reads (embedding, rerank, classification), unless `ctx_size`
says more. It is computed in one batch whose buffers hold vocabulary times 4 bytes for each
token."""
CONTEXT_CHECKPOINTS = 4
"""Copies of what sliding-window and recurrent layers remember that each sequence may keep;
llama.cpp's own 32 can grow to tens of GiB of host memory."""
VLLM_CONTEXT_MIB = 530
"""The driver's context of a vLLM process on a card: an idle H100 has 78.66 of 79.18 GiB free
(llm-d-fma issue 746)."""
VLLM_NCCL_MIB = 600
"""What NCCL takes on each card besides where there are several; reports say 0.3 to 1 GiB."""

READING = frozenset({Task.EMBEDDING, Task.RERANK, Task.CLASSIFICATION})
"""Tasks of models that write nothing."""


def context_tokens(tasks: AbstractSet[Task], trained: int) -> int:
    """The context of a model that was trained for `trained` tokens and names no `ctx_size`."""
    return min(trained, READING_CONTEXT if tasks & READING else WRITING_CONTEXT)
