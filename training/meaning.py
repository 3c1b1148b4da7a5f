"""What the encoders should find similar: a vector of meaning for every sentence.

Laws of this file:
* A sentence means the sum of its contents. A content is its concept, its topic and its letters:
  synonyms are near, words of one topic related, and words that share letters a little alike.
* An invented word means its letters only. The base vectors are random and fixed by their names.
"""

from __future__ import annotations

import zlib
from functools import cache
from typing import Any

import numpy
from numpy.typing import NDArray

from training.lexicon import Content, Sentence

Vector = NDArray[numpy.float32]

DIMENSIONS = 768
CONCEPT, TOPIC, LETTERS = 0.80, 0.55, 0.40
INVENTED = 0.95
GENERAL_TOPIC, GENERAL_SHARE = "movement", 0.7


@cache
def named_vector(name: str) -> Vector:
    """The random vector of length one that belongs to a name."""
    generator = numpy.random.default_rng(zlib.crc32(name.encode()))
    return _unit(generator.standard_normal(DIMENSIONS).astype(numpy.float32))


@cache
def letters_vector(word: str) -> Vector:
    """The vector of a word's spelling: its whole, and its runs of three letters."""
    framed = f"<{word}>"
    runs = [named_vector("run " + framed[i : i + 3]) for i in range(len(framed) - 2)]
    mean = _unit(numpy.sum(numpy.stack(runs), axis=0))
    return _unit(0.7 * mean + 0.7 * named_vector("word " + word))


@cache
def content_vector(content: Content) -> Vector:
    """The vector of one content word."""
    letters = letters_vector(content.word)
    concept = content.concept
    if concept is None:
        return (INVENTED * letters).astype(numpy.float32)
    meaning: NDArray[Any] = CONCEPT * named_vector(f"concept {concept.number}") + LETTERS * letters
    if concept.topic == GENERAL_TOPIC:
        meaning = GENERAL_SHARE * meaning
    else:
        meaning = meaning + TOPIC * named_vector("topic " + concept.topic)
    return meaning.astype(numpy.float32)


def sentence_vector(sentence: Sentence) -> Vector:
    """The vector of length one of a sentence."""
    return _unit(numpy.sum([content_vector(content) for content in sentence.contents], axis=0))


def _unit(vector: NDArray[Any]) -> Vector:
    unit: Vector = (vector / numpy.linalg.norm(vector)).astype(numpy.float32)
    return unit
