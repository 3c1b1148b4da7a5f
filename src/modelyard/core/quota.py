"""What one key may use: requests and tokens per time, requests at once.

Laws of this file:
- Pure: the caller says what time it is. Moments are nanoseconds of a clock that never runs
  backwards.
- Exact: a bucket counts in whole numbers, so that no rounding ever lets more through than the limit
  says, nor keeps back what is due.
- A request is admitted or refused as a whole: what refuses it has taken nothing.
- Tokens are held back by an estimate when a request begins, and charged by the truth when it ends.
  So long as estimates are not too low, no span of time sees more tokens charged than the limit
  allows; what an estimate missed is a debt that later requests wait for.
- Nobody's limits touch anybody else: an `Allowance` belongs to one key.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Final

NS: Final = 1_000_000_000
"""Nanoseconds in a second."""
BUSY_WAIT_S: Final = 1.0
"""When to come again where only the end of another request can help, and nobody knows it."""
FIRST_PER_BYTE: Final = 0.25
"""Prompt tokens of a byte of a request, until the key's own requests have told: about four letters
of English make a token."""
FIRST_ANSWER: Final = 256.0
"""Tokens of an answer, until the key's own answers have told."""
LEARNING: Final = 0.1
"""Weight of the newest request in what is learned for estimates."""
MOST_TOKENS: Final = 100_000_000
"""More than this an engine cannot mean to have used for one request."""


@dataclass(frozen=True, slots=True)
class Rate:
    """So many in any span of `per_s` seconds, saved up to `amount`."""

    amount: int
    per_s: int


@dataclass(frozen=True, slots=True)
class Quota:
    """The limits of one key; None sets none."""

    requests: Rate | None = None
    tokens: Rate | None = None
    concurrency: int | None = None
    """Requests at once, those that wait for their model included."""

    def __bool__(self) -> bool:
        return not (self.requests is None and self.tokens is None and self.concurrency is None)


class Balance:
    """How one limit stands.

    Two are made for each answer: a plain class is made faster than a tuple with names.
    """

    __slots__ = ("amount", "left", "limit", "reset_ns")

    def __init__(self, limit: str, amount: int, left: int, reset_ns: int) -> None:
        self.limit = limit
        """`requests` or `tokens`."""
        self.amount = amount
        self.left = left
        self.reset_ns = reset_ns
        """Time until all of it is there again, if nothing more is used."""

    def __repr__(self) -> str:
        return f"Balance({self.limit!r}, {self.amount}, {self.left}, {self.reset_ns})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Balance) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))


@dataclass(frozen=True, slots=True)
class Refusal:
    """Which limit a request would exceed, and when to come again."""

    limit: str
    """`requests`, `tokens` or `concurrency`."""
    wait_s: float


