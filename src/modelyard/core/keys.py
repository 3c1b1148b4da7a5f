"""Keys that clients show: what one is, and what it allows.

Laws of this file:
- A key is `my-NAME-SECRET`: the name finds it, the secret is 256 random bits, and only the SHA-256
  digest of the whole is kept. A digest that is fast to compute is safe for keys that were drawn at
  random, and for no others; so keys are made here and never chosen.
- A model is allowed by its id, after aliases have been resolved: an alias opens nothing.
- A scope that is not granted is not there. `admin` includes `read`; neither includes `inference`.
"""

from __future__ import annotations

import hashlib
import re
from base64 import urlsafe_b64encode
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from modelyard.core.quota import Quota

PREFIX: Final = "my-"
SECRET_BYTES: Final = 32
SECRET_LENGTH: Final = 43
"""Characters of a secret: 32 bytes in base64 without padding."""
MAX_NAME: Final = 64
NAME: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME - 1}}}")
"""What a key may be called: it is part of a header."""
DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})")
KEY_TEXT: Final = re.compile(
    rb"my-[A-Za-z0-9][A-Za-z0-9._-]{0,63}-[A-Za-z0-9_-]{43}(?![A-Za-z0-9_-])"
)
"""A key, wherever it stands."""

Network = IPv4Network | IPv6Network


class Scope(StrEnum):
    """A kind of route."""

    INFERENCE = "inference"
    """Models are asked and listed."""
    READ = "read"
    """The admin API is looked at."""
    ADMIN = "admin"
    """The admin API is used: models started and stopped, keys made."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the configuration."""

    name: str
    digest: str = field(repr=False)
    """`sha256:` and the digest of the whole key, in hexadecimal."""
    scopes: frozenset[Scope] = frozenset({Scope.INFERENCE})
    models: tuple[str, ...] = ()
    """Ids of models, or patterns of ids with `*`; none allows all models."""
    hosts: tuple[Network, ...] = ()
    """Where the key may be used from; none allows any place."""
    expires_at: float | None = None
    """Seconds since 1970 from which on the key is refused."""
    priority: int = 0
    """Among requests that wait for one model, the one with the higher priority goes first."""
    quota: Quota = field(default_factory=Quota)
    heartbeats: bool | None = None
    """Whether those who wait hear heartbeats; None leaves it to the server."""

    def allows(self, scope: Scope) -> bool:
        return scope in self.scopes or (scope is Scope.READ and Scope.ADMIN in self.scopes)

    def may_use(self, model_id: str) -> bool:
        """Whether the key may ask the model of this id."""
        return not self.models or any(fnmatchcase(model_id, pattern) for pattern in self.models)


def admin_is_open(keys: Collection[Key], *, is_loopback: bool) -> bool:
    """Whether the admin API asks nobody for a key: there are none, or none for it and only this
    machine can reach the server (`is_loopback`)."""
    return not keys or (is_loopback and not any(key.allows(Scope.READ) for key in keys))


def key_text(name: str, secret: bytes) -> str:
    """The key that a client shows. `secret` is SECRET_BYTES random bytes."""
    assert len(secret) == SECRET_BYTES, "a key has 256 bits"
    assert NAME.fullmatch(name), "a key's name is part of a header"
    return f"{PREFIX}{name}-{urlsafe_b64encode(secret).rstrip(b'=').decode()}"


def digest_of(text: str) -> str:
    """What the configuration keeps of a key."""
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
