"""How many tokens a chat has before it is asked: the engines' own count, never a guess.

Laws of this file:
- The question is the chat request itself, at the route that counts it: `COUNT_PATH` of llama.cpp,
  which is `/tokenize` on vLLM (an engine's quirks say so). Both render the chat template, with
  tools, and count what comes out of it.
- An engine without such a route is asked to answer with one token, and tells how many it read.

Sources: tools/server/README.md of llama.cpp; TokenizeChatRequest and TokenizeResponse in
vllm/entrypoints/serve/tokenize/protocol.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from modelyard.dialects.base import UnreadableAnswer

COUNT_PATH: Final = "/v1/chat/completions/input_tokens"
"""Where an engine is asked how many tokens a chat request has."""

_OF_ANSWERS: Final = frozenset({"max_completion_tokens", "stream_options"})


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    input_tokens: int | None = None
    """A remote of Anthropic's; what it had in its cache comes on top."""
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None

    @property
    def read(self) -> int | None:
        if self.input_tokens is None:
            return self.prompt_tokens
        cached = (self.cache_read_input_tokens or 0) + (self.cache_creation_input_tokens or 0)
        return self.input_tokens + cached


class _Count(msgspec.Struct):
    input_tokens: int | None = None
    """llama.cpp's word."""
    count: int | None = None
    """vLLM's word."""
    usage: _Usage | None = None
    """Of an answer with one token."""


_decode = msgspec.json.Decoder(_Count).decode


def question(chat: Mapping[str, Any]) -> bytes:
    """What to ask at COUNT_PATH, from a chat request."""
    asked = {name: value for name, value in chat.items() if name not in _OF_ANSWERS}
    return msgspec.json.encode(asked | {"max_tokens": 1, "stream": False})


def counted(answer: bytes) -> int:
    """The number of tokens in an engine's answer. Raises UnreadableAnswer."""
    try:
        seen = _decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnreadableAnswer(f"it is no count of tokens: {error}") from None
    said = seen.usage.read if seen.usage is not None else None
    for tokens in (seen.input_tokens, seen.count, said):
        if tokens is not None:
            return tokens
    raise UnreadableAnswer("it does not tell how many tokens it counted")
