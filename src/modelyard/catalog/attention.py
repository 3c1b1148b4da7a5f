"""What the layers of a model remember of the tokens they have seen, whatever engine runs it.

Laws of this file:
- Values only. `attention_gguf` and `attention_config` read them from files, `kv` turns them into
  the bytes that each engine takes.
- Widths are numbers per token or sequence, never bytes: the engine chooses the number format.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum


class Keeps(StrEnum):
    """What a layer remembers."""

    ALL = "all tokens"
    WINDOW = "a sliding window"
    CHUNK = "the current chunk"
    STATE = "a state of fixed size"
    ENCODED = "the encoded input"
    """Cross-attention: as much as the encoder's input is long, once for each sequence."""


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers that remember alike."""

    keeps: Keeps
    layers: int = 1
    heads: int = 0
    """Heads of keys and values: fewer than query heads with GQA, one with MQA."""
    key: int = 0
    """Numbers per head and token."""
    value: int = 0
    span: int = 0
    """Tokens of a window, a chunk or the encoded input."""
    latent: bool = False
    """MLA: `key` is one compressed vector per token that every head shares, so that tensor
    parallelism does not divide it; there is no value."""
    unpacked: int = 0
    """Numbers per token where an engine stores MLA's keys and values unpacked, for all heads."""
    conv: int = 0
    """Numbers of a convolution's state per sequence."""
    state: int = 0
    """Numbers of a recurrent state per sequence."""
    copies: int = 2
    """States of one sequence that vLLM makes room for where it remembers prefixes: the one that is
    computed and that of the last whole block, and of Mamba-2 one more within the prompt."""

    @property
    def width(self) -> int:
        """Numbers per token and layer."""
        return self.heads * (self.key + self.value)


@dataclass(frozen=True, slots=True)
class Attention:
    """What all layers of a model remember."""

    groups: tuple[LayerGroup, ...]
    causal: bool = True
    """False for encoders, which remember nothing between two inputs."""

    def of(self, keeps: Keeps) -> tuple[LayerGroup, ...]:
        """The groups that remember this way."""
        return tuple(group for group in self.groups if group.keeps is keeps)

    @property
    def kind(self) -> str:
        """What people call it: MHA, GQA, MQA, MLA, with what it is mixed with."""
        words: list[str] = []
        for group in self.groups:
            if group.latent:
                words.append("MLA")
            elif group.keeps is Keeps.WINDOW:
                words.append("sliding window")
            elif group.keeps is Keeps.CHUNK:
                words.append("chunked")
            elif group.keeps is Keeps.STATE:
                words.append("state")
            elif group.heads == 1:
                words.append("MQA")
            else:
                words.append("full")
        return " + ".join(dict.fromkeys(words)) or "none"


def grouped(layers: Iterable[LayerGroup]) -> tuple[LayerGroup, ...]:
    """Layers one by one, put together where they are alike."""
    counted = Counter(replace(layer, layers=1) for layer in layers)
    return tuple(replace(layer, layers=count) for layer, count in counted.items())
