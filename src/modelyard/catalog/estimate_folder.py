"""What vLLM or transformers is expected to hold for a model in a folder, before it has ever run.

Laws of this file:
- Weights are summed from the files' headers, KV caches from the architecture, the rest from what
  the engines' authors or users measured; every term says which.
- What a device holds is told device by device: `gpu0`, `gpu1`, …, and `host`.

Figures: CUDA context and NCCL are those of `core.defaults`; vLLM's peak of activations was reported
as 4.8 to 5.6 GiB at 8192 batched tokens of dense models of 8 to 70 billion parameters; CUDA graphs
as 0.65 GiB for gemma-3-4b (vLLM #21489).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from modelyard.catalog.attention_config import attention_of_config
from modelyard.catalog.folder_checkpoint import FolderCheckpoint
from modelyard.catalog.json_object import JsonObject
from modelyard.catalog.kv import VLLM_BATCHED_TOKENS, VLLM_BLOCK, kv_bytes
from modelyard.catalog.terms import HEADERS, MIB, Estimate, Term
from modelyard.core.defaults import (
    READING,
    VLLM_CONTEXT_MIB,
    VLLM_NCCL_MIB,
    context_tokens,
)
from modelyard.core.specs import Task

GRAPHS_MIB: Final = 650.0
VLLM_PROCESS_MIB: Final = 1800.0
"""vLLM's processes in host memory without a model: importing its API server alone holds 578 MiB
(0.32, CPU build), the engine core is a process of its own and compiles."""
TRANSFORMERS_PROCESS_MIB: Final = 650.0
"""Importing torch 2.13 (CPU build) and transformers 5 holds 401 MiB; the rest is for a server and
sentence-transformers."""
FALLBACK_CONTEXT: Final = 4096

_HOST_BLOCK: Final = 128
_GRAPH_WIDTH: Final = 2560
"""Hidden size of the model whose graphs were measured."""


@dataclass(frozen=True, slots=True)
class Wish:
    """How a model is to be run. None and 0 leave the choice to the engine's default."""

    context: int | None = None
    """Tokens of one sequence; None takes Modelyard's default for the model's tasks."""
    sequences: int = 1
    """Sequences that shall fit at full length at once."""
    batched_tokens: int | None = None
    """Tokens computed at once."""
    kv_dtype: str | None = None
    """Format of the cache, by the engine's name."""
    dtype: str | None = None
    """Format that unquantised weights are converted to; `auto` is the checkpoint's."""
    eager: bool = False
    """Without CUDA graphs."""
    gpus: int = 0
    """0 runs on the host."""
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    cpu_offload_mib: int = 0
    """Weights of each GPU kept in host memory (vLLM's cpu_offload_gb; accelerate's device map)."""
    block: int = 0
    """Tokens of vLLM's blocks; 0 is 16 on GPUs and 128 on the host."""


def estimate_folder(
    checkpoint: FolderCheckpoint, engine: str, wish: Wish | None = None
) -> Mapping[str, Estimate]:
    """The memory of one replica by device: `gpu0`, … and `host`.

    `engine` is `vllm` or `transformers`. With `gpus` 0 everything is on `host`; with more, each
    GPU has its part and `host` what is offloaded, and the processes.
    Raises BadModelFile where the model's configuration contradicts itself.
    """
    return _Reckoning(checkpoint, engine, wish or Wish()).shares()


