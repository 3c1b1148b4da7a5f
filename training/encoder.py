"""The encoder network of the embedding model and the reranker, as llama.cpp computes BERT.

Laws of this file:
* Post-norm blocks with layer norms and biases, GELU in its tanh form, a fixed table
  of positions, one token type.
* Every token sees every other token of its own sequence; padding is masked.
* The embedding is the mean over all tokens; the rank score is read at the first token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

POSITION_STRENGTH = 0.02


@dataclass(frozen=True)
class EncoderShape:
    """The sizes of an encoder."""

    vocab: int
    context: int = 512
    width: int = 128
    layers: int = 3
    heads: int = 4
    feed_forward: int = 384
    ranks: bool = False
    norm_epsilon: float = 1e-12


class EncoderBlock(nn.Module):
    """Attention and feed-forward; each sum is normalised."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.heads = shape.heads
        width = shape.width
        self.attn_q = nn.Linear(width, width)
        self.attn_k = nn.Linear(width, width)
        self.attn_v = nn.Linear(width, width)
        self.attn_output = nn.Linear(width, width)
        self.attn_output_norm = nn.LayerNorm(width, eps=shape.norm_epsilon)
        self.ffn_up = nn.Linear(width, shape.feed_forward)
        self.ffn_down = nn.Linear(shape.feed_forward, width)
        self.layer_output_norm = nn.LayerNorm(width, eps=shape.norm_epsilon)

    def forward(self, stream: Tensor, mask: Tensor) -> Tensor:
        batch, length, width = stream.shape

        def heads(projected: Tensor) -> Tensor:
            return projected.view(batch, length, self.heads, -1).transpose(1, 2)

        mixed = functional.scaled_dot_product_attention(
            heads(self.attn_q(stream)),
            heads(self.attn_k(stream)),
            heads(self.attn_v(stream)),
            attn_mask=mask,
        )
        attended = self.attn_output(mixed.transpose(1, 2).reshape(batch, length, width))
        stream = self.attn_output_norm(stream + attended)
        grown = functional.gelu(self.ffn_up(stream), approximate="tanh")
        result: Tensor = self.layer_output_norm(stream + self.ffn_down(grown))
        return result


def sinusoids(context: int, width: int) -> Tensor:
    """Fixed position vectors, so that positions beyond the training lengths behave."""
    half = width // 2
    frequency = torch.exp(-math.log(10000.0) * torch.arange(half) / half)
    angle = torch.outer(torch.arange(context, dtype=torch.float32), frequency)
    return POSITION_STRENGTH * torch.cat((angle.sin(), angle.cos()), dim=1)


class Encoder(nn.Module):
    """Token ids and their padding mask in; token states, embeddings or rank scores out."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.width
        self.token_embd = nn.Embedding(shape.vocab, width)
        self.position_embd = nn.Embedding(shape.context, width)
        self.token_types = nn.Embedding(1, width)
        self.token_embd_norm = nn.LayerNorm(width, eps=shape.norm_epsilon)
        self.blk = nn.ModuleList(EncoderBlock(shape) for _ in range(shape.layers))
        nn.init.normal_(self.token_embd.weight, std=0.05)
        nn.init.zeros_(self.token_types.weight)
        self.position_embd.weight.data = sinusoids(shape.context, width)
        self.position_embd.weight.requires_grad = False
        if shape.ranks:
            self.cls = nn.Linear(width, width)
            self.cls.register_module("output", nn.Linear(width, 1))

    def states(self, ids: Tensor, present: Tensor) -> Tensor:
        """The last state of every token."""
        length = ids.shape[1]
        summed = self.token_embd(ids) + self.position_embd.weight[:length] + self.token_types.weight
        stream: Tensor = self.token_embd_norm(summed)
        mask = present[:, None, None, :]
        for block in self.blk:
            stream = block(stream, mask)
        return stream

    def embed(self, ids: Tensor, present: Tensor) -> Tensor:
        """One vector of length one per sequence."""
        weight = present.unsqueeze(-1).to(torch.float32)
        mean = (self.states(ids, present) * weight).sum(1) / weight.sum(1)
        return functional.normalize(mean, dim=-1)

    def rank(self, ids: Tensor, present: Tensor) -> Tensor:
        """One relevance score per sequence."""
        first = self.states(ids, present)[:, 0]
        score: Tensor = self.cls.get_submodule("output")(torch.tanh(self.cls(first)))
        return score.squeeze(-1)
