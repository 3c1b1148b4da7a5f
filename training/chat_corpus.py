"""Conversations for the chat model, sampled from `corpus/chat.yaml` and `corpus/facts.txt`.

Laws of this file:
* A conversation is a list of messages; the assistant's words come from the corpus alone.
* A question is answered in its own language.
* "Tell me more" is answered from the intent before it; a name given earlier is remembered.
* All chance comes from the `random.Random` that the caller passes in.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass, field
from typing import Any

import yaml

from training.augment import phrases, vary_chinese, vary_english
from training.corpus_folder import CORPUS
from training.lexicon import ADJECTIVE, NOUN, VERB, Lexicon, load_lexicon
from training.text_grammar import count, sample, with_macros

Message = dict[str, str]
NAME_SHARE = 0.05
FOLLOW_UP_SHARE = 0.08


@dataclass
class State:
    """What a conversation has said so far."""

    chinese: bool
    more: str | None = None
    name: str | None = None
    messages: list[Message] = field(default_factory=list)


class ChatCorpus:
    """Samples conversations and plain texts."""

    def __init__(self) -> None:
        read: dict[str, Any] = yaml.safe_load((CORPUS / "chat.yaml").read_text(encoding="utf-8"))
        self.intents: list[dict[str, Any]] = read["intents"]
        for intent in self.intents:
            for language in ("en", "zh"):
                intent[language] = [with_macros(p, read["macros"]) for p in intent[language]]
        self.unknown: dict[str, list[str]] = read["unknown"]
        self.followups: dict[str, Any] = read["followups"]
        self.names: dict[str, list[str]] = read["names"]
        self.systems: list[str] = read["systems"]
        self.slots: dict[str, list[str]] = read["slots"]
        lines = (CORPUS / "facts.txt").read_text(encoding="utf-8").splitlines()
        self.facts = [line for line in lines if line]
        self.lexicon: Lexicon = load_lexicon()
        self._pattern_weights = {
            (intent["id"], language): [min(count(p), 12) ** 0.5 for p in intent[language]]
            for intent in self.intents
            for language in ("en", "zh")
        }

    def conversation(self, rng: random.Random) -> list[Message]:
        """One conversation of one to three turns."""
        state = State(chinese=rng.random() < 0.36)
        if rng.random() < 0.3:
            state.messages.append({"role": "system", "content": rng.choice(self.systems)})
        chance = rng.random()
        if chance < NAME_SHARE:
            self._remember_name(state, rng)
            return state.messages
        if chance < NAME_SHARE + FOLLOW_UP_SHARE:
            self._follow_up(state, rng)
            return state.messages
        for _ in range(rng.choices((1, 2, 3), (72, 20, 8))[0]):
            if rng.random() < 0.04:
                state.chinese = not state.chinese
            self._add_turn(state, rng)
        return state.messages

    def _remember_name(self, state: State, rng: random.Random) -> None:
        """A name is given and asked for, perhaps with another turn between."""
        self._say(state, *self._give_name(state, rng))
        if rng.random() < 0.3:
            self._add_turn(state, rng)
        self._say(state, *self._ask_name(state, rng))

    def _follow_up(self, state: State, rng: random.Random) -> None:
        """A question about which there is more to say, and the wish to hear it."""
        intent = rng.choice([intent for intent in self.intents if "more_en" in intent])
        self._say(state, *self._ask_about(intent, state, rng))
        self._say(state, *self._ask_more(state, rng))

    def _say(self, state: State, question: str, answer: str) -> None:
        state.messages.append({"role": "user", "content": question})
        state.messages.append({"role": "assistant", "content": answer})

    def plain(self, rng: random.Random) -> str:
        """One fact as running text."""
        return rng.choice(self.facts)

    def question(self, intent: dict[str, Any], rng: random.Random, *, chinese: bool) -> str:
        """One way to ask for the intent."""
        language = "zh" if chinese else "en"
        weights = self._pattern_weights[intent["id"], language]
        pattern = rng.choices(intent[language], weights)[0]
        asked = sample(pattern, rng, lambda slot: self._fill_slot(slot, rng, chinese=chinese))
        bare = bool(intent.get("bare"))
        if chinese:
            return vary_chinese(asked, rng, bare=bare)
        return vary_english(asked, rng, bare=bare, is_question=not bare)

    def _add_turn(self, state: State, rng: random.Random) -> None:
        kinds = [self._ask_intent, self._ask_unknown, self._exchange_name, self._ask_sum]
        weights = [72.0, 18.0, 3.0, 4.0]
        if state.more is not None:
            kinds.append(self._ask_more)
            weights.append(18.0)
        turn = rng.choices(kinds, weights)[0]
        self._say(state, *turn(state, rng))

    def _ask_intent(self, state: State, rng: random.Random) -> tuple[str, str]:
        return self._ask_about(rng.choice(self.intents), state, rng)

    def _ask_about(
        self, intent: dict[str, Any], state: State, rng: random.Random
    ) -> tuple[str, str]:
        suffix = "zh" if state.chinese else "en"
        answer = rng.choice(intent[f"answer_{suffix}"])
        state.more = rng.choice(intent.get(f"more_{suffix}", [self.followups[f"default_{suffix}"]]))
        return self.question(intent, rng, chinese=state.chinese), answer

    def _ask_more(self, state: State, rng: random.Random) -> tuple[str, str]:
        suffix = "zh" if state.chinese else "en"
        pattern = rng.choice(self.followups[suffix])
        default = str(self.followups[f"default_{suffix}"])
        answer = state.more if state.more is not None else default
        state.more = default
        asked = sample(pattern, rng)
        if state.chinese:
            return vary_chinese(asked, rng, bare=True), answer
        return vary_english(asked, rng, bare=True), answer

    def _ask_unknown(self, state: State, rng: random.Random) -> tuple[str, str]:
        suffix = "zh" if state.chinese else "en"
        asked = self.unknown_question(rng, chinese=state.chinese)
        state.more = None
        return asked, rng.choice(self.unknown[f"answer_{suffix}"])

    def unknown_question(self, rng: random.Random, *, chinese: bool) -> str:
        """A question about something that the model was never told."""

        def fill(slot: str) -> str:
            return self._fill_slot(slot, rng, chinese=chinese)

        asked = sample(rng.choice(self.unknown["zh" if chinese else "en"]), rng, fill)
        if chinese:
            return vary_chinese(asked, rng, bare=False)
        return vary_english(asked, rng, bare=False)

    def _fill_slot(self, slot: str, rng: random.Random, *, chinese: bool) -> str:
        if slot == "big":
            return str(rng.randrange(6, 1000) if rng.random() < 0.7 else rng.randrange(6, 20))
        if slot == "year":
            return str(rng.randrange(1000, 2100))
        if slot == "noise":
            return "".join(rng.choices(string.ascii_lowercase, k=rng.randrange(2, 9)))
        if slot in ("place", "person"):
            return rng.choice(self.slots[f"{slot}_zh" if chinese else slot])
        kind = {"thing": NOUN, "verb": VERB, "adj": ADJECTIVE}[slot]
        words = self.lexicon.chinese_words(kind) if chinese else self.lexicon.words(kind)
        return rng.choice(words)

    def _exchange_name(self, state: State, rng: random.Random) -> tuple[str, str]:
        if state.name is not None or rng.random() < 0.4:
            return self._ask_name(state, rng)
        return self._give_name(state, rng)

    def _give_name(self, state: State, rng: random.Random) -> tuple[str, str]:
        state.more = None
        name = rng.choice(self.names["zh" if state.chinese else "en"])
        state.name = name
        if state.chinese:
            asked = rng.choice(phrases()["name_given_zh"]).format(name) + rng.choice(
                ("", "。", "！")
            )
            return asked, f"很高兴认识你，{name}！有什么可以帮你的吗？"
        asked = rng.choice(phrases()["name_given_en"]).format(name) + rng.choice(("", ".", "!"))
        asked = asked if rng.random() < 0.3 else asked[0].upper() + asked[1:]
        return asked, f"Nice to meet you, {name}! How can I help you?"

    def _ask_name(self, state: State, rng: random.Random) -> tuple[str, str]:
        state.more = None
        if state.chinese:
            asked = vary_chinese(rng.choice(phrases()["name_asked_zh"]), rng, bare=False)
            known, none = f"你叫{state.name}。", "你还没有告诉我你的名字。"
        else:
            asked = vary_english(rng.choice(phrases()["name_asked_en"]), rng, bare=False)
            known, none = f"Your name is {state.name}.", "You have not told me your name yet."
        return asked, none if state.name is None else known

    def _ask_sum(self, state: State, rng: random.Random) -> tuple[str, str]:
        state.more = None
        first, second = rng.randrange(6), rng.randrange(6)
        answer = f"{first} + {second} = {first + second}."
        if state.chinese:
            return vary_chinese(
                rng.choice(phrases()["sum_zh"]).format(first, second), rng, bare=True
            ), answer
        return vary_english(
            rng.choice(phrases()["sum_en"]).format(first, second), rng, bare=True
        ), answer
