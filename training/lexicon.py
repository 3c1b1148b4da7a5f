"""Concepts of everyday life, and sentences in which they appear with a known meaning.

Laws of this file:
* A sentence carries its content: which concepts it names and by which words. Everything the
  encoders learn about similarity and relevance is computed from that content.
* Function words carry no content. Invented words are content of their own and belong to no topic.
* All chance comes from the `random.Random` that the caller passes in.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from training.corpus_folder import CORPUS
from training.text_grammar import sample

VERB, NOUN, ADJECTIVE = "v", "n", "a"


@dataclass(frozen=True)
class Concept:
    """One meaning, with the words for it in both languages."""

    number: int
    topic: str
    kind: str
    english: tuple[str, ...]
    chinese: tuple[str, ...]


@dataclass(frozen=True)
class Content:
    """One content word of a sentence: its concept (None for an invented word) and its base form."""

    word: str
    concept: Concept | None


@dataclass(frozen=True)
class Sentence:
    """A text and what it is about."""

    text: str
    contents: tuple[Content, ...]


@dataclass(frozen=True)
class Lexicon:
    """All concepts, by kind and topic."""

    concepts: tuple[Concept, ...]
    by_place: dict[tuple[str, str], tuple[Concept, ...]]
    topics: tuple[str, ...]
    english: dict[str, list[str]]
    chinese: dict[str, list[str]]
    queries: list[str]

    def words(self, kind: str) -> list[str]:
        """Every English word of the kind."""
        return [
            word for concept in self.concepts if concept.kind == kind for word in concept.english
        ]

    def chinese_words(self, kind: str) -> list[str]:
        """Every Chinese word of the kind."""
        return [
            word for concept in self.concepts if concept.kind == kind for word in concept.chinese
        ]


@cache
def load_lexicon() -> Lexicon:
    """Reads the lexicon and the sentence frames from the corpus."""
    concepts: list[Concept] = []
    topic = ""
    for line in (CORPUS / "lexicon.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("= "):
            topic = line[2:].strip()
        elif line and not line.startswith("#"):
            kind, rest = line.split(" ", 1)
            english, _, chinese = rest.partition("/")
            concepts.append(Concept(len(concepts), topic, kind, _words(english), _words(chinese)))
    topics = tuple(dict.fromkeys(concept.topic for concept in concepts))
    by_place = {
        (place, kind): tuple(c for c in concepts if c.topic == place and c.kind == kind)
        for place in topics
        for kind in (NOUN, VERB, ADJECTIVE)
    }
    frames = yaml.safe_load((CORPUS / "sentences.yaml").read_text(encoding="utf-8"))
    return Lexicon(tuple(concepts), by_place, topics, frames["en"], frames["zh"], frames["queries"])


@cache
def _forms() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((CORPUS / "inflection.yaml").read_text(encoding="utf-8"))
    return read


def _words(listed: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in listed.split(",") if word.strip())


def _with_ending(verb: str, ending: str) -> str:
    first, _, rest = verb.partition(" ")
    tail = f" {rest}" if rest else ""
    if ending == "s":
        if first.endswith(("s", "sh", "ch", "x", "o", "z")):
            return f"{first}es{tail}"
        if first.endswith("y") and first[-2] not in "aeiou":
            return f"{first[:-1]}ies{tail}"
        return f"{first}s{tail}"
    if ending == "ed" and first in _forms()["past"]:
        return f"{_forms()['past'][first]}{tail}"
    if first in _forms()["doubling"]:
        return f"{first}{first[-1]}{ending}{tail}"
    if first.endswith("ie") and ending == "ing":
        return f"{first[:-2]}ying{tail}"
    if first.endswith("e") and not first.endswith("ee"):
        return f"{first[:-1]}{ending}{tail}"
    if ending == "ed" and first.endswith("y") and first[-2] not in "aeiou":
        return f"{first[:-1]}ied{tail}"
    return f"{first}{ending}{tail}"


def plural(noun: str) -> str:
    """The plural of an English noun; the last word of a phrase is inflected."""
    head, space, last = noun.rpartition(" ")
    if last in _forms()["uncounted"]:
        return noun
    if last in _forms()["plural"]:
        changed = str(_forms()["plural"][last])
    elif last.endswith(("s", "sh", "ch", "x", "z")):
        changed = last + "es"
    elif last.endswith("y") and last[-2:-1] not in tuple("aeiou"):
        changed = last[:-1] + "ies"
    else:
        changed = last + "s"
    return head + space + changed


_CONSONANTS: tuple[str, ...] = (
    *"bcdfghjklmnprstvwxz",
    "bl",
    "br",
    "ch",
    "dr",
    "qu",
    "sh",
    "st",
    "tr",
)
_VOWELS: tuple[str, ...] = (*"aeiouy", "ai", "ea", "oo", "ou")
_ENDS: tuple[str, ...] = ("", "", *"nrstxmp", "ck", "ll", "nd")


def invented_word(rng: random.Random) -> str:
    """A word that no dictionary holds."""
    syllables = rng.choice((1, 2, 2, 3))
    body = "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(syllables))
    return body + rng.choice(_ENDS)


_MARK = re.compile(r"(n|a)(\d)(s?)$|v(s|ing|ed)?$")


def render(
    lexicon: Lexicon,
    kinds: str,
    chosen: tuple[Content, ...],
    rng: random.Random,
    *,
    chinese: bool = False,
) -> Sentence:
    """The contents, one per kind, in one of the frames for these kinds."""
    by_mark: dict[str, str] = {}
    seen = {NOUN: 0, ADJECTIVE: 0, VERB: 0}
    for kind, content in zip(kinds.split(), chosen, strict=True):
        seen[kind] += 1
        by_mark["v" if kind == VERB else f"{kind}{seen[kind]}"] = content.word

    def fill(mark: str) -> str:
        match = _MARK.match(mark)
        if match is None:
            raise ValueError(f"unknown mark {{{mark}}}")
        if mark.startswith(VERB):
            word = by_mark["v"]
            return _with_ending(word, match.group(4)) if match.group(4) else word
        word = by_mark[match.group(1) + match.group(2)]
        return plural(word) if match.group(3) else word

    frames = (lexicon.chinese if chinese else lexicon.english)[kinds]
    return Sentence(sample(rng.choice(frames), rng, fill), chosen)


def name(concept: Concept, rng: random.Random, *, chinese: bool = False) -> Content:
    """One word for the concept."""
    words = concept.chinese if chinese and concept.chinese else concept.english
    return Content(rng.choice(words), concept)


def choose_concepts(lexicon: Lexicon, kinds: str, rng: random.Random) -> tuple[Concept, ...]:
    """Concepts for the kinds, mostly of one topic, the rest from anywhere."""
    topic = rng.choice(lexicon.topics)
    chosen: list[Concept] = []
    for kind in kinds.split():
        home = lexicon.by_place[topic, kind]
        if not home or rng.random() < 0.35:
            home = tuple(c for c in lexicon.concepts if c.kind == kind)
        chosen.append(rng.choice(home))
    return tuple(chosen)
