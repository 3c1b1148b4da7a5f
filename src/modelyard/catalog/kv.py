"""What a llama.cpp context remembers of the tokens it has seen, in bytes, by architecture.

Laws of this file:
- Pure arithmetic over header values; a value that cannot be is a BadModelFile, never a wrong sum.
- What is not known of an architecture is counted as if every layer remembered every token: too
  much is a model that waits, too little is a machine that swaps.

Sources are facts of llama.cpp: the caches in src/llama-kv-cache*.cpp and
src/llama-memory-recurrent.cpp, sizes of recurrent states in src/llama-hparams.cpp
(n_embd_r, n_embd_s), window patterns in the loaders under src/models/. Caches are F16 (2 bytes)
unless asked otherwise, recurrent states F32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from modelyard.catalog.classify import is_causal
from modelyard.catalog.errors import BadModelFile
from modelyard.catalog.gguf import GgufHeader

MAX_LAYERS: Final = 4096

_CELL_PAD: Final = 256
"""Caches hold a multiple of this many tokens."""
_CACHE_BYTES: Final = 2
_STATE_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a context's memory, and in words how they were reckoned."""

    n_bytes: int
    formula: str


@dataclass(frozen=True, slots=True)
class _Pattern:
    """Every `period`-th layer sees all tokens: the last of each period, or the first."""

    period: int
    dense_first: bool = False
    window: int | None = None
    """The window where the loader has it built in and the file does not say."""


_PATTERNS: Final[Mapping[str, _Pattern]] = MappingProxyType(
    {
        "afmoe": _Pattern(4),
        "cohere2": _Pattern(4),
        "exaone4": _Pattern(4),
        "gemma2": _Pattern(2),
        "gemma3": _Pattern(6),
        "gemma3n": _Pattern(5),
        "gpt-oss": _Pattern(2),
        "llama4": _Pattern(4, window=8192),
        "olmo2": _Pattern(4),
        "smallthinker": _Pattern(4, dense_first=True),
    }
)
"""Architectures whose windowed layers are told by their loader rather than by the file. Others
with a window (phi3, mistral) keep all tokens."""

_RECURRENT: Final = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
_RECURRENT_BESIDE_ATTENTION: Final = frozenset({"falcon-h1"})
_GEMMA3N_LAYERS_WITH_CACHE: Final = 20
_DEFAULT_ATTENTION_INTERVAL: Final = 4


def context_memory(header: GgufHeader, *, context: int, parallel: int, ubatch: int) -> Memory:
    """Bytes that a context of `context` tokens, shared by `parallel` sequences, remembers in.

    `ubatch` is the number of tokens computed at once; a window has to hold them too.
    Raises BadModelFile where the header contradicts itself.
    """
    if not is_causal(header):
        return Memory(0, "none: its attention looks both ways, nothing is remembered")
    heads = _kv_heads(header, _layers(header))
    recurrent = _recurrent_layers(header, heads)
    attention = _attention_layers(header, heads, recurrent)
    cache = _cache(header, heads, attention, context, parallel, ubatch)
    if not any(recurrent):
        return cache
    state = _state_per_layer(header) * _STATE_BYTES * sum(recurrent) * parallel
    words = f"{sum(recurrent)} recurrent layers of {state} bytes together"
    if not any(attention):
        return Memory(state, words)
    return Memory(cache.n_bytes + state, f"{cache.formula} + {words}")


