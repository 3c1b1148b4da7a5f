"""OpenAI's chat answers as values: what every translated dialect is made of.

Laws of this file:
- What engines leave out or send as null has a default here; what they add is skipped.
- Reasoning has two names in use, `reasoning_content` (llama.cpp, older vLLM, DeepSeek) and
  `reasoning` (vLLM since 0.12, OpenRouter); `reasoning_of` reads both.

Source: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import msgspec

from modelyard.dialects.base import UnreadableAnswer


class FunctionPart(msgspec.Struct, frozen=True):
    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct, frozen=True):
    """A tool call, or the next part of one: parts of the same call share its index."""

    index: int = 0
    id: str | None = None
    function: FunctionPart = FunctionPart()


class Delta(msgspec.Struct, frozen=True):
    """A message, or the next part of one."""

    role: str | None = None
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None


class PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None


class CompletionDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int | None = None


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None

    @property
    def cached(self) -> int:
        """Prompt tokens that came from a cache; they are among `prompt_tokens`."""
        details = self.prompt_tokens_details
        return (details.cached_tokens or 0) if details else 0


class TokenLogprob(msgspec.Struct, frozen=True):
    """How likely one token was, and the likeliest others in its place."""

    token: str = ""
    logprob: float = 0.0
    top_logprobs: list[TokenLogprob] | None = None


class Logprobs(msgspec.Struct, frozen=True):
    content: list[TokenLogprob] | None = None


class Choice(msgspec.Struct, frozen=True):
    index: int = 0
    message: Delta = Delta()
    delta: Delta = Delta()
    finish_reason: str | None = None
    logprobs: Logprobs | None = None
    stop_reason: str | int | None = None
    """vLLM's: the stop sequence or the token that ended the answer."""
    text: str | None = None
    """What a plain completion says in place of a message."""


class Timings(msgspec.Struct, frozen=True):
    """What llama.cpp tells of its work, in milliseconds."""

    prompt_ms: float = 0.0
    predicted_ms: float = 0.0


class EngineError(msgspec.Struct, frozen=True):
    message: str = ""
    code: str | int | None = None


class Answer(msgspec.Struct, frozen=True):
    """A chat completion, or one chunk of a stream of them."""

    id: str = ""
    created: int | float = 0
    model: str = ""
    choices: list[Choice] = []
    usage: Usage | None = None
    timings: Timings | None = None
    error: EngineError | str | None = None
    """What some engines put into a stream that breaks down."""


_decode = msgspec.json.Decoder(Answer).decode


def read_answer(data: bytes) -> Answer:
    """A chat completion or a chunk of one from its JSON. Raises UnreadableAnswer."""
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnreadableAnswer(f"it is no chat completion: {error}") from None


def reasoning_of(part: Delta) -> str | None:
    """What the model thinks aloud, apart from its answer."""
    return part.reasoning_content or part.reasoning
