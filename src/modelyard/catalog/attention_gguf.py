"""What the layers of a GGUF file's model remember, by architecture.

Laws of this file:
- Pure arithmetic over header values; a value that cannot be is a BadModelFile, never a wrong sum.
- What is not known of an architecture is counted as if every layer remembered every token: too
  much is a model that waits, too little is a machine that swaps.

Sources are facts of llama.cpp: sizes of recurrent states in src/llama-hparams.cpp (n_embd_r,
n_embd_s), window patterns in the loaders under src/models/.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from modelyard.catalog.attention import Attention, Keeps, LayerGroup, grouped
from modelyard.catalog.classify import is_causal
from modelyard.catalog.errors import BadModelFile
from modelyard.catalog.gguf import GgufHeader

MAX_LAYERS: Final = 4096


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


def attention_of(header: GgufHeader) -> Attention:
    """What the model of `header` remembers. Raises BadModelFile where it contradicts itself."""
    if not is_causal(header):
        return Attention((), causal=False)
    return Attention(grouped(_each_layer(header)))


def _each_layer(header: GgufHeader) -> Iterator[LayerGroup]:
    heads = _kv_heads(header)
    window, windowed = _windowed_layers(header, len(heads))
    for layer, has_cache in enumerate(_attention_layers(header, heads)):
        if has_cache and heads[layer]:
            key, value = _head_widths(header, windowed=windowed[layer])
            yield LayerGroup(
                Keeps.WINDOW if windowed[layer] else Keeps.ALL,
                heads=heads[layer],
                key=key,
                value=value,
                span=window if windowed[layer] else 0,
                latent=bool(header.count("attention.key_length_mla")),
            )
    conv, state = _state_per_layer(header)
    for _ in range(sum(_recurrent_layers(header, heads))):
        yield LayerGroup(Keeps.STATE, conv=conv, state=state)


def _layers(header: GgufHeader) -> int:
    layers = header.count("block_count") or 0
    if layers > MAX_LAYERS:
        raise BadModelFile(
            header.path,
            f"{header.architecture}.block_count is {layers}; at most {MAX_LAYERS} are accepted",
        )
    return layers


def _kv_heads(header: GgufHeader) -> tuple[int, ...]:
    """Key and value heads of each layer."""
    layers = _layers(header)
    heads = header.counts("attention.head_count_kv", layers)
    if heads is None:
        heads = header.counts("attention.head_count", layers)
    return heads or (0,) * layers


def _head_widths(header: GgufHeader, *, windowed: bool) -> tuple[int, int]:
    """Numbers per head and token that are kept: of the key and of the value."""
    if header.count("attention.key_length_mla"):
        # Keys and values are rebuilt from one compressed vector, and the value is a part of it.
        rank = header.count("attention.kv_lora_rank") or 0
        key = header.count("attention.key_length")
        return key or (rank + (header.count("rope.dimension_count") or 0)), 0
    embedding = header.count("embedding_length") or 0
    most_heads = max(header.counts("attention.head_count", 1) or (0,))
    default = embedding // most_heads if most_heads else 0

    def width(part: str) -> int:
        of_window = header.count(f"{part}_swa") if windowed else None
        plain = header.count(part)
        return of_window or (default if plain is None else plain)

    return width("attention.key_length"), width("attention.value_length")


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
    if not any(_state_per_layer(header)):
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


def _state_per_layer(header: GgufHeader) -> tuple[int, int]:
    """Numbers a recurrent layer carries along for one sequence, of its convolution and of its
    state; zeros without recurrent layers."""
    embedding = header.count("embedding_length") or 0
    wkv = header.count("wkv.head_size")
    if wkv:
        shifts = header.count("token_shift_count")
        return (2 if shifts is None else shifts) * embedding, embedding * wkv
    short = header.count("shortconv.l_cache")
    if short:
        return embedding * (short - 1), 0
    steps = max(0, (header.count("ssm.conv_kernel") or 0) - 1)
    kda = header.count("kda.head_dim")
    if kda:
        heads = max(header.counts("attention.head_count", 1) or (0,))
        return 3 * steps * heads * kda, kda * kda * heads
    inner = header.count("ssm.inner_size") or 0
    state = header.count("ssm.state_size") or 0
    groups = header.count("ssm.group_count") or 0
    return steps * (inner + 2 * groups * state), state * inner