class Bucket:
    """A token bucket.

    Its whole state is one moment: when it will be full again. The moment is kept in units so small
    that one thing taken costs a whole number of them, and no smaller, so that for usual rates they
    stay machine words.
    """

    __slots__ = ("_cost", "_full_at", "_room", "_units", "rate")

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        common = gcd(rate.amount, rate.per_s * NS)
        self._units = rate.amount // common
        """Units of a nanosecond."""
        self._cost = rate.per_s * NS // common
        self._room = rate.amount * self._cost
        self._full_at = 0

    def __repr__(self) -> str:
        return f"Bucket({self.rate.amount} per {self.rate.per_s} s)"

    def left(self, now: int) -> int:
        """How many can be taken at once; less than 0 while a debt is paid off."""
        return (self._room - self._debt(now)) // self._cost

    def has(self, count: int, now: int) -> bool:
        """Whether `count` can be taken at once."""
        moment = now * self._units
        if self._full_at <= moment:
            return count <= self.rate.amount
        return self._full_at + count * self._cost <= moment + self._room

    def wait_ns(self, count: int, now: int) -> int:
        """How long until `count` can be taken; 0 if they can be now.

        More than the rate's amount is never there: of that, it is how long a full bucket would take
        to pay off what is too much.
        """
        missing = self._debt(now) + count * self._cost - self._room
        return max(0, -(-missing // self._units))

    def take(self, count: int, now: int) -> None:
        """Take `count`, whether they are there or not: what is not is a debt."""
        moment = now * self._units
        full_at = self._full_at if self._full_at > moment else moment
        self._full_at = full_at + count * self._cost

    def reset_ns(self, now: int) -> int:
        """How long until the bucket is full."""
        return -(-self._debt(now) // self._units)

    def balance(self, limit: str, held: int, now: int) -> Balance:
        """How it stands, if `held` of what is left is promised."""
        amount = self.rate.amount
        debt = self._full_at - now * self._units
        if debt <= 0:
            left = amount - held
            return Balance(limit, amount, left if left > 0 else 0, 0)
        left = (self._room - debt) // self._cost - held
        return Balance(limit, amount, left if left > 0 else 0, -(-debt // self._units))

    def _debt(self, now: int) -> int:
        return max(0, self._full_at - now * self._units)


class Allowance:
    """What is left to one key under its quota, and what it has under way."""

    __slots__ = ("_answer", "_held", "_per_byte", "_requests", "_tokens", "quota", "running")

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.running = 0
        """Requests admitted that have not ended."""
        self._requests = None if quota.requests is None else Bucket(quota.requests)
        self._tokens = None if quota.tokens is None else Bucket(quota.tokens)
        self._held = 0
        """Tokens held back for requests under way."""
        self._per_byte = FIRST_PER_BYTE
        self._answer = FIRST_ANSWER

    def change(self, quota: Quota) -> None:
        """Other limits from now on. Those that stay the same forget nothing."""
        if quota.requests != self.quota.requests:
            self._requests = None if quota.requests is None else Bucket(quota.requests)
        if quota.tokens != self.quota.tokens:
            self._tokens = None if quota.tokens is None else Bucket(quota.tokens)
        self.quota = quota

    def enter(self, body_bytes: int, now: int) -> int | Refusal:
        """Admit a request: the tokens held back for it, to be given to `leave`, or a refusal."""
        quota = self.quota
        if quota.concurrency is not None and self.running >= quota.concurrency:
            return Refusal("concurrency", BUSY_WAIT_S)
        if self._requests is not None and not self._requests.has(1, now):
            return Refusal("requests", self._requests.wait_ns(1, now) / NS)
        held = 0
        if self._tokens is not None:
            amount = self._tokens.rate.amount
            held = self.estimate(body_bytes)
            held = held if held < amount else amount
            if not self._tokens.has(held + self._held, now):
                return Refusal("tokens", self._tokens.wait_ns(held + self._held, now) / NS)
            self._held += held
        if self._requests is not None:
            self._requests.take(1, now)
        self.running += 1
        return held

    def leave(self, held: int, body_bytes: int, prompt: int, answer: int, now: int) -> None:
        """A request has ended: give back what was held for it, charge the tokens it really used.

        `prompt` and `answer` are what the engine says; what cannot be is cut to what can.
        """
        self.running -= 1
        self._held -= held
        if self._tokens is None:
            return
        prompt, answer = _sane(prompt), _sane(answer)
        self._tokens.take(prompt + answer, now)
        if prompt and body_bytes:
            self._per_byte += (prompt / body_bytes - self._per_byte) * LEARNING
            self._answer += (answer - self._answer) * LEARNING

    def estimate(self, body_bytes: int) -> int:
        """Tokens that a request with a body of this size will probably use."""
        return 1 + int(body_bytes * self._per_byte + self._answer)

    def balances(self, now: int) -> list[Balance]:
        """How the limits stand that count over time."""
        told = []
        if self._requests is not None:
            told.append(self._requests.balance("requests", 0, now))
        if self._tokens is not None:
            told.append(self._tokens.balance("tokens", self._held, now))
        return told


def _sane(tokens: int) -> int:
    if 0 <= tokens <= MOST_TOKENS:
        return tokens
    return 0 if tokens < 0 else MOST_TOKENS
