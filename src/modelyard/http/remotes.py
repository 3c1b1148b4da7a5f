"""What is different where an engine is somebody else's endpoint: what leaves this machine.

Laws of this file:
- Of a client's header lines only those listed here go out. Credentials have too many names for a
  list of what to hold back.
- Of what a remote says, addresses are quoted short and without path or query: those may hold
  secrets.
"""

from __future__ import annotations

from modelyard.runtime.upstream import Headers

TO_REMOTES = frozenset(
    b"accept anthropic-beta content-type idempotency-key openai-beta user-agent".split()
)
"""Header lines of a client that leave this machine."""
REFUSED = frozenset({401, 407})
"""Statuses by which a remote refuses our key. Passed on, they would blame the client's own."""
MAX_PLACE = 100


def fit_to_leave(headers: Headers) -> Headers:
    """Of a client's header lines, those that may leave this machine."""
    return [header for header in headers if header[0] in TO_REMOTES]


def place_in(headers: Headers) -> str:
    """Where a redirect leads; empty if it does not say so in a way that can be shown."""
    location = next((value for name, value in headers if name == b"location"), b"")
    parts = location.decode("latin-1").split("/", 3)
    place = "/".join(parts[:3]).rpartition("@")[2] if parts[0].endswith(":") else "another path"
    return place[:MAX_PLACE] if location and place.isascii() and place.isprintable() else ""


def words_of(error: OSError) -> str:
    """Why a connection could not be made."""
    if isinstance(error, TimeoutError) and not str(error):
        return "it took no connection in time"
    return str(error) or type(error).__name__
