"""Which web pages of others may use the server, and how browsers are told (Fetch standard, 3.2).

Laws of this file:
- Off unless origins are configured; then only those are told that they may.
- Cookies are never allowed: who asks is said by a key in a header, so that no page can borrow it.
- A preflight asks nobody for a key, because browsers send none with it, and opens nothing by
  itself: the request that follows is checked as any other.

Source of the header names: OpenAI's and Anthropic's clients name what they send (`openai-*`,
`anthropic-*`), and their generator adds `x-stainless-*`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from modelyard.http.limits import HEADER_NAMES

Headers = list[tuple[bytes, bytes]]

MAX_AGE_S: Final = 600
"""How long a browser may remember the answer to a preflight."""
METHODS: Final = b"GET, HEAD, POST, PUT, PATCH, DELETE"
ASKED: Final = frozenset(
    b"accept accept-language api-key authorization cache-control content-language content-type "
    b"http-referer idempotency-key user-agent x-api-key x-modelyard-loading-state x-request-id "
    b"x-requested-with x-title".split()
)
"""Header lines that pages may send."""
ASKED_FAMILIES: Final = (b"anthropic-", b"openai-", b"x-stainless-")
SHOWN: Final = ", ".join(
    ["retry-after", "request-id", "x-request-id", "x-should-retry", *HEADER_NAMES]
).encode()
"""Header lines of an answer that pages may read."""
MAX_ASKED: Final = 100
"""Header names of one preflight that are looked at."""


class Cors:
    """Decides by the Origin header."""

    def __init__(self, origins: Iterable[str]) -> None:
        """`origins` as browsers write them; `*` is any."""
        self._origins = frozenset(origin.encode() for origin in origins)
        self._any = b"*" in self._origins

    def __bool__(self) -> bool:
        return bool(self._origins)

    def allows(self, origin: bytes) -> bool:
        """Whether pages of this origin may use the server."""
        return self._any or origin.lower() in self._origins

    def headers(self, origin: bytes) -> Headers:
        """What an answer to a page of this origin says; nothing to one that may not read it."""
        if not self.allows(origin):
            return []
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", SHOWN),
            (b"vary", b"origin"),
        ]

    def preflight(self, origin: bytes, headers: dict[bytes, bytes]) -> Headers | None:
        """The answer to an OPTIONS request with these headers; None if it is no preflight, or of
        a page that may not use the server."""
        if b"access-control-request-method" not in headers or not self.allows(origin):
            return None
        wanted = headers.get(b"access-control-request-headers", b"").lower().split(b",")
        names = [name.strip() for name in wanted[:MAX_ASKED]]
        granted = b", ".join(name for name in names if _may_be_sent(name))
        answer = self.headers(origin)
        answer += [
            (b"access-control-allow-methods", METHODS),
            (b"access-control-allow-headers", granted),
            (b"access-control-max-age", b"%d" % MAX_AGE_S),
        ]
        if headers.get(b"access-control-request-private-network") == b"true":
            answer.append((b"access-control-allow-private-network", b"true"))
        return answer


def _may_be_sent(name: bytes) -> bool:
    is_name = name.replace(b"-", b"").isalnum()
    return name in ASKED or (is_name and name.startswith(ASKED_FAMILIES))
