"""Bytes that an engine takes to remember what its sequences have seen.

Laws of this file:
- Pure arithmetic over an `Attention`; each engine's own way of rounding, padding and windowing.
- The same question has the same form for every engine: `kv_bytes`.

Sources: llama.cpp's src/llama-kv-cache*.cpp and src/llama-memory-recurrent.cpp; vLLM's
vllm/v1/kv_cache_interface.py (`max_memory_usage_bytes` of each spec) and v1/core/kv_cache_utils.py
(groups of equal size); transformers' cache_utils.py (DynamicCache).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Final

from modelyard.catalog.attention import Attention, Keeps, LayerGroup
from modelyard.catalog.attention_gguf import attention_of
from modelyard.catalog.gguf import GgufHeader

AUTO_SEQUENCES: Final = 4
"""What llama.cpp runs at once when it is left to choose (common/arg.cpp, `--parallel -1`)."""
VLLM_BLOCK: Final = 16
"""Tokens in a block of vLLM's cache on GPUs; on the host 128."""
VLLM_BATCHED_TOKENS: Final = 2048
"""What vLLM computes at once on GPUs of less than 70 GiB and on the host."""
STATE_BYTES: Final = 4
"""llama.cpp keeps recurrent states as F32."""

NUMBER_BYTES: Final[Mapping[str, Fraction]] = MappingProxyType(
    {
        "f32": Fraction(4),
        "float32": Fraction(4),
        "float": Fraction(4),
        "f16": Fraction(2),
        "float16": Fraction(2),
        "half": Fraction(2),
        "bf16": Fraction(2),
        "bfloat16": Fraction(2),
        "fp8": Fraction(1),
        "fp8_e4m3": Fraction(1),
        "fp8_e5m2": Fraction(1),
        "int8": Fraction(1),
        "q8_0": Fraction(34, 32),
        "q5_1": Fraction(24, 32),
        "q5_0": Fraction(22, 32),
        "q4_1": Fraction(20, 32),
        "q4_0": Fraction(18, 32),
        "iq4_nl": Fraction(18, 32),
        "nvfp4": Fraction(9, 16),
    }
)
"""Bytes per number of the formats that caches come in, by the engines' names."""

_CELL_PAD: Final = 256
"""llama.cpp's caches hold a multiple of this many tokens."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes, and in words how they were reckoned."""

    n_bytes: int
    formula: str


