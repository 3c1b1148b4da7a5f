"""Trains the reranker.

Laws of this file:
* A pair is laid out as llama.cpp lays it out for a vocabulary that asks for a start and a
  separator but for no end: [CLS] query [SEP] document.
* A document is as relevant as its contents cover those of the query; an answer to a question
  of the corpus is fully relevant, the answer to another question is not.
* Every list holds a relevant document, one that shares a part or the topic, and strangers.
* The word vectors start as the main directions of those of the embedding model, which must have
  been trained before; the other directions hold the position. Queries and keys start as the
  same projection, so that a word looks for its like from the first step on.
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import torch
import yaml
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from training import embed
from training.corpus_folder import CORPUS
from training.encoder import Encoder, EncoderShape
from training.gguf_writer import parameter_count, write_encoder
from training.lexicon import Concept, Content, Sentence
from training.meaning import content_vector
from training.optimiser import Stepper
from training.sentences import SentenceMaker, train_encoder_tokenizer
from training.text_grammar import sample
from training.tokenizer import CLS, SEP, gguf_wordpiece_token, vocabulary_in_order

SEED = 13
LAYERS = 3
HEADS = 3
STEPS = 1000
QUICK_STEPS = 4
QUERIES = 14
DOCUMENTS = 6
SHARPNESS = 10.0
GROUP = 28
WORD_DIRECTIONS = 128
POSITION_STRENGTH = 0.7
STEPS_OF_POSITION = (2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 24, 28, 32, 40, 48, 64)
LONGEST_WAVE = 200.0
RANDOM_SHARE = 0.3
_QUERY_KINDS = ("n", "v", "n n", "n v", "a n", "n v n", "a n v", "a n n", "a n v n", "n v n n")
_QUERY_WEIGHTS = (4, 1, 6, 6, 6, 8, 3, 4, 3, 3)


@dataclass(frozen=True)
class Ranking:
    """A query, documents for it, and how relevant each is, from 0 to 1."""

    query: str
    documents: list[str]
    relevance: list[float]


def coverage(query: Sentence, document: Sentence) -> float:
    """How much of the query's content the document holds."""

    def best(wanted: Content) -> float:
        vector = content_vector(wanted)
        length = float((vector @ vector) ** 0.5)
        return max(
            float(vector @ other) / (length * float((other @ other) ** 0.5))
            for other in (content_vector(content) for content in document.contents)
        )

    shares = [max(0.0, best(content)) for content in query.contents]
    return sum(shares) / len(shares)


