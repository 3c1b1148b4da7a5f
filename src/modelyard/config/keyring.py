"""Keys as values that travel between command line and server.

Laws of this file:
- Standard library only: the command line uses it without anything that validates.
- No key is in here, only its digest: whoever makes a key keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from modelyard.core.specs import OptionValue


@dataclass(frozen=True, slots=True)
class KeyWanted:
    """A key that is to be let in, in the words of the configuration file."""

    digest: str
    """`sha256:` and the digest of the key, in hexadecimal."""
    scopes: list[str] = field(default_factory=lambda: ["inference"])
    models: list[str] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)
    expires: str | None = None
    priority: int = 0
    requests: str | None = None
    """Requests per time, like `60/min`."""
    tokens: str | None = None
    concurrency: int | None = None

    def entry(self) -> dict[str, OptionValue]:
        """What the file has to say: what differs from the defaults."""
        limits: dict[str, OptionValue] = {
            "requests": self.requests,
            "tokens": self.tokens,
            "concurrency": self.concurrency,
        }
        entry: dict[str, OptionValue] = {
            "digest": self.digest,
            "scopes": list(self.scopes),
            "models": list(self.models),
            "hosts": list(self.hosts),
            "expires": self.expires,
            "priority": self.priority or None,
            "limits": {name: value for name, value in limits.items() if value is not None},
        }
        return {name: value for name, value in entry.items() if value not in (None, [], {})}


@dataclass(frozen=True, slots=True)
class KeyView:
    """One key, and what has been used of it since the server knows it."""

    name: str
    scopes: list[str]
    models: list[str] = field(default_factory=list)
    """Ids and patterns; empty for all models."""
    hosts: list[str] = field(default_factory=list)
    expires: str | None = None
    has_expired: bool = False
    priority: int = 0
    requests: str | None = None
    """The limit, like `60/min`."""
    tokens: str | None = None
    concurrency: int | None = None
    running: int = 0
    """Requests under way."""
    used_requests: int = 0
    used_tokens: int = 0
    last_used_at: float | None = None


@dataclass(frozen=True, slots=True)
class KeyChange:
    """What adding or removing a key has changed."""

    name: str
    path: str
    """The configuration file."""
    asks: bool
    """Whether models now want a key to be asked."""
    asks_admins: bool
    """Whether the admin API wants one, too."""
