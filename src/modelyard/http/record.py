"""What is known of a request when it is over: one value, filled while it is served.

Laws of this file:
- Times are seconds; moments within a request are counted from its arrival.
- Token counts are the engine's own. What had to be reckoned, because an answer was cut before the
  engine told, is marked `estimated`.
- The queue of finished records is bounded and never waits: what nobody takes in time is dropped,
  oldest first, and counted.
"""

from __future__ import annotations

from collections import deque

import msgspec

BYTES_A_TOKEN = 4
"""What a prompt is reckoned by when its engine told nothing."""
KEPT = 10_000
"""Finished records that are kept for whoever drains them."""


class Record(msgspec.Struct, gc=False):
    """One inference request. It holds plain values only, so the garbage collector need not look."""

    id: str
    arrived: float
    """Seconds since 1970."""
    route: str
    """Path that the client asked, without its query."""
    client: str = ""
    """Address of the client."""
    key: str = ""
    """Name of the key that the request came with; empty where none is needed."""
    model: str = ""
    """Id of the model that served it, or was to."""
    named: str = ""
    """What the client called the model."""
    stream: bool = False
    status: int = 0
    """HTTP status of the answer; 0 while there is none, 499 for a client that left before it."""
    error: str = ""
    """Code of the error that ended it; empty if none did."""
    queue_s: float = 0.0
    """From the request's arrival to a replica's being granted."""
    load_s: float = 0.0
    """Of `queue_s`, the time in which the model was being started or woken."""
    first_s: float | None = None
    """To the first byte of the engine's answer: time to first token, for a stream."""
    total_s: float = 0.0
    """To the end of the answer."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of `prompt_tokens`, those that came from a cache."""
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    """Of `completion_tokens`, those that were thought and not said."""
    audio_tokens: int = 0
    """Of both, those that stand for sound."""
    prompt_ms: float | None = None
    """The engine's own time for the prompt, where it tells (llama.cpp)."""
    predicted_ms: float | None = None
    """The engine's own time for the answer, where it tells (llama.cpp)."""
    estimated: bool = False
    """Whether the tokens are reckoned, because the answer was cut before the engine told."""
    parts: int = 0
    """Events of a stream that were passed on; about one for each token."""
    bytes_in: int = 0
    bytes_out: int = 0

    def reckon(self, *, begins_with_usage: bool) -> None:
        """The answer was cut: count by what was sent what its engine did not tell.

        `begins_with_usage` says that an engine tells its first count before the answer, as in
        Anthropic's own streams; all others tell at the end, and then it is true.
        """
        if not self.prompt_tokens and not self.completion_tokens:
            self.prompt_tokens = self.bytes_in // BYTES_A_TOKEN
        elif not begins_with_usage:
            return
        self.estimated = True
        self.completion_tokens = max(self.completion_tokens, self.parts)

    @property
    def token_s(self) -> float | None:
        """Seconds for each token after the first; None where that is not known."""
        if self.first_s is None or not self.stream or self.completion_tokens < 2:
            return None
        return (self.total_s - self.first_s) / (self.completion_tokens - 1)


class Records:
    """Finished records, until somebody takes them."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._queue: deque[Record] = deque(maxlen=kept)
        self.dropped = 0
        """Records that nobody took in time."""

    def add(self, record: Record) -> None:
        if len(self._queue) == self._kept:
            self.dropped += 1
        self._queue.append(record)

    def newest(self, count: int) -> list[Record]:
        """The `count` newest records, newest first. They stay."""
        return [self._queue[-at] for at in range(1, min(count, len(self._queue)) + 1)]

    def take(self, count: int) -> list[Record]:
        """The `count` oldest records, oldest first. They are gone then."""
        return [self._queue.popleft() for _ in range(min(count, len(self._queue)))]