class RankingMaker:
    """Samples rankings."""

    def __init__(self, seed: int) -> None:
        self.maker = SentenceMaker(seed)
        self.rng: random.Random = self.maker.rng
        self.answers: list[dict[str, Any]] = yaml.safe_load(
            (CORPUS / "qa.yaml").read_text(encoding="utf-8")
        )

    def ranking(self) -> Ranking:
        """One ranking of any kind."""
        chance = self.rng.random()
        if chance < 0.1:
            return self._from_answers()
        if chance < 0.2:
            return self._from_chat()
        return self._from_lexicon()

    def _from_answers(self) -> Ranking:
        entries = self.rng.sample(self.answers, DOCUMENTS - self.rng.choice((0, 2, 4)))
        query = sample(self.rng.choice(entries[0]["q"]), self.rng)
        chinese = not query.isascii()
        documents = [self._answer(entry, chinese) for entry in entries]
        return self._with_strangers(self._asked(query), documents, chinese=chinese)

    def _answer(self, entry: dict[str, Any], chinese: bool) -> str:
        fitting = [text for text in entry["a"] if text.isascii() != chinese] or entry["a"]
        return str(self.rng.choice(fitting))

    def _from_chat(self) -> Ranking:
        corpus = self.maker.corpus
        chinese = self.rng.random() < 0.35
        asking = [intent for intent in corpus.intents if not intent.get("bare")]
        intents = self.rng.sample(asking, DOCUMENTS - self.rng.choice((0, 2, 4)))
        query = corpus.question(intents[0], self.rng, chinese=chinese)
        documents = [intent["answer_zh" if chinese else "answer_en"][0] for intent in intents]
        return self._with_strangers(query, documents, chinese=chinese)

    def _with_strangers(self, query: str, documents: list[str], *, chinese: bool) -> Ranking:
        """The answer, which comes first, other answers, and sentences about anything."""
        while len(documents) < DOCUMENTS:
            documents.append(self._stranger(chinese=chinese).text)
        return self._shuffled(query, documents, [0.95] + [0.05] * (DOCUMENTS - 1))

    def _stranger(self, *, chinese: bool) -> Sentence:
        kinds = self.maker.kinds()
        concepts = self.maker.new_concepts(kinds)
        return self._document(kinds, concepts, chinese=chinese and self._known(concepts))

    def _asked(self, text: str) -> str:
        text = text[:1].upper() + text[1:] if self.rng.random() < 0.6 else text
        return text + self.rng.choice(("?", "", "?"))

    def _from_lexicon(self) -> Ranking:
        kinds = self.rng.choices(_QUERY_KINDS, _QUERY_WEIGHTS)[0]
        concepts = self._with_inventions(self.maker.new_concepts(kinds))
        known = all(isinstance(concept, Concept) for concept in concepts)
        chinese = known and self.rng.random() < 0.15
        query = self._query(kinds, concepts, chinese=chinese)
        whole = self._kept(query, concepts, self.rng.choice((0.0, 0.5, 1.0)))
        documents = [self._document(kinds, whole, chinese=chinese)]
        partial = self._changed(kinds, self._kept(query, concepts, self.rng.choice((0.5, 1.0))))
        documents.append(self._document(kinds, partial, chinese=chinese))
        while len(documents) < DOCUMENTS:
            documents.append(self._stranger(chinese=chinese))
        relevance = [coverage(query, document) for document in documents]
        return self._shuffled(query.text, [document.text for document in documents], relevance)

    def _known(self, concepts: tuple[Concept | Content, ...]) -> bool:
        return all(isinstance(concept, Concept) for concept in concepts)

    def _with_inventions(
        self, concepts: tuple[Concept | Content, ...]
    ) -> tuple[Concept | Content, ...]:
        if self.rng.random() < 0.7:
            return concepts
        return tuple(
            self.maker.invented(chinese=False) if self.rng.random() < 0.6 else concept
            for concept in concepts
        )

    def _query(
        self, kinds: str, concepts: tuple[Concept | Content, ...], *, chinese: bool
    ) -> Sentence:
        sentence = self.maker.say(kinds, concepts, chinese=chinese)
        if chinese or self.rng.random() < 0.6:
            return sentence
        words = " ".join(content.word for content in sentence.contents)
        pattern = self.rng.choice(self.maker.lexicon.queries)
        return Sentence(self._asked(pattern.replace("{}", words)), sentence.contents)

    def _kept(
        self, query: Sentence, concepts: tuple[Concept | Content, ...], share: float
    ) -> tuple[Concept | Content, ...]:
        """The concepts, this share of them by the very words of the query."""
        return tuple(
            content if self.rng.random() < share else concept
            for content, concept in zip(query.contents, concepts, strict=True)
        )

    def _changed(
        self, kinds: str, concepts: tuple[Concept | Content, ...]
    ) -> tuple[Concept | Content, ...]:
        changed = list(concepts)
        for at in self.rng.sample(range(len(changed)), self.rng.randint(1, len(changed))):
            changed[at] = self.maker.new_concepts(kinds.split()[at])[0]
        return tuple(changed)

    def _document(
        self, kinds: str, concepts: tuple[Concept | Content, ...], *, chinese: bool
    ) -> Sentence:
        """A sentence, in half of the cases with a second one before or after it."""
        first = self.maker.say(kinds, concepts, chinese=chinese)
        if self.rng.random() < 0.5:
            return first
        other = self.maker.kinds()
        added = self.maker.new_concepts(other)
        second = self.maker.say(other, added, chinese=chinese and self._known(added))
        pair = [first, second] if self.rng.random() < 0.5 else [second, first]
        text = ". ".join(sentence.text.rstrip(".!?。") for sentence in pair) + "."
        return Sentence(text, pair[0].contents + pair[1].contents)

    def _shuffled(self, query: str, documents: list[str], relevance: list[float]) -> Ranking:
        order = list(range(len(documents)))
        self.rng.shuffle(order)
        return Ranking(query, [documents[i] for i in order], [relevance[i] for i in order])


def encode_pair(tokenizer: Tokenizer, query: str, document: str) -> list[int]:
    """The ids of a query and a document as llama.cpp joins them."""
    return [CLS, *tokenizer.encode(query).ids, SEP, *tokenizer.encode(document).ids]


def scores_of(network: Encoder, rows: list[list[int]]) -> Tensor:
    """The score of every row, computed in groups of similar length."""
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
    groups = [order[start : start + GROUP] for start in range(0, len(order), GROUP)]
    scores = torch.cat(
        [network.rank(*embed.stack([rows[place] for place in group])) for group in groups]
    )
    return scores[torch.tensor(order).argsort()]


