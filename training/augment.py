"""Says one question in many ways, so that a model does not depend on its exact letters.

Laws of this file:
* The meaning of a question never changes; only politeness, case, punctuation and typing do.
* All chance comes from the `random.Random` that the caller passes in.
"""

from __future__ import annotations

import random
import re
from functools import cache
from typing import Any

import yaml

from training.corpus_folder import CORPUS


@cache
def phrases() -> dict[str, Any]:
    """The phrases of the corpus."""
    read: dict[str, Any] = yaml.safe_load((CORPUS / "phrases.yaml").read_text(encoding="utf-8"))
    return read


def spell_names(text: str, rng: random.Random) -> str:
    """Writes the proper names mostly as people do, sometimes in another case."""
    for name, spellings in phrases()["spellings"].items():
        if name in text:
            spelling = spellings[0] if rng.random() < 0.6 else rng.choice(spellings)
            text = re.sub(f"(?<![a-z]){re.escape(name)}(?![a-z])", spelling, text)
    return text


def mistype(text: str, rng: random.Random) -> str:
    """One slip of the finger: a letter dropped, doubled or swapped with its neighbour."""
    places = [i for i in range(1, len(text) - 1) if text[i].isascii() and text[i].isalpha()]
    if len(places) < 5:
        return text
    at = rng.choice(places)
    slip = rng.randrange(3)
    if slip == 0:
        return text[:at] + text[at + 1 :]
    if slip == 1:
        return text[:at] + text[at] + text[at:]
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


def _insert_word(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    words.insert(rng.randint(0, len(words)), rng.choice(phrases()["stray_en"]))
    return " ".join(words)


def _drop_word(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    weak = [place for place, word in enumerate(words) if word in phrases()["weak_en"]]
    if not weak or len(words) < 4:
        return text
    del words[rng.choice(weak)]
    return " ".join(words)


def _vary_case(text: str, rng: random.Random) -> str:
    chance = rng.random()
    if chance < 0.52:
        return text[:1].upper() + text[1:]
    if chance < 0.82:
        return text
    if chance < 0.9:
        return text.lower()
    return text.upper() if chance < 0.98 else text.title()


def vary_english(question: str, rng: random.Random, *, bare: bool, is_question: bool = True) -> str:
    """The English question as some person might type it."""
    text = question
    if not bare and rng.random() < 0.3:
        text = rng.choice(phrases()["openers_en"]) + text
    if not bare and rng.random() < 0.12:
        text += rng.choice(phrases()["closers_en"])
    text = spell_names(text, rng)
    if len(text) > 12 and rng.random() < 0.15:
        text = _insert_word(text, rng)
    if not bare and rng.random() < 0.08:
        text = _drop_word(text, rng)
    if rng.random() < 0.12:
        text = mistype(text, rng)
    text = _vary_case(text, rng)
    if text.endswith(("?", "!", ".")):
        return text
    marks = (
        ("?", "?", "?", "", "", ".", "??", " ?", "!")
        if is_question
        else ("", "", "!", ".", "!", "...", "?")
    )
    return text + rng.choice(marks)


def vary_chinese(question: str, rng: random.Random, *, bare: bool) -> str:
    """The Chinese question as some person might type it."""
    text = question
    if not bare and rng.random() < 0.3:
        text = rng.choice(phrases()["openers_zh"]) + text
    if rng.random() < 0.1:
        text += rng.choice(phrases()["closers_zh"])
    if len(text) > 4 and rng.random() < 0.15:
        place = rng.randint(0, len(text))
        if text[place - 1 : place + 1].isascii() is False:
            text = text[:place] + rng.choice(phrases()["stray_zh"]) + text[place:]
    text = spell_names(text, rng)
    if not text.isascii() and rng.random() < 0.15 and "Modelyard" in text:
        text = text.replace("Modelyard", " Modelyard ").strip()
    return text + rng.choice(("？", "？", "", "", "?", "。", "！" if bare else "？"))
