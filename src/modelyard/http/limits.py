"""How a key's limits are told to its client, in the headers that OpenAI uses for it.

Sources: OpenAI's guide on rate limits (`x-ratelimit-{limit,remaining,reset}-{requests,tokens}`;
the reset is a duration like `1s` or `6m0s`, as Go writes them); RFC 9110, 10.2.3 (`retry-after` in
whole seconds).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from modelyard.core.quota import NS, Balance

_LIMITS: Final = ("requests", "tokens")
_WHAT: Final = ("limit", "remaining", "reset")
HEADER_NAMES: Final = tuple(f"x-ratelimit-{what}-{limit}" for what in _WHAT for limit in _LIMITS)
_NAMES: Final = {limit: limit.encode() for limit in _LIMITS}
_MS_NS: Final = 1_000_000


def limit_lines(balances: Iterable[Balance]) -> bytes:
    """Three header lines for each limit."""
    lines = b""
    for balance in balances:
        name = _NAMES[balance.limit]
        span = _span(balance.reset_ns)
        lines += (
            b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %d\r\n"
            b"x-ratelimit-reset-%b: %b\r\n" % (name, balance.amount, name, balance.left, name, span)
        )
    return lines


def _span(nanoseconds: int) -> bytes:
    """`120ms`, `1s`, `6m0s`, `1h0m0s`: rounded up, so that nobody comes back too early."""
    if nanoseconds < NS:
        return b"%dms" % -(-nanoseconds // _MS_NS)
    minutes, rest = divmod(-(-nanoseconds // NS), 60)
    if not minutes:
        return b"%ds" % rest
    hours, minutes = divmod(minutes, 60)
    return b"%dh%dm%ds" % (hours, minutes, rest) if hours else b"%dm%ds" % (minutes, rest)
