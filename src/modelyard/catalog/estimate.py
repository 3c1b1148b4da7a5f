"""What one llama.cpp engine on the host is expected to hold, before it has ever run.

Laws of this file:
- Pure arithmetic over the header. Each term says what it is and how it was reckoned, so that a
  person can check it and a measurement can replace it.
- Rather a little too much than too little: the engine's memory is what it holds while it works on
  a full batch, pages of the mapped file included.

Measured on 2026-11-20 with xllamacpp 2026.10.11549 (x86-64 with AVX2, 2 cores) and 36 random models
of 2 to 1000 MiB: llama, qwen3, qwen3moe, gemma3 and bert shapes in 19 number formats, contexts of
512 to 16384 tokens, 1 to 4 sequences. Compared was the resident memory of the server's process
(Rss in /proc/PID/smaps_rollup) after prompts that fill a batch, and each buffer's size in its log:

    model                                      context  batch  resident  estimate
    llama, 5.6 MiB, Q8_0                          8192    512        70        79
    llama, 111 MiB, F16                           8192    512       236       246
    llama, 211 MiB, Q8_0, 4 sequences             8192    512       475       482
    llama, 171 MiB, Q4_K (repacked)               2048    512       459       475
    llama, 967 MiB, Q8_0                          8192    512      2087      2105
    qwen3, 287 MiB, Q8_0, 150000 words            4096    512       508       524
    qwen3, 83 MiB, Q4_K, output tied             16384    512       631       659
    qwen3moe, 478 MiB, 8 of 32 experts            4096    512       624       640
    gemma3, 135 MiB, window 512, 2 checkpoints    8192    512       245       263
    bert, 209 MiB, F16, 60000 words, embedding    8192   8192      2505      2650
    qwen3, 161 MiB, Q8_0, embedding               4096   4096      1443      1489
    qwen3, 36 MiB, Q8_0, reranking                2048   2048       592       634

(MiB.) No estimate was below the memory measured. None was more than 48 MiB above it, or 10 % where
the engine held more than 500 MiB, except where it kept fewer checkpoints than it may. Weights stay
resident twice where they are repacked, because the mapped pages they were copied from remain.
Draft models are not counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from modelyard.catalog.attention import Keeps
from modelyard.catalog.attention_gguf import attention_of
from modelyard.catalog.classify import classify, is_causal
from modelyard.catalog.gguf import GgufHeader, Omitted, TensorInfo
from modelyard.catalog.kv import Room, checkpoint_memory, context_memory, room_for, window_cells
from modelyard.catalog.terms import HEADERS, MIB, Estimate, Term
from modelyard.core.defaults import CONTEXT_CHECKPOINTS, READING, context_tokens
from modelyard.core.specs import Task

FALLBACK_CONTEXT: Final = 4096
"""Tokens, for a file that does not say what it was trained with."""
DEFAULT_UBATCH: Final = 512
"""Tokens that llama.cpp computes at once while it writes text."""
PROCESS_MIB: Final = 40.0
"""Interpreter, libraries and HTTP server without a model."""
TOKEN_BYTES: Final = 230
MERGE_BYTES: Final = 270
"""What the tokenizer keeps for a word, and for a pair of words that it joins."""
REPACKED_TYPES: Final = frozenset({"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"})
"""Formats that the wheel's x86 build (AVX2) copies into another order."""

_CACHES: Final = "header values; llama.cpp's caches"
_MEASURED: Final = "fitted to llama.cpp's own buffers and to resident memory"

_ATTENTION_INPUTS: Final = frozenset({"q.weight", "k.weight", "v.weight", "qkv.weight"})