def ranking_loss(network: Encoder, tokenizer: Tokenizer, rankings: list[Ranking]) -> Tensor:
    """How far the scores are from the relevance, within each list and in themselves."""
    rows = [
        encode_pair(tokenizer, ranking.query, document)
        for ranking in rankings
        for document in ranking.documents
    ]
    scores = scores_of(network, rows).view(len(rankings), -1)
    relevance = torch.tensor([ranking.relevance for ranking in rankings])
    wanted = (SHARPNESS * relevance).softmax(-1)
    within = -(wanted * scores.log_softmax(-1)).sum(-1) + (wanted * wanted.log()).sum(-1)
    itself = functional.mse_loss(scores, SHARPNESS * (relevance - 0.5))
    return within.mean() + 0.05 * itself


def trained_word_vectors(place: Path, tokenizer: Tokenizer) -> Tensor:
    """The word vectors of the embedding model, read from its GGUF file."""
    reader = gguf.GGUFReader(place)
    stored_tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    if stored_tokens != [gguf_wordpiece_token(token) for token in vocabulary_in_order(tokenizer)]:
        raise ValueError(f"{place} knows other words: train the embedding model first")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    stored = tensors["token_embd.weight"]
    return torch.from_numpy(gguf.quants.dequantize(stored.data, stored.tensor_type).copy())


def position_directions(context: int, width: int) -> Tensor:
    """Where a token stands: smooth steps that tell before from after, and waves."""
    place = torch.arange(context, dtype=torch.float32)[:, None]
    steps = torch.tanh((place - torch.tensor(STEPS_OF_POSITION)) / 2)
    half = (width - len(STEPS_OF_POSITION)) // 2
    angle = place * torch.exp(-math.log(LONGEST_WAVE) * torch.arange(half) / half)
    return POSITION_STRENGTH * torch.cat((steps, angle.sin(), angle.cos()), dim=1)


def main_directions(vectors: Tensor, count: int) -> Tensor:
    """The vectors along the directions in which they differ most, about one in size each.

    They are turned at random, so that every attention head gets its share of each direction.
    """
    centred = vectors - vectors.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    turn, _ = torch.linalg.qr(torch.randn(count, count))
    turned: Tensor = centred @ directions[:count].T @ turn
    scaled: Tensor = turned / turned.norm(dim=1).median() * count**0.5
    return scaled


def start_from_words(network: Encoder, vectors: Tensor) -> None:
    """Gives the network the words and positions, and lets like look for like."""
    width = network.shape.width
    words = torch.zeros_like(network.token_embd.weight)
    words[:, :WORD_DIRECTIONS] = main_directions(vectors, WORD_DIRECTIONS)
    words[[CLS, SEP]] = torch.randn(2, width)
    places = torch.zeros_like(network.position_embd.weight)
    places[:, WORD_DIRECTIONS:] = position_directions(
        network.shape.context, width - WORD_DIRECTIONS
    )
    with torch.no_grad():
        network.token_embd.weight.copy_(words)
        network.position_embd.weight.copy_(places)
        for name, weight in network.named_parameters():
            if name.endswith(("attn_q.weight", "attn_k.weight")):
                weight.mul_(RANDOM_SHARE).add_(torch.eye(width))


def train(folder: Path, *, quick: bool = False) -> None:
    """Trains the reranker and writes it to the folder that holds the embedding model."""
    torch.manual_seed(SEED)
    tokenizer = train_encoder_tokenizer()
    shape = EncoderShape(
        vocab=tokenizer.get_vocab_size(),
        width=embed.WIDTH,
        layers=LAYERS,
        heads=HEADS,
        ranks=True,
    )
    network = Encoder(shape)
    start_from_words(network, trained_word_vectors(folder / "yard-embed.gguf", tokenizer))
    steps = QUICK_STEPS if quick else STEPS
    stepper = Stepper(network, steps, adam_rate=1e-3)
    maker = RankingMaker(SEED)
    print(f"rerank: {parameter_count(network) / 1e6:.2f}M parameters, {steps} steps", flush=True)
    started = time.monotonic()
    for step in range(steps):
        loss = ranking_loss(network, tokenizer, [maker.ranking() for _ in range(QUERIES)])
        stepper.step(loss)
        if step % 100 == 0 or step == steps - 1:
            spent = time.monotonic() - started
            print(f"rerank: step {step} loss {loss.item():.4f} after {spent:.0f} s", flush=True)
    about = "A tiny reranker that demonstrates Modelyard."
    write_encoder(folder / "yard-rerank.gguf", network, tokenizer, name="Yard Rerank", about=about)
