"""How a key's limits are told to its client, in the headers that OpenAI uses for it.

Sources: OpenAI's guide on rate limits (`x-ratelimit-{limit,remaining,reset}-{requests,tokens}`;
the reset is a duration like `1s` or `6m0s`, as Go writes them); RFC 9110, 10.2.3 (`retry-after` in
whole seconds).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from modelyard.core.quota import Standing

HEADER_NAMES = tuple(
    f"x-ratelimit-{what}-{limit}"
    for what in ("limit", "remaining", "reset")
    for limit in ("requests", "tokens")
)


def limit_headers(standing: Iterable[Standing]) -> list[tuple[bytes, bytes]]:
    """Three headers for each limit."""
    headers = []
    for one in standing:
        name = one.limit.encode()
        headers.append((b"x-ratelimit-limit-" + name, b"%d" % one.amount))
        headers.append((b"x-ratelimit-remaining-" + name, b"%d" % one.left))
        headers.append((b"x-ratelimit-reset-" + name, _span(one.reset_s)))
    return headers


def _span(seconds: float) -> bytes:
    """`120ms`, `1s`, `6m0s`, `1h0m0s`: rounded up, so that nobody comes back too early."""
    if seconds < 1:
        return b"%dms" % math.ceil(seconds * 1000)
    minutes, rest = divmod(math.ceil(seconds), 60)
    if not minutes:
        return b"%ds" % rest
    hours, minutes = divmod(minutes, 60)
    return b"%dh%dm%ds" % (hours, minutes, rest) if hours else b"%dm%ds" % (minutes, rest)
