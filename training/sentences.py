"""Makes the sentences that the embedding model and the reranker learn from.

Laws of this file:
* A paraphrase names the same concepts in another frame, by other words, maybe in Chinese.
* A neighbour shares some of the concepts, a stranger none by intent.
* All chance comes from the `random.Random` that the caller passes in.
"""

from __future__ import annotations

import random
from functools import cache

import yaml
from tokenizers import Tokenizer

from training.chat_corpus import ChatCorpus
from training.corpus_folder import CORPUS
from training.lexicon import (
    Concept,
    Content,
    Sentence,
    choose_concepts,
    invented_word,
    load_lexicon,
    name,
    render,
)
from training.tokenizer import train_wordpiece

SEED = 11
VOCABULARY = 7168
_KINDS = ("n", "v", "a", "n n", "n v", "a n", "n v n", "a n v", "a n n", "a n v n", "n v n n")
_KIND_WEIGHTS = (5, 2, 2, 8, 10, 8, 18, 6, 8, 10, 8)


@cache
def fillers() -> tuple[list[str], list[str]]:
    """The words without content, English and Chinese."""
    read = yaml.safe_load((CORPUS / "sentences.yaml").read_text(encoding="utf-8"))
    return read["fillers_en"].split(), read["fillers_zh"].split()


@cache
def common_hanzi() -> list[str]:
    """The characters of the first level of GB 2312, which cover everyday Chinese."""
    rows = (bytes((row, cell)) for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF))
    return [
        character
        for character in (pair.decode("gb2312", errors="ignore") for pair in rows)
        if character
    ]


def strew(text: str, rng: random.Random, *, chinese: bool) -> str:
    """The text with a few words without content put in."""
    english_words, chinese_words = fillers()
    if chinese:
        return rng.choice(chinese_words) + text + rng.choice(("", rng.choice(chinese_words)))
    words = text.split()
    for _ in range(rng.choice((1, 1, 2, 3))):
        words.insert(rng.randint(0, len(words)), rng.choice(english_words))
    return " ".join(words)


class SentenceMaker:
    """Samples sentences with known content."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.lexicon = load_lexicon()
        self.corpus = ChatCorpus()
        self.hanzi = common_hanzi()

    def kinds(self) -> str:
        """The kinds of the contents of a new sentence."""
        return self.rng.choices(_KINDS, _KIND_WEIGHTS)[0]

    def invented(self, *, chinese: bool) -> Content:
        """An invented word, in letters or in characters."""
        if chinese:
            return Content("".join(self.rng.choices(self.hanzi, k=2)), None)
        return Content(invented_word(self.rng), None)

    def say(
        self, kinds: str, concepts: tuple[Concept | Content, ...], *, chinese: bool = False
    ) -> Sentence:
        """The concepts in words; what is Content already keeps its word."""
        contents = tuple(
            item if isinstance(item, Content) else name(item, self.rng, chinese=chinese)
            for item in concepts
        )
        sentence = render(self.lexicon, kinds, contents, self.rng, chinese=chinese)
        text = sentence.text
        if self.rng.random() < 0.35:
            text = strew(text, self.rng, chinese=chinese)
        if not chinese and self.rng.random() < 0.5:
            text = text[:1].upper() + text[1:]
        text += self.rng.choice(("", "", ".", "。" if chinese else ".", "!", "?"))
        return Sentence(text, sentence.contents)

    def new_concepts(self, kinds: str) -> tuple[Concept | Content, ...]:
        """Concepts for the kinds; now and then one of them is an invented word."""
        chosen: list[Concept | Content] = list(choose_concepts(self.lexicon, kinds, self.rng))
        if self.rng.random() < 0.15:
            chosen[self.rng.randrange(len(chosen))] = self.invented(chinese=False)
        return tuple(chosen)

    def family(self) -> list[Sentence]:
        """A sentence, a paraphrase, and two neighbours."""
        if self.rng.random() < 0.08:
            return self._chat_family()
        kinds = self.kinds()
        concepts = self.new_concepts(kinds)
        mixed = all(isinstance(concept, Concept) for concept in concepts)
        languages = (0.2, 0.3 if mixed else 0.0, 0.2 if mixed else 0.0)
        first, second, third = (mixed and self.rng.random() < share for share in languages)
        neighbour = self._changed(kinds, concepts)
        fewer_kinds, fewer = self._fewer(kinds, concepts)
        return [
            self.say(kinds, concepts, chinese=first),
            self.say(kinds, concepts, chinese=second),
            self.say(kinds, neighbour, chinese=third and self._speakable(neighbour)),
            self.say(fewer_kinds, fewer),
        ]

    def _speakable(self, concepts: tuple[Concept | Content, ...]) -> bool:
        return all(isinstance(concept, Concept) for concept in concepts)

    def _changed(
        self, kinds: str, concepts: tuple[Concept | Content, ...]
    ) -> tuple[Concept | Content, ...]:
        changed = list(concepts)
        at = self.rng.randrange(len(changed))
        changed[at] = choose_concepts(self.lexicon, kinds.split()[at], self.rng)[0]
        return tuple(changed)

    def _fewer(
        self, kinds: str, concepts: tuple[Concept | Content, ...]
    ) -> tuple[str, tuple[Concept | Content, ...]]:
        at = self.rng.randrange(len(concepts))
        return kinds.split()[at], (concepts[at],)

    def _chat_family(self) -> list[Sentence]:
        intent = self.rng.choice(self.corpus.intents)
        number = 10_000 + self.corpus.intents.index(intent)
        concept = Concept(number, "modelyard", "n", (intent["id"],), ())
        return [
            Sentence(
                self.corpus.question(intent, self.rng, chinese=self.rng.random() < 0.3),
                (Content(str(intent["id"]), concept),),
            )
            for _ in range(3)
        ]


def train_encoder_tokenizer() -> Tokenizer:
    """The tokenizer that the embedding model and the reranker share."""
    maker = SentenceMaker(SEED)
    texts: list[str] = []
    for _ in range(6000):
        texts += [sentence.text for sentence in maker.family()]
    for kind in ("n", "v", "a"):
        texts += maker.lexicon.words(kind) * 4
    texts += fillers()[0] * 20
    texts += [maker.corpus.plain(maker.rng) for _ in range(200)]
    hanzi = {c for text in texts for c in text if "\u4e00" <= c <= "\u9fff"}
    marks = "，。！？：；、（）「」《》“”"
    return train_wordpiece(texts, VOCABULARY, [*maker.hanzi, *hanzi, *marks])
