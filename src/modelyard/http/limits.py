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
_LINES: Final = {
    limit: b"".join(
        b"x-ratelimit-%b-%b: %b\r\n" % (what.encode(), limit.encode(), form)
        for what, form in zip(_WHAT, (b"%d", b"%d", b"%b"), strict=True)
    )
    for limit in _LIMITS
}
_MS_NS: Final = 1_000_000


def limit_lines(balances: Iterable[Balance]) -> bytes:
    """Three header lines for each limit."""
    return b"".join(
        [_LINES[limit] % (amount, left, _span(reset)) for limit, amount, left, reset in balances]
    )


def _span(nanoseconds: int) -> bytes:
    """`120ms`, `1s`, `6m0s`, `1h0m0s`: rounded up, so that nobody comes back too early."""
    if nanoseconds < NS:
        return b"%dms" % -(-nanoseconds // _MS_NS)
    minutes, rest = divmod(-(-nanoseconds // NS), 60)
    if not minutes:
        return b"%ds" % rest
    hours, minutes = divmod(minutes, 60)
    return b"%dh%dm%ds" % (hours, minutes, rest) if hours else b"%dm%ds" % (minutes, rest)
