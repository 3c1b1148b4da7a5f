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

AUTO_SEQUENCES: Final = 4
"""What llama.cpp runs at once when it is left to choose (common/arg.cpp, `--parallel -1`)."""

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


@dataclass(frozen=True, slots=True)
class Room:
    """How many tokens a context makes room for, and how its sequences share it.

    `cells` are tokens of one stream; `streams` hold them apart; `sequences` run at once.
    """

    cells: int
    streams: int
    sequences: int
    ubatch: int
    """Tokens computed at once; a window has to hold them too."""

    @property
    def context(self) -> int:
        return self.cells * self.streams


def room_for(context: int, parallel: int, ubatch: int) -> Room:
    """What the engine makes of `context` tokens for `parallel` sequences.

    Each sequence has its own part of the context. With `parallel` below 1 llama.cpp chooses: four
    sequences, and each may use the whole context as long as the others leave it.
    """
    if parallel < 1:
        return Room(_padded(context), 1, AUTO_SEQUENCES, ubatch)
    return Room(_padded(max(1, context // parallel)), parallel, parallel, ubatch)


def context_memory(header: GgufHeader, room: Room) -> Memory:
    """Bytes in which a context remembers what its sequences have seen.

    Raises BadModelFile where the header contradicts itself.
    """
    if not is_causal(header):
        return Memory(0, "none: its attention looks both ways, nothing is remembered")
    cache = _cache(header, room)
    state = _state_bytes(header) * room.sequences
    if not state:
        return cache
    words = f"{state} bytes of state of {room.sequences} sequences"
    formula = f"{cache.formula} + {words}" if cache.n_bytes else words
    return Memory(cache.n_bytes + state, formula)


def checkpoint_memory(header: GgufHeader, room: Room, count: int) -> Memory:
    """Bytes of `count` checkpoints for each sequence.

    Where layers forget (windows, recurrent states), llama.cpp's server keeps copies of what they
    remembered at earlier tokens, to go back there when a conversation goes on from there.
    """
    if not is_causal(header):
        return Memory(0, "none: nothing is remembered")
    window, _ = _windowed_layers(header, _layers(header))
    _, short = _token_bytes(header)
    each = short * min(window, room.cells) + _state_bytes(header)
    words = f"{count} for each of {room.sequences} sequences x {each} bytes"
    return Memory(each * count * room.sequences, words)


def window_cells(header: GgufHeader, room: Room) -> int:
    """Tokens of one stream that the windowed layers have room for; 0 without such layers."""
    window, windowed = _windowed_layers(header, _layers(header))
    if not any(windowed):
        return 0
    sharing = room.sequences // room.streams
    return min(room.cells, _padded(window * sharing + room.ubatch))


def _cache(header: GgufHeader, room: Room) -> Memory:
    full, short = _token_bytes(header)
    few_cells = window_cells(header, room)
    words = f"{full} bytes/token x {room.cells}"
    if short:
        words += f" + {short} bytes/token x {few_cells} in the window"
    if room.streams > 1:
        words = f"({words}) x {room.streams} sequences"
    return Memory((full * room.cells + short * few_cells) * room.streams, words)


def _token_bytes(header: GgufHeader) -> tuple[int, int]:
    """Bytes one token takes in the layers that keep all tokens, and in those with a window."""
    heads = _kv_heads(header)
    _, windowed = _windowed_layers(header, len(heads))
    full = short = 0
    for layer, has_cache in enumerate(_attention_layers(header, heads)):
        if has_cache:
            width = heads[layer] * _head_width(header, windowed=windowed[layer]) * _CACHE_BYTES
            full += 0 if windowed[layer] else width
            short += width if windowed[layer] else 0
    return full, short


def _state_bytes(header: GgufHeader) -> int:
    """Bytes all recurrent layers carry along for one sequence."""
    recurrent = sum(_recurrent_layers(header, _kv_heads(header)))
    return recurrent * _state_per_layer(header) * _STATE_BYTES


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


def _kv_heads(header: GgufHeader) -> tuple[int, ...]:
    """Key and value heads of each layer."""
    layers = _layers(header)
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


def _attention_layers(header: GgufHeader, heads: tuple[int, ...]) -> tuple[bool, ...]:
    """Which layers keep keys and values."""
    arch = header.architecture
    recurrent = _recurrent_layers(header, heads)
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
