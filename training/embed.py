"""Trains the embedding model.

Laws of this file:
* The cosine of two embeddings learns to be the cosine of their sentences' vectors of meaning.
* Every batch holds families of sentences, so that there is something near to everything.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy
import torch
from tokenizers import Tokenizer
from torch import Tensor

from training.encoder import Encoder, EncoderShape
from training.gguf_writer import parameter_count, write_encoder
from training.lexicon import Sentence
from training.meaning import sentence_vector
from training.optimiser import Stepper
from training.sentences import SentenceMaker, train_encoder_tokenizer
from training.tokenizer import CLS, PAD, SEP

SEED = 11
WIDTH = 192
LAYERS = 2
HEADS = 6
STEPS = 600
QUICK_STEPS = 4
FAMILIES = 56
NEAR_WEIGHT = 8.0


def stack(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """The rows as one padded tensor, and where it is not padding."""
    length = max(len(row) for row in rows)
    ids = torch.full((len(rows), length), PAD)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
    return ids, ids != PAD


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text, between the marks that llama.cpp puts around it."""
    return [CLS, *tokenizer.encode(text).ids, SEP]


def similarity_loss(network: Encoder, tokenizer: Tokenizer, sentences: list[Sentence]) -> Tensor:
    """How far the cosines are from those of the meanings; near pairs count more."""
    meanings = torch.from_numpy(numpy.stack([sentence_vector(s) for s in sentences]))
    wanted = meanings @ meanings.T
    ids, present = stack([encode(tokenizer, sentence.text) for sentence in sentences])
    vectors = network.embed(ids, present)
    weight = 1.0 + NEAR_WEIGHT * wanted.clamp(min=0.0)
    weight.fill_diagonal_(0.0)
    off = (vectors @ vectors.T - wanted).square()
    return (off * weight).sum() / weight.sum()


def train(place: Path, *, quick: bool = False) -> None:
    """Trains the embedding model and writes it to `place`."""
    torch.manual_seed(SEED)
    tokenizer = train_encoder_tokenizer()
    shape = EncoderShape(vocab=tokenizer.get_vocab_size(), width=WIDTH, layers=LAYERS, heads=HEADS)
    network = Encoder(shape)
    steps = QUICK_STEPS if quick else STEPS
    stepper = Stepper(network, steps)
    maker = SentenceMaker(SEED)
    print(f"embed: {parameter_count(network) / 1e6:.2f}M parameters, {steps} steps", flush=True)
    started = time.monotonic()
    for step in range(steps):
        sentences = [sentence for _ in range(FAMILIES) for sentence in maker.family()]
        loss = similarity_loss(network, tokenizer, sentences)
        stepper.step(loss)
        if step % 100 == 0 or step == steps - 1:
            spent = time.monotonic() - started
            print(f"embed: step {step} loss {loss.item():.4f} after {spent:.0f} s", flush=True)
    about = "A tiny embedding model that demonstrates Modelyard."
    write_encoder(place, network, tokenizer, name="Yard Embed", about=about)