@dataclass(frozen=True, slots=True)
class Room:
    """How many tokens a llama.cpp context makes room for, and how its sequences share it.

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


def number_bytes(dtype: str) -> Fraction:
    """Bytes per number of a cache in this format; two where the name is not known (`auto`)."""
    return NUMBER_BYTES.get(dtype.lower(), Fraction(2))


def kv_bytes(
    attention: Attention,
    engine: str,
    context: int,
    sequences: int = 1,
    dtype: str = "auto",
    *,
    batched_tokens: int = VLLM_BATCHED_TOKENS,
    block: int = VLLM_BLOCK,
    tensor_parallel: int = 1,
    state_dtype: str = "auto",
    in_flight: int = 1,
) -> Memory:
    """Bytes in which `engine` remembers `sequences` sequences of `context` tokens each.

    For one device of `tensor_parallel`; all layers are counted, so the caller divides by pipeline
    stages. `dtype` is that of the cache by the engine's name (`auto`: two bytes), `state_dtype`
    that of recurrent states in vLLM. `batched_tokens` are computed at once (vLLM's
    max_num_batched_tokens, llama.cpp's ubatch) and windows hold them too, as often as vLLM has such
    batches `in_flight` (two on GPUs, where one is prepared while another is computed); `block` is
    vLLM's.
    Engines: `llamacpp`, `vllm`, `transformers`; any other name counts as transformers.
    """
    if not attention.causal:
        return Memory(0, "none: its attention looks both ways, nothing is remembered")
    if engine == "llamacpp":
        room = room_for(context * sequences, sequences, min(batched_tokens, context))
        return llamacpp_memory(attention, room, dtype, dtype)
    if engine == "vllm":
        window = batched_tokens * in_flight
        paging = _Paging(block, window, tensor_parallel, dtype, state_dtype)
        return _vllm(attention, context, sequences, paging)
    return _transformers(attention, context, sequences, dtype)


# ---------------------------------------------------------------------------------------- llama.cpp


def room_for(context: int, parallel: int, ubatch: int) -> Room:
    """What llama.cpp makes of `context` tokens for `parallel` sequences.

    Each sequence has its own part of the context. With `parallel` below 1 llama.cpp chooses: four
    sequences, and each may use the whole context as long as the others leave it.
    """
    if parallel < 1:
        return Room(_padded(context), 1, AUTO_SEQUENCES, ubatch)
    return Room(_padded(max(1, context // parallel)), parallel, parallel, ubatch)


def context_memory(
    header: GgufHeader, room: Room, key_type: str = "f16", value_type: str = "f16"
) -> Memory:
    """Bytes in which a llama.cpp context remembers what its sequences have seen.

    Raises BadModelFile where the header contradicts itself.
    """
    return llamacpp_memory(attention_of(header), room, key_type, value_type)


def llamacpp_memory(
    attention: Attention, room: Room, key_type: str = "f16", value_type: str = "f16"
) -> Memory:
    """The same, for an attention that was read already."""
    if not attention.causal:
        return Memory(0, "none: its attention looks both ways, nothing is remembered")
    full = _per_token(attention.of(Keeps.ALL), key_type, value_type)
    short = _per_token(_short(attention), key_type, value_type)
    few = short_cells(attention, room)
    words = f"{full} bytes/token x {room.cells}"
    if short:
        words += f" + {short} bytes/token x {few} in the window"
    if room.streams > 1:
        words = f"({words}) x {room.streams} sequences"
    total = (full * room.cells + short * few) * room.streams
    state = state_bytes(attention)
    if not state:
        return Memory(total, words)
    of_state = f"{state} bytes of state of {room.sequences} sequences"
    formula = f"{words} + {of_state}" if total else of_state
    return Memory(total + state * room.sequences, formula)


def checkpoint_memory(header: GgufHeader, room: Room, count: int) -> Memory:
    """Bytes of `count` checkpoints for each sequence.

    Where layers forget (windows, recurrent states), llama.cpp's server keeps copies of what they
    remembered at earlier tokens, to go back there when a conversation goes on from there.
    """
    attention = attention_of(header)
    if not attention.causal:
        return Memory(0, "none: nothing is remembered")
    window = max((group.span for group in _short(attention)), default=0)
    short = _per_token(_short(attention), "f16", "f16")
    each = short * min(window, room.cells) + state_bytes(attention)
    words = f"{count} for each of {room.sequences} sequences x {each} bytes"
    return Memory(each * count * room.sequences, words)


def window_cells(header: GgufHeader, room: Room) -> int:
    """Tokens of one stream that the windowed layers have room for; 0 without such layers."""
    return short_cells(attention_of(header), room)


def short_cells(attention: Attention, room: Room) -> int:
    """The same, for an attention that was read already."""
    window = max((group.span for group in _short(attention)), default=0)
    if not window:
        return 0
    sharing = room.sequences // room.streams
    return min(room.cells, _padded(window * sharing + room.ubatch))


def state_bytes(attention: Attention) -> int:
    """Bytes all recurrent layers carry along for one sequence in llama.cpp."""
    groups = attention.of(Keeps.STATE)
    return sum(group.layers * (group.conv + group.state) for group in groups) * STATE_BYTES


def _short(attention: Attention) -> tuple[LayerGroup, ...]:
    return (*attention.of(Keeps.WINDOW), *attention.of(Keeps.CHUNK))


def _per_token(groups: tuple[LayerGroup, ...], key_type: str, value_type: str) -> int:
    keys = sum(group.layers * group.heads * group.key for group in groups)
    values = sum(group.layers * group.heads * group.value for group in groups)
    return -int(-(keys * number_bytes(key_type) + values * number_bytes(value_type)) // 1)


def _padded(cells: int) -> int:
    return -(-cells // _CELL_PAD) * _CELL_PAD


# --------------------------------------------------------------------------------------------- vLLM


@dataclass(frozen=True, slots=True)
class _Paging:
    """How vLLM cuts its cache into pages."""

    block: int
    in_flight_tokens: int
    """Computed at once, or scheduled and not settled: windows hold them too."""
    tensor_parallel: int
    dtype: str
    state_dtype: str

    def token_bytes(self, group: LayerGroup) -> Fraction:
        """Bytes of one token in one layer on one device."""
        if group.latent:
            return group.key * number_bytes(self.dtype)
        heads = max(1, group.heads // self.tensor_parallel)
        return heads * (group.key + group.value) * number_bytes(self.dtype)

    def state_page(self, group: LayerGroup) -> Fraction:
        """Bytes of one sequence in one recurrent layer on one device. Convolutions are kept in
        the model's format, which is two bytes."""
        kept = group.conv * 2 + group.state * number_bytes(self.state_dtype)
        return kept / self.tensor_parallel


def _vllm(attention: Attention, context: int, sequences: int, paging: _Paging) -> Memory:
    """The pages that each sequence may need, as vLLM's cache specifications count them.

    Where layers differ in kind, their pages are made equal and their groups have the same number
    of layers: the fewest of a kind, and other kinds are filled up to a multiple.
    """
    groups = attention.groups
    block, page = _equal_pages(groups, paging)
    counts = [group.layers for group in groups]
    smallest, largest = min(counts, default=0), max(counts, default=0)
    size = largest if largest < smallest * 1.5 else smallest
    total = Fraction(0)
    words: list[str] = []
    is_hybrid = any(group.keeps is not Keeps.STATE for group in groups)
    for group in groups:
        blocks = _blocks(group, context, block, paging.in_flight_tokens, is_hybrid=is_hybrid)
        layers = -(-group.layers // size) * size if len(groups) > 1 else group.layers
        each = page or block * paging.token_bytes(group)
        total += layers * blocks * each
        words.append(f"{layers} layers x {blocks} blocks x {float(each):g} bytes ({group.keeps})")
    formula = f"{sequences} sequences x ({' + '.join(words) or 'nothing'})"
    return Memory(-int(-total * sequences // 1), formula)


def _equal_pages(groups: tuple[LayerGroup, ...], paging: _Paging) -> tuple[int, Fraction | None]:
    """Tokens of a block, and the bytes of a page where layers of different kinds must share one;
    None where all pages follow from their own layers."""
    states = [paging.state_page(group) for group in groups if group.keeps is Keeps.STATE]
    tokens = [paging.token_bytes(group) for group in groups if group.keeps is not Keeps.STATE]
    if not states:
        page = max(tokens, default=Fraction(0)) * paging.block
        return paging.block, (page if len(groups) > 1 else None)
    if not any(tokens):
        return paging.block, max(states)
    # Blocks of attention grow until they hold a state.
    widest = max(tokens)
    blocks = -int(-max(states) // (widest * paging.block))
    block = max(1, blocks) * paging.block
    return block, block * widest


def _blocks(group: LayerGroup, context: int, block: int, batched: int, *, is_hybrid: bool) -> int:
    """Pages of one sequence in one layer. Prefixes are remembered, which costs copies of a state,
    where there is attention beside it."""

    def covering(tokens: int) -> int:
        return -(-tokens // block)

    if group.keeps is Keeps.STATE:
        return group.copies if is_hybrid else 1
    if group.keeps is Keeps.WINDOW:
        return covering(min(group.span - 1 + batched, context)) + 1
    if group.keeps is Keeps.CHUNK:
        return covering(min(group.span + batched, context))
    if group.keeps is Keeps.ENCODED:
        return covering(group.span)
    return covering(context)


# ------------------------------------------------------------------------------------- transformers


def _transformers(attention: Attention, context: int, sequences: int, dtype: str) -> Memory:
    """Tensors as long as what was seen, and MLA unpacked."""
    each = number_bytes(dtype)
    total = Fraction(0)
    words: list[str] = []
    for group in attention.groups:
        if group.keeps is Keeps.STATE:
            numbers, tokens = group.conv + group.state, 1
        else:
            numbers = group.unpacked or group.width
            tokens = context if group.keeps is Keeps.ALL else min(group.span, context)
            if group.keeps is Keeps.ENCODED:
                tokens = group.span
        total += group.layers * numbers * tokens * each
        words.append(f"{group.layers} layers x {tokens} tokens x {numbers} numbers")
    formula = f"{sequences} sequences x ({' + '.join(words) or 'nothing'}) x {float(each):g} bytes"
    return Memory(-int(-total * sequences // 1), formula)
