"""How many tokens a chat has before it is asked: the engines' own count, never a guess.

Laws of this file:
- The question is the chat request itself, at the route that counts it: `COUNT_PATH` of llama.cpp,
  which is `/tokenize` on vLLM (an engine's quirks say so). Both render the chat template, with
  tools, and count what comes out of it.

Sources: tools/server/README.md of llama.cpp; TokenizeChatRequest and TokenizeResponse in
vllm/entrypoints/serve/tokenize/protocol.py.
"""

from __future__ import annotations

from typing import Final

import msgspec

from modelyard.dialects.base import UnreadableAnswer

COUNT_PATH: Final = "/v1/chat/completions/input_tokens"
"""Where an engine is asked how many tokens a chat request has."""


class _Count(msgspec.Struct):
    input_tokens: int | None = None
    """llama.cpp's word."""
    count: int | None = None
    """vLLM's word."""


_decode = msgspec.json.Decoder(_Count).decode


def counted(answer: bytes) -> int:
    """The number of tokens in an engine's answer. Raises UnreadableAnswer."""
    try:
        seen = _decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnreadableAnswer(f"it is no count of tokens: {error}") from None
    tokens = seen.count if seen.input_tokens is None else seen.input_tokens
    if tokens is None:
        raise UnreadableAnswer("it is no count of tokens: it has neither input_tokens nor count")
    return tokens
