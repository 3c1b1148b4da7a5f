"""Says one question in many ways, so that a model does not depend on its exact letters.

Laws of this file:
* The meaning of a question never changes; only politeness, case, punctuation and typing do.
* All chance comes from the `random.Random` that the caller passes in.
"""

from __future__ import annotations

import random

_OPENERS_EN = (
    "please ", "hey, ", "hi, ", "hello, ", "so ", "ok, ", "well, ", "um, ", "quick question: ",
    "can you tell me ", "could you tell me ", "i want to know ", "i would like to know ",
    "i wonder ", "do you know ", "tell me, ", "please tell me ", "can you explain ", "and ",
    "just curious, ", "one question, ", "hi there, ", "now ", "but ", "also, ",
)
_CLOSERS_EN = (
    " please", ", please", " thanks", " for me", " exactly", " then", " actually", ", can you tell me",
    " in short", " in simple words", ", do you know", " again",
)
_STRAY_WORDS = (
    "actually", "exactly", "really", "just", "please", "maybe", "now", "then", "here", "also", "so",
    "simply", "indeed", "again", "usually", "normally", "today", "my", "the", "some", "very",
    "anyway", "perhaps", "even", "only", "quickly", "well", "too", "still", "this", "that",
)
_WEAK_WORDS = frozenset(("is", "the", "a", "an", "do", "does", "to", "me", "it", "of", "are", "in"))
_STRAY_ZH = ("到底", "究竟", "其实", "一般", "真的", "一下", "现在", "具体", "大概", "请", "吗", "的", "我")
_OPENERS_ZH = ("请问", "请问一下，", "你好，", "我想知道", "告诉我", "能告诉我", "那么，", "麻烦问一下，", "想问一下", "请告诉我")
_CLOSERS_ZH = ("呢", "啊", "呀", "，谢谢", "，请告诉我", "？谢谢")
_NAMES = {
    "modelyard": ("Modelyard", "ModelYard", "modelyard", "MODELYARD", "model yard"),
    "llama.cpp": ("llama.cpp",),
    "vllm": ("vLLM", "vllm", "VLLM"),
    "openai": ("OpenAI", "openai"),
    "gguf": ("GGUF", "gguf"),
    "gpu": ("GPU", "gpu"),
    "cpu": ("CPU", "cpu"),
    "api": ("API", "api"),
}


def spell_names(text: str, rng: random.Random) -> str:
    """Writes the proper names mostly as people do, sometimes in another case."""
    for name, spellings in _NAMES.items():
        if name in text:
            text = text.replace(name, spellings[0] if rng.random() < 0.6 else rng.choice(spellings))
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
    words.insert(rng.randint(0, len(words)), rng.choice(_STRAY_WORDS))
    return " ".join(words)


def _drop_word(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    weak = [place for place, word in enumerate(words) if word in _WEAK_WORDS]
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
    return text.upper() if chance < 0.97 else text.title()


def vary_english(question: str, rng: random.Random, *, bare: bool, is_question: bool = True) -> str:
    """The English question as some person might type it."""
    text = question
    if not bare and rng.random() < 0.3:
        text = rng.choice(_OPENERS_EN) + text
    if not bare and rng.random() < 0.12:
        text += rng.choice(_CLOSERS_EN)
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
    marks = ("?", "?", "?", "", "", ".", "??", " ?", "!") if is_question else (
        "", "", "!", ".", "!", "...", "?")
    return text + rng.choice(marks)


def vary_chinese(question: str, rng: random.Random, *, bare: bool) -> str:
    """The Chinese question as some person might type it."""
    text = question
    if not bare and rng.random() < 0.3:
        text = rng.choice(_OPENERS_ZH) + text
    if rng.random() < 0.1:
        text += rng.choice(_CLOSERS_ZH)
    if len(text) > 4 and rng.random() < 0.15:
        place = rng.randint(0, len(text))
        if text[place - 1 : place + 1].isascii() is False:
            text = text[:place] + rng.choice(_STRAY_ZH) + text[place:]
    text = spell_names(text, rng)
    if not text.isascii() and rng.random() < 0.15 and "Modelyard" in text:
        text = text.replace("Modelyard", " Modelyard ").strip()
    return text + rng.choice(("？", "？", "", "", "?", "。", "！" if bare else "？"))
