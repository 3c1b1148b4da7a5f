"""What the fake engine says: text, vectors and scores made from the question alone.

Laws of this file:
- The same model name and the same question give the same answer, and another name another answer.
- A word is a token.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Completion:
    """One chat or plain completion: `yard: echo of <prompt>`, then numbers up to its length."""

    model: str
    request: dict[str, Any]
    default_length: int
    chat: bool

    @property
    def prompt(self) -> str:
        if not self.chat:
            return str(self.request.get("prompt", ""))
        return "\n".join(str(message.get("content")) for message in self.request["messages"])

    def tokens(self) -> list[str]:
        asked = self.request.get("max_completion_tokens") or self.request.get("max_tokens")
        length = int(asked or self.default_length)
        words = [f"{self.model}:", "echo", "of", *self.prompt.split()]
        words = [*words, *map(str, range(1, length + 1))][:length]
        return [*words[:1], *(f" {word}" for word in words[1:])]

    def whole(self, text: str) -> dict[str, Any]:
        said: dict[str, Any] = {"text": text}
        if self.chat:
            said = {"message": {"role": "assistant", "content": text}}
        return {**self._frame(""), "choices": [_choice(said, "length")], "usage": self._usage()}

    def part(self, token: str) -> dict[str, Any]:
        """One chunk of a stream."""
        return {**self._frame(".chunk"), "choices": [_choice(self._said(token), None)]}

    def ending(self) -> Iterator[dict[str, Any]]:
        """The chunks after the last token, the usage among them if it was asked for."""
        said: dict[str, Any] = {"delta": {}} if self.chat else {"text": ""}
        yield {**self._frame(".chunk"), "choices": [_choice(said, "length")]}
        if (self.request.get("stream_options") or {}).get("include_usage"):
            yield {**self._frame(".chunk"), "choices": [], "usage": self._usage()}

    def _said(self, token: str) -> dict[str, Any]:
        return {"delta": {"content": token}} if self.chat else {"text": token}

    def _frame(self, suffix: str) -> dict[str, Any]:
        kind = f"chat.completion{suffix}" if self.chat else "text_completion"
        return {"id": "cmpl-fake", "object": kind, "created": 0, "model": self.model}

    def _usage(self) -> dict[str, int]:
        return _usage(len(self.prompt.split()), len(self.tokens()))


def _choice(said: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, **said, "finish_reason": finish_reason}


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def embeddings(model: str, dimension: int, request: dict[str, Any]) -> dict[str, Any]:
    """Unit vectors made from a digest of model and text."""
    given = request.get("input")
    texts = [str(text) for text in given] if isinstance(given, list) else [str(given)]
    data = []
    for index, text in enumerate(texts):
        seed = hashlib.shake_128(f"{model}\0{text}".encode()).digest(dimension)
        norm = math.sqrt(sum((byte - 127.5) ** 2 for byte in seed))
        vector = [(byte - 127.5) / norm for byte in seed]
        data.append({"object": "embedding", "index": index, "embedding": vector})
    tokens = sum(len(text.split()) for text in texts)
    return {"object": "list", "model": model, "data": data, "usage": _usage(tokens, 0)}


def ranking(model: str, request: dict[str, Any]) -> dict[str, Any]:
    """Documents by the share of the query's words that they contain."""
    query = set(str(request.get("query", "")).lower().split())
    documents = [str(document) for document in request.get("documents") or []]
    scores = [len(query & set(text.lower().split())) / max(1, len(query)) for text in documents]
    results = [
        {"index": index, "relevance_score": score}
        for index, score in sorted(enumerate(scores), key=lambda pair: (-pair[1], pair[0]))
    ]
    tokens = sum(len(text.split()) for text in documents)
    top = int(request.get("top_n") or len(results))
    return {"model": model, "results": results[:top], "usage": _usage(tokens, 0)}