def padded_context(context: int, parallel: int) -> int:
    """Tokens per sequence that the engine makes room for when asked for `context` in all."""
    return _padded(max(1, context // parallel))


def window_cells(header: GgufHeader, cells: int, ubatch: int) -> int:
    """Tokens that the windowed layers of one sequence have room for; 0 without such layers."""
    window, windowed = _windowed_layers(header, _layers(header))
    return _padded(min(cells, window + ubatch)) if any(windowed) else 0


def _cache(
    header: GgufHeader,
    heads: tuple[int, ...],
    attention: tuple[bool, ...],
    context: int,
    parallel: int,
    ubatch: int,
) -> Memory:
    all_cells = padded_context(context, parallel)
    few_cells = window_cells(header, all_cells, ubatch)
    _, windowed = _windowed_layers(header, len(heads))
    full = short = 0
    for layer, has_cache in enumerate(attention):
        if has_cache:
            width = heads[layer] * _head_width(header, windowed=windowed[layer]) * _CACHE_BYTES
            full += 0 if windowed[layer] else width
            short += width if windowed[layer] else 0
    words = f"{full} bytes/token x {all_cells}"
    if short:
        words += f" + {short} bytes/token x {few_cells} in the window"
    if parallel > 1:
        words = f"({words}) x {parallel} sequences"
    return Memory((full * all_cells + short * few_cells) * parallel, words)


def _layers(header: GgufHeader) -> int:
    layers = header.count("block_count") or 0
    if layers > MAX_LAYERS:
        raise BadModelFile(
            header.path,
            f"{header.architecture}.block_count is {layers}; at most {MAX_LAYERS} are accepted",
        )
    return layers


def _padded(cells: int) -> int:
    return -(-cells // _CELL_PAD) * _CELL_PAD


def _kv_heads(header: GgufHeader, layers: int) -> tuple[int, ...]:
    heads = header.counts("attention.head_count_kv", layers)
    if heads is None:
        heads = header.counts("attention.head_count", layers)
    return heads or (0,) * layers


def _head_width(header: GgufHeader, *, windowed: bool) -> int:
    """Numbers per head and token that are kept: the key and the value."""
    if header.count("attention.key_length_mla"):
        # Keys and values are rebuilt from one compressed vector, and the value is a part of it.
        rank = header.count("attention.kv_lora_rank") or 0
        return header.count("attention.key_length") or (
            rank + (header.count("rope.dimension_count") or 0)
        )
    embedding = header.count("embedding_length") or 0
    most_heads = max(header.counts("attention.head_count", 1) or (0,))
    default = embedding // most_heads if most_heads else 0
    width = 0
    for part in ("attention.key_length", "attention.value_length"):
        of_window = header.count(f"{part}_swa") if windowed else None
        plain = header.count(part)
        width += of_window or (default if plain is None else plain)
    return width


def _windowed_layers(header: GgufHeader, layers: int) -> tuple[int, tuple[bool, ...]]:
    """The window in tokens, and which layers remember no more than it."""
    nowhere = (0, (False,) * layers)
    known = _PATTERNS.get(header.architecture or "")
    window = header.count("attention.sliding_window")
    if window is None and known is not None:
        window = known.window
    told = header.of_model("attention.sliding_window_pattern")
    if not window or (known is None and told is None):
        return nowhere
    if isinstance(told, tuple):
        if len(told) < layers:
            raise BadModelFile(
                header.path,
                f"{header.architecture}.attention.sliding_window_pattern has {len(told)} entries"
                f" for {layers} layers",
            )
        return window, tuple(bool(entry) for entry in told[:layers])
    if known is None:
        return nowhere
    period = header.count("attention.sliding_window_pattern") or known.period
    dense = 0 if known.dense_first else period - 1
    return window, tuple(layer % period != dense for layer in range(layers))


def _recurrent_layers(header: GgufHeader, heads: tuple[int, ...]) -> tuple[bool, ...]:
    arch = header.architecture
    everywhere = (True,) * len(heads)
    if arch in _RECURRENT or arch in _RECURRENT_BESIDE_ATTENTION:
        return everywhere
    if not _state_per_layer(header):
        return (False,) * len(heads)
    if all(heads):
        interval = header.count("full_attention_interval") or _DEFAULT_ATTENTION_INTERVAL
        return tuple((layer + 1) % interval != 0 for layer in range(len(heads)))
    widths = header.of_model("feed_forward_length")
    if isinstance(widths, tuple) and arch is not None and arch.startswith("nemotron_h"):
        # Its layers are either attention, recurrent, or a feed-forward block alone.
        forward = header.counts("feed_forward_length", len(heads)) or ()
        return tuple(not head and not width for head, width in zip(heads, forward, strict=True))
    return tuple(not head for head in heads)


def _attention_layers(
    header: GgufHeader, heads: tuple[int, ...], recurrent: tuple[bool, ...]
) -> tuple[bool, ...]:
    arch = header.architecture
    if arch in _RECURRENT:
        return (False,) * len(heads)
    with_cache = len(heads) - (header.count("attention.shared_kv_layers") or 0)
    if arch == "gemma3n":
        with_cache = _GEMMA3N_LAYERS_WITH_CACHE
    beside = arch in _RECURRENT_BESIDE_ATTENTION
    return tuple(
        layer < with_cache and (beside or not recurrent[layer]) for layer in range(len(heads))
    )


def _state_per_layer(header: GgufHeader) -> int:
    """Numbers a recurrent layer carries along for one sequence; 0 without recurrent layers."""
    embedding = header.count("embedding_length") or 0
    wkv = header.count("wkv.head_size")
    if wkv:
        shifts = header.count("token_shift_count")
        return (2 if shifts is None else shifts) * embedding + embedding * wkv
    short = header.count("shortconv.l_cache")
    if short:
        return embedding * (short - 1)
    steps = max(0, (header.count("ssm.conv_kernel") or 0) - 1)
    kda = header.count("kda.head_dim")
    if kda:
        heads = max(header.counts("attention.head_count", 1) or (0,))
        return 3 * steps * heads * kda + kda * kda * heads
    inner = header.count("ssm.inner_size") or 0
    state = header.count("ssm.state_size") or 0
    groups = header.count("ssm.group_count") or 0
    return steps * (inner + 2 * groups * state) + state * inner
