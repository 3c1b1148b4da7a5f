"""Trains the chat model.

Laws of this file:
* The text of a conversation is exactly what the chat template in the GGUF file writes.
* Only what the assistant says is learned. Some questions are cut into tokens at random places,
  answers are not.
* Which answer fits is decided in its first words, so most last answers are cut after them: the
  time goes into telling questions apart.
* Plain facts are learned too, so that a bare completion continues sensibly.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from training.chat_corpus import ChatCorpus, Message
from training.decoder import Decoder, DecoderShape
from training.gguf_writer import parameter_count, write_chat
from training.optimiser import Stepper
from training.tokenizer import END_OF_TEXT, TURN_END, TURN_START, encode_loosely, train_bpe

SEED = 7
VOCABULARY = 2560
STEPS = 2200
QUICK_STEPS = 4
BATCH = 24
POOL = 24
CUT_CHANCE = 0.06
PLAIN_SHARE = 0.06
BEGINNING_SHARE, BEGINNING = 0.7, 12

Example = tuple[list[int], list[float]]


def train_tokenizer(corpus: ChatCorpus) -> Tokenizer:
    """The tokenizer of the chat model, from a fixed sample of its own conversations."""
    rng = random.Random(SEED)
    texts = [corpus.plain(rng) for _ in range(400)]
    for _ in range(6000):
        texts += [f"{m['role']}\n{m['content']}" for m in corpus.conversation(rng)]
    return train_bpe(texts, VOCABULARY)


class ExampleMaker:
    """Turns conversations into token ids with a weight for each id."""

    def __init__(self, corpus: ChatCorpus, tokenizer: Tokenizer, seed: int) -> None:
        self.corpus = corpus
        self.tokenizer = tokenizer
        self.rng = random.Random(seed)

    def example(self) -> Example:
        """One conversation or one plain text."""
        if self.rng.random() < PLAIN_SHARE:
            plain = [*self.tokenizer.encode(self.corpus.plain(self.rng)).ids, TURN_END]
            return plain, [1.0] * len(plain)
        ids: list[int] = []
        weights: list[float] = []
        messages = self.corpus.conversation(self.rng)
        for message in messages[:-1]:
            self._add_message(message, ids, weights)
        before = len(ids)
        self._add_message(messages[-1], ids, weights)
        if self.rng.random() < BEGINNING_SHARE:
            end = before + BEGINNING
            return ids[:end], weights[:end]
        return ids, weights

    def _add_message(self, message: Message, ids: list[int], weights: list[float]) -> None:
        header = [TURN_START, *self.tokenizer.encode(message["role"] + "\n").ids]
        ids += header
        weights += [0.0] * len(header)
        spoken = message["role"] == "assistant"
        if spoken or self.rng.random() < 0.6:
            body = self.tokenizer.encode(message["content"]).ids
        else:
            body = encode_loosely(self.tokenizer, message["content"], CUT_CHANCE, self.rng)
        ids += [*body, TURN_END]
        weights += [1.0 if spoken else 0.0] * (len(body) + 1)
        newline = self.tokenizer.encode("\n").ids
        ids += newline
        weights += [0.0] * len(newline)

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Several batches of examples of nearly equal length."""
        pool = sorted((self.example() for _ in range(BATCH * POOL)), key=lambda e: len(e[0]))
        cut = [pool[i : i + BATCH] for i in range(0, len(pool), BATCH)]
        self.rng.shuffle(cut)
        return [stack(examples) for examples in cut]


def stack(examples: list[Example]) -> tuple[Tensor, Tensor]:
    """The examples as two padded tensors."""
    length = max(len(ids) for ids, _ in examples)
    ids = torch.full((len(examples), length), END_OF_TEXT)
    weights = torch.zeros(len(examples), length)
    for row, (example, weight) in enumerate(examples):
        ids[row, : len(example)] = torch.tensor(example)
        weights[row, : len(weight)] = torch.tensor(weight)
    return ids, weights


def next_token_loss(network: Decoder, ids: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean surprise at the tokens that carry weight."""
    hidden = network.hidden(ids[:, :-1])
    wanted = weights[:, 1:] > 0
    logits = functional.linear(hidden[wanted], network.token_embd.weight)
    surprise = functional.cross_entropy(logits, ids[:, 1:][wanted], reduction="none")
    weight = weights[:, 1:][wanted]
    return (surprise * weight).sum() / weight.sum()


def train(place: Path, *, quick: bool = False) -> None:
    """Trains the chat model and writes it to `place`."""
    torch.manual_seed(SEED)
    corpus = ChatCorpus()
    tokenizer = train_tokenizer(corpus)
    network = Decoder(DecoderShape(vocab=tokenizer.get_vocab_size()))
    steps = QUICK_STEPS if quick else STEPS
    stepper = Stepper(network, steps)
    maker = ExampleMaker(corpus, tokenizer, SEED)
    print(f"chat: {parameter_count(network) / 1e6:.2f}M parameters, {steps} steps", flush=True)
    started = time.monotonic()
    ready: list[tuple[Tensor, Tensor]] = []
    for step in range(steps):
        if not ready:
            ready = maker.batches()
        loss = next_token_loss(network, *ready.pop())
        stepper.step(loss)
        if step % 100 == 0 or step == steps - 1:
            spent = time.monotonic() - started
            print(f"chat: step {step} loss {loss.item():.4f} after {spent:.0f} s", flush=True)
    write_chat(place, network, tokenizer)