def estimate(
    header: GgufHeader,
    file_bytes: int,
    *,
    context: int | None = None,
    parallel: int = 0,
    ubatch: int = 0,
    checkpoints: int = CONTEXT_CHECKPOINTS,
    prompt_cache_mib: int = 0,
    tasks: frozenset[Task] | None = None,
    projector_bytes: int = 0,
    key_type: str = "f16",
    value_type: str = "f16",
) -> Estimate:
    """What an engine for this model holds in host memory while it works on a full batch.

    `header` has the tensors of all files of the model and `file_bytes` is their size. `context` is
    in tokens; None takes Modelyard's default (`core.defaults`) and 0 all that the model was trained
    for, as llama.cpp does. `parallel` sequences have a part of the
    context each; with 0, four share it. `ubatch` tokens are computed at once: by default 512, or
    the whole context where the model only reads, because an input is then computed as one.
    `checkpoints` and `prompt_cache_mib` bound what the server keeps beside the context.
    `tasks` are those the model is to serve; None asks its file. `key_type` and `value_type` are the
    cache's number formats (`q8_0`), `projector_bytes` the size of the projector's file.
    Raises BadModelFile where the header contradicts itself.
    """
    served = classify(header, header.path.name).tasks if tasks is None else tasks
    only_reads = bool(served & READING)
    trained = header.count("context_length") or FALLBACK_CONTEXT
    tokens = context_tokens(served, trained) if context is None else context or trained
    batch = ubatch or (tokens if only_reads else DEFAULT_UBATCH)
    space = room_for(tokens, parallel, min(tokens, batch))
    memory = context_memory(header, space, key_type, value_type)
    kept = checkpoint_memory(header, space, checkpoints)
    terms = [
        Term("weights", file_bytes / MIB, f"{file_bytes} bytes of files, mapped", HEADERS),
        _projector(projector_bytes),
        _repacked(header),
        Term("kv cache", memory.n_bytes / MIB, memory.formula, _CACHES),
        Term("checkpoints", kept.n_bytes / MIB, kept.formula, _CACHES),
        compute_term(header, space, only_reads=only_reads),
        outputs_term(header, space.ubatch if only_reads else space.sequences),
        Term("prompt cache", prompt_cache_mib, "its limit, as configured", "the options"),
        process_term(header),
    ]
    return Estimate(tuple(term for term in terms if term.mib), space.context)


def _projector(n_bytes: int) -> Term:
    """A vision or audio encoder, and about as much again while it looks at an image."""
    words = f"{n_bytes} bytes of the projector's file + 256 MiB while it works"
    mib = n_bytes / MIB + 256 if n_bytes else 0.0
    return Term("projector", mib, words, HEADERS)


def _repacked(header: GgufHeader) -> Term:
    """Copies of weights in the order that the processor's instructions like."""
    tied = all(tensor.name != "output.weight" for tensor in header.tensors)
    copied = sum(tensor.n_bytes for tensor in header.tensors if _is_repacked(tensor, tied=tied))
    return Term(
        "repacked weights", copied / MIB, f"second copy of {copied} bytes of 4-bit weights", HEADERS
    )


def _is_repacked(tensor: TensorInfo, *, tied: bool) -> bool:
    if tensor.type.name not in REPACKED_TYPES or len(tensor.shape) < 2:
        return False
    # The embedding table is only looked up, unless it also serves as the output layer.
    return tied or tensor.name != "token_embd.weight"


def compute_term(header: GgufHeader, room: Room, *, only_reads: bool = False) -> Term:
    """Intermediate results of one batch at the widest point of a layer, and the attention mask."""
    embedding = header.count("embedding_length") or 0
    width, words = max(_widths(header, embedding, scores=only_reads and is_causal(header)))
    # Encoders mask the batch against itself, others against everything they remember.
    cells = room.cells + window_cells(header, room) if is_causal(header) else room.ubatch
    if is_causal(header) and all(g.keeps is Keeps.STATE for g in attention_of(header).groups):
        cells = 0  # nothing is masked where nothing attends
    # Results are converted to the format of the weights that they are multiplied with.
    converted = 2 * max(_forward(header), embedding)
    per_token = 4 * width + converted + 2 * cells
    return Term(
        "compute buffer",
        room.ubatch * per_token / MIB,
        f"{room.ubatch} tokens x (4 x ({words}) + {converted} + mask 2 x {cells}) bytes",
        _MEASURED,
    )


