"""What an engine tells of one answer, as it writes it.

Apart from those who read it: these classes are made by msgspec, and cannot be compiled.

Sources: OpenAI's usage (`prompt_tokens`, ...), Anthropic's (`input_tokens` without those read from
a cache, `output_tokens`), llama.cpp's `timings` (tools/server/README.md).
"""

from __future__ import annotations

from typing import Final

import msgspec


class Details(msgspec.Struct):
    """What some of the tokens were."""

    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    audio_tokens: int | None = None


class Usage(msgspec.Struct):
    """Tokens, by whichever names."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    prompt_tokens_details: Details | None = None
    input_tokens_details: Details | None = None
    completion_tokens_details: Details | None = None
    output_tokens_details: Details | None = None


class Timings(msgspec.Struct):
    """llama.cpp's own figures."""

    prompt_n: int | None = None
    predicted_n: int | None = None
    cache_n: int | None = None
    prompt_ms: float | None = None
    predicted_ms: float | None = None


decode_usage: Final = msgspec.json.Decoder(Usage).decode
decode_timings: Final = msgspec.json.Decoder(Timings).decode