class _Reckoning:
    def __init__(self, checkpoint: FolderCheckpoint, engine: str, wish: Wish) -> None:
        self._checkpoint = checkpoint
        self._engine = engine
        self._wish = wish
        self._text = checkpoint.description.text
        self._attention = attention_of_config(self._text, checkpoint.description.model_type)
        self._tasks = checkpoint.verdict.tasks
        trained = checkpoint.context_length or FALLBACK_CONTEXT
        self._context = min(wish.context or context_tokens(self._tasks, trained), trained)
        self._parts = max(1, wish.tensor_parallel * wish.pipeline_parallel)
        self._batched = wish.batched_tokens or _default_batch(engine, self._tasks, self._context)

    def shares(self) -> Mapping[str, Estimate]:
        if not self._wish.gpus:
            terms = [self._weights(1), self._kv(), self._activations(), self._process()]
            return {"host": self._estimate(terms)}
        shares: dict[str, Estimate] = {}
        for gpu in range(self._parts):
            terms = [self._weights(self._parts), self._offloaded(-1), self._kv()]
            terms += [self._activations(), self._graphs(), self._context_term(), self._collective()]
            shares[f"gpu{gpu}"] = self._estimate(terms)
        shares["host"] = self._estimate([self._offloaded(self._parts), self._process()])
        return shares

    def _estimate(self, terms: list[Term]) -> Estimate:
        kept = tuple(term for term in terms if term.mib)
        return Estimate(kept, self._context * self._wish.sequences)

    # ------------------------------------------------------------------------------------- terms

    def _weights(self, parts: int) -> Term:
        weights = self._checkpoint.weights
        n_bytes, words = weights.n_bytes, f"{weights.n_bytes} bytes in {len(weights.files)} files"
        single = weights.by_dtype.get("F32", 0)
        if single and self._halves(single):
            n_bytes -= single // 2
            words += f" - {single} / 2 bytes of F32 that are loaded as 16 bits"
        if parts > 1:
            words = f"({words}) / {parts} GPUs"
        return Term("weights", n_bytes / parts / MIB, words, HEADERS)

    def _halves(self, single: int) -> bool:
        """vLLM loads F32 checkpoints as 16 bits where nothing else is asked (dtype auto);
        quantised models keep their scales as they are."""
        if self._engine != "vllm" or self._wish.dtype in {"float32", "float"}:
            return False
        return 2 * single > self._checkpoint.weights.n_bytes

    def _offloaded(self, times: int) -> Term:
        most = self._checkpoint.weights.n_bytes / self._parts / MIB
        mib = min(float(self._wish.cpu_offload_mib), most)
        words = f"{mib:g} MiB of each GPU's weights lie in host memory"
        return Term("offloaded weights", mib * times, words, "as asked for")

    def _kv(self) -> Term:
        if self._tasks and self._tasks <= READING:
            return Term("kv cache", 0.0, "none: inputs are read at once", "")
        wish = self._wish
        memory = kv_bytes(
            self._attention,
            self._engine,
            self._context,
            wish.sequences,
            wish.kv_dtype or self._dtype(),
            batched_tokens=self._batched,
            block=wish.block or (VLLM_BLOCK if wish.gpus else _HOST_BLOCK),
            tensor_parallel=wish.tensor_parallel,
            state_dtype=self._state_dtype(),
            in_flight=wish.pipeline_parallel + 1 if wish.gpus else 1,
        )
        stages = wish.pipeline_parallel
        words = memory.formula if stages == 1 else f"({memory.formula}) / {stages} stages"
        source = f"config.json ({self._attention.kind}); {self._engine}'s cache"
        return Term("kv cache", memory.n_bytes / stages / MIB, words, source)

    def _activations(self) -> Term:
        """Inputs and outputs of the widest layer for a batch, and scores of all words for each
        sequence."""
        hidden = self._text.count("hidden_size", "n_embd", "d_model") or 1024
        wide = self._forward() // max(1, self._wish.tensor_parallel)
        words = self._text.count("vocab_size") or 0
        rows = min(self._batched, max(256, self._wish.sequences))
        each = 2 if self._wish.gpus else 4
        batch = self._batched * (6 * hidden + 3 * wide) * each
        scores = 0 if self._tasks and self._tasks <= READING else rows * words * 6
        formula = (
            f"{self._batched} tokens x (6 x {hidden} + 3 x {wide}) x {each} bytes"
            f" + {scores} bytes of scores"
        )
        return Term("activations", (batch + scores) / MIB, formula, "shape of a transformer block")

    def _graphs(self) -> Term:
        if self._engine != "vllm" or self._wish.eager:
            return Term("CUDA graphs", 0.0, "none: eager", "")
        hidden = self._text.count("hidden_size", "n_embd", "d_model") or _GRAPH_WIDTH
        mib = max(100.0, min(1500.0, GRAPHS_MIB * hidden / _GRAPH_WIDTH / self._parts))
        words = f"{GRAPHS_MIB:g} MiB x width {hidden} / {_GRAPH_WIDTH} / {self._parts} GPUs"
        return Term("CUDA graphs", mib, words, "measured at gemma-3-4b (vLLM #21489), scaled")

    def _context_term(self) -> Term:
        return Term(
            "CUDA context",
            float(VLLM_CONTEXT_MIB),
            "per process and GPU",
            "an idle H100 under vLLM",
        )

    def _collective(self) -> Term:
        mib = float(VLLM_NCCL_MIB) if self._wish.tensor_parallel > 1 else 0.0
        return Term("collective buffers", mib, "NCCL, per GPU of several", "reports: 0.3 to 1 GiB")

    def _process(self) -> Term:
        mib = VLLM_PROCESS_MIB if self._engine == "vllm" else TRANSFORMERS_PROCESS_MIB
        return Term("process", mib, "interpreter, torch and libraries", "imports measured")

    # ------------------------------------------------------------------------------------- facts

    def _dtype(self) -> str:
        chosen = self._wish.dtype
        if chosen and chosen != "auto":
            return chosen
        told = self._text.values.get("torch_dtype", self._text.values.get("dtype"))
        named = told if isinstance(told, str) else "bfloat16"
        if named == "float32" and self._engine == "vllm":
            return "float16"
        return named if self._engine == "vllm" or self._wish.gpus else "float32"

    def _state_dtype(self) -> str:
        if not self._wish.gpus:
            return "float32"  # what vLLM's kernels for processors keep (platforms/cpu.py)
        told = self._text.values.get("mamba_ssm_dtype")
        return told if isinstance(told, str) else self._dtype()

    def _forward(self) -> int:
        """Width of the feed-forward part that one token uses."""
        text = self._text
        dense = max(text.counts(_wide_key(text)) or (0,))
        experts = text.count("num_experts_per_tok", "num_experts_per_token", "moe_topk") or 0
        width = text.count("moe_intermediate_size", "expert_ffn_hidden_size") or dense
        return max(dense, experts * width)


def _wide_key(text: JsonObject) -> str:
    keys = ("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim", "d_ff")
    return next((key for key in keys if key in text), keys[0])


def _default_batch(engine: str, tasks: frozenset[Task], context: int) -> int:
    if engine == "vllm":
        return max(VLLM_BATCHED_TOKENS, context) if tasks & READING else VLLM_BATCHED_TOKENS
    return context if tasks & READING else min(context, VLLM_BATCHED_TOKENS)