def _widths(header: GgufHeader, embedding: int, *, scores: bool) -> Iterator[tuple[int, str]]:
    """Numbers per token that exist at the same time, at each point that may be the widest."""
    forward = _forward(header)
    gated = is_causal(header) or any("ffn_gate" in tensor.name for tensor in header.tensors)
    parts = 3 if gated else 2
    yield parts * forward + 5 * embedding, f"{parts} x {forward} + 5 x {embedding}"
    experts = (header.count("expert_used_count") or 0) * embedding
    yield 2 * experts + 6 * embedding, f"2 x {experts} + 6 x {embedding}"
    projected = _projected(header)
    yield 2 * projected + 3 * embedding, f"2 x {projected} + 3 x {embedding}"
    yield from _widths_of_kind(header, embedding)
    if scores:
        words = _length(header, "tokenizer.ggml.tokens")
        yield words + 5 * embedding, f"{words} + 5 x {embedding}"


def _widths_of_kind(header: GgufHeader, embedding: int) -> Iterator[tuple[int, str]]:
    """What compressed attention and recurrent layers hold at their widest point."""
    compressed = header.count("attention.key_length_mla")
    if compressed:
        # The query, as it is, multiplied into the compressed space, and with its position; and
        # what comes out of attention there.
        heads = max(header.counts("attention.head_count", 1) or (0,))
        rank = header.count("attention.kv_lora_rank") or 0
        each = compressed + 2 * rank + (header.count("attention.key_length") or 0)
        yield heads * each + 3 * embedding, f"{heads} x {each} + 3 x {embedding}"
    inner = header.count("ssm.inner_size")
    if inner:
        state = header.count("ssm.state_size") or 0
        mixed = inner + 2 * (header.count("ssm.group_count") or 0) * state
        gate = inner + mixed + (header.count("ssm.time_step_rank") or 0)
        words = f"{gate} + 3 x {mixed} + {inner} + 3 x {embedding}"
        yield gate + 3 * mixed + inner + 3 * embedding, words


def _projected(header: GgufHeader) -> int:
    """Width of queries, keys and values together, in the layer where it is greatest."""
    return max(
        (
            sum(tensor.shape[1] for tensor in tensors)
            for tensors in _attention_inputs(header).values()
        ),
        default=0,
    )


def _attention_inputs(header: GgufHeader) -> dict[str, list[TensorInfo]]:
    layers: dict[str, list[TensorInfo]] = defaultdict(list)
    for tensor in header.tensors:
        layer, _, part = tensor.name.rpartition(".attn_")
        if part in _ATTENTION_INPUTS and len(tensor.shape) == 2:
            layers[layer].append(tensor)
    return layers


def outputs_term(header: GgufHeader, rows: int) -> Term:
    """llama.cpp keeps a score for every word for each token whose result is asked for, and an
    embedding asks for those of all its tokens."""
    width = _length(header, "tokenizer.ggml.tokens") + (header.count("embedding_length") or 0)
    return Term("outputs", 4 * rows * width / MIB, f"{rows} rows x {width} x 4 bytes", _MEASURED)


def process_term(header: GgufHeader) -> Term:
    """Interpreter, libraries and vocabulary, wherever the model lies."""
    tokens = _length(header, "tokenizer.ggml.tokens")
    merges = _length(header, "tokenizer.ggml.merges")
    n_bytes = tokens * TOKEN_BYTES + merges * MERGE_BYTES
    return Term(
        "process",
        PROCESS_MIB + n_bytes / MIB,
        f"{PROCESS_MIB:g} MiB + {tokens} words x {TOKEN_BYTES} + {merges} merges x {MERGE_BYTES}",
        _MEASURED,
    )


def _forward(header: GgufHeader) -> int:
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
