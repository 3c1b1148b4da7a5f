"""The chat network: a small Qwen3 decoder, computed the way llama.cpp computes it.

Laws of this file:
* Pre-norm blocks with RMS norms, rotary positions in the half-split (NeoX) layout, a norm on
  every query and key head, SwiGLU, and an output layer that shares the token embedding.
* Sequences are padded at their end only, so a causal mask is all the masking there is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class DecoderShape:
    """The sizes of a decoder."""

    vocab: int
    context: int = 512
    width: int = 192
    layers: int = 4
    heads: int = 6
    kv_heads: int = 3
    head_width: int = 32
    feed_forward: int = 512
    rope_base: float = 10000.0
    norm_epsilon: float = 1e-6


class DecoderBlock(nn.Module):
    """Attention and feed-forward, each added to the stream it reads."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.shape = shape
        width, head = shape.width, shape.head_width
        self.attn_norm = nn.RMSNorm(width, eps=shape.norm_epsilon)
        self.attn_q = nn.Linear(width, shape.heads * head, bias=False)
        self.attn_k = nn.Linear(width, shape.kv_heads * head, bias=False)
        self.attn_v = nn.Linear(width, shape.kv_heads * head, bias=False)
        self.attn_q_norm = nn.RMSNorm(head, eps=shape.norm_epsilon)
        self.attn_k_norm = nn.RMSNorm(head, eps=shape.norm_epsilon)
        self.attn_output = nn.Linear(shape.heads * head, width, bias=False)
        self.ffn_norm = nn.RMSNorm(width, eps=shape.norm_epsilon)
        self.ffn_gate = nn.Linear(width, shape.feed_forward, bias=False)
        self.ffn_up = nn.Linear(width, shape.feed_forward, bias=False)
        self.ffn_down = nn.Linear(shape.feed_forward, width, bias=False)

    def forward(self, stream: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        stream = stream + self._attend(self.attn_norm(stream), cosine, sine)
        hidden = self.ffn_norm(stream)
        gated = functional.silu(self.ffn_gate(hidden)) * self.ffn_up(hidden)
        down: Tensor = self.ffn_down(gated)
        return stream + down

    def _attend(self, hidden: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        batch, length, _ = hidden.shape
        shape = self.shape

        def heads(projected: Tensor, count: int) -> Tensor:
            return projected.view(batch, length, count, shape.head_width)

        query = rotate(self.attn_q_norm(heads(self.attn_q(hidden), shape.heads)), cosine, sine)
        key = rotate(self.attn_k_norm(heads(self.attn_k(hidden), shape.kv_heads)), cosine, sine)
        value = heads(self.attn_v(hidden), shape.kv_heads)
        repeat = shape.heads // shape.kv_heads
        mixed = functional.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.repeat_interleave(repeat, dim=2).transpose(1, 2),
            value.repeat_interleave(repeat, dim=2).transpose(1, 2),
            is_causal=True,
        )
        output: Tensor = self.attn_output(mixed.transpose(1, 2).reshape(batch, length, -1))
        return output


def rotate(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions: the first half of a head turns against the second half."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


class Decoder(nn.Module):
    """Token ids in, next-token logits out."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocab, shape.width)
        self.blk = nn.ModuleList(DecoderBlock(shape) for _ in range(shape.layers))
        self.output_norm = nn.RMSNorm(shape.width, eps=shape.norm_epsilon)
        half = shape.head_width // 2
        frequency = shape.rope_base ** (-torch.arange(half, dtype=torch.float32) / half)
        angle = torch.outer(torch.arange(shape.context, dtype=torch.float32), frequency)
        self.register_buffer("cosine", angle.cos()[None, :, None, :], persistent=False)
        self.register_buffer("sine", angle.sin()[None, :, None, :], persistent=False)
        self._start_small()

    def _start_small(self) -> None:
        nn.init.normal_(self.token_embd.weight, std=0.02)
        for name, weight in self.named_parameters():
            if weight.ndim == 2 and name.startswith("blk."):
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
            if name.endswith(("attn_output.weight", "ffn_down.weight")):
                nn.init.zeros_(weight)

    def hidden(self, ids: Tensor) -> Tensor:
        """The normalised last hidden states."""
        length = ids.shape[1]
        cosine = self.get_buffer("cosine")[:, :length]
        sine = self.get_buffer("sine")[:, :length]
        stream: Tensor = self.token_embd(ids)
        for block in self.blk:
            stream = block(stream, cosine, sine)
        normalised: Tensor = self.output_norm(stream)
        return normalised

    def forward(self, ids: Tensor) -> Tensor:
        return functional.linear(self.hidden(ids), self.token_embd.weight)
