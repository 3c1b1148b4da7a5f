"""The section `keys`: what clients may do, by the key that they show.

Laws of this file:
- The file holds digests. A key itself, written where a digest belongs, is refused, and no message
  repeats it.
- A key's name is part of the key, so it is short and fits into a header.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, time
from functools import partial
from ipaddress import ip_address, ip_network
from typing import Annotated, Any, Final

from pydantic import Field

from modelyard.config.keyring import KeyView
from modelyard.config.kinds import BooleanOrNone, Kind, Name, listed, mapped, whole
from modelyard.config.sections import Section
from modelyard.config.tree import Problem
from modelyard.config.wording import describe_kind, near_names, shorten
from modelyard.core.keys import DIGEST, MAX_NAME, NAME, PREFIX, Key, Network, Scope
from modelyard.core.quota import Quota, Rate

MOST_PER_TIME: Final = 1_000_000_000_000
_SECONDS: Final = {"s": 1, "min": 60, "h": 3600, "day": 86_400}
_SAME: Final = {
    "sec": "s", "second": "s", "m": "min", "minute": "min", "hour": "h", "d": "day",
}  # fmt: skip
_TIMES: Final = {"": 1, "k": 1000, "m": 1_000_000}
_RATE: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([kKmM]?)\s*/\s*([a-z]{1,8})")


def parse_rate(value: object) -> Rate:
    """`60/min`, `100k/min`, `1.5M/day`. Raises ValueError."""
    advice = "write it like 60/min, 100k/min or 10/s"
    found = _RATE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"{describe_kind(value)} is not so much per time; {advice}")
    number, times, unit = found.groups()
    per_s = _SECONDS.get(_SAME.get(unit, unit))
    if per_s is None:
        raise ValueError(f"{shorten(unit)} is not a time; write s, min, h or day")
    amount = round(float(number) * _TIMES[times.lower()])
    if not 1 <= amount <= MOST_PER_TIME:
        raise ValueError(f"{shorten(value)} is not between 1 and {MOST_PER_TIME}")
    return Rate(amount, per_s)


def format_rate(rate: Rate) -> str:
    """As `parse_rate` reads it."""
    unit = next(name for name, seconds in _SECONDS.items() if seconds == rate.per_s)
    for letter, times in (("M", 1_000_000), ("k", 1000)):
        if rate.amount % times == 0:
            return f"{rate.amount // times}{letter}/{unit}"
    return f"{rate.amount}/{unit}"


def parse_moment(value: object) -> float:
    """Seconds since 1970 of `2027-01-31` or `2027-01-31T12:00:00+01:00`; without a zone it is UTC.

    Raises ValueError.
    """
    text = value if isinstance(value, str) else ""
    try:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return moment.timestamp()
    except (ValueError, OverflowError):
        raise ValueError(
            f"{describe_kind(value)} is not a date; write it like 2027-01-31"
        ) from None


def format_moment(at: float) -> str:
    """As `parse_moment` reads it."""
    moment = datetime.fromtimestamp(at, UTC)
    return moment.date().isoformat() if moment.time() == time() else moment.isoformat()


def read_key_name(value: object) -> str:
    """The name of a key. Raises ValueError."""
    if isinstance(value, str) and NAME.fullmatch(value):
        return str(value)
    raise ValueError(
        f"{describe_kind(value)} is not a name for a key: it has 1 to {MAX_NAME} letters, digits "
        "and . _ -, and begins with a letter or digit"
    )


def _read_digest(value: object) -> str:
    if isinstance(value, str) and DIGEST.fullmatch(value):
        return str(value)
    if isinstance(value, str) and value.startswith(PREFIX):
        raise ValueError("holds a key, not its digest; make a new one with `modelyard keys add`")
    raise ValueError("is not a digest; `modelyard keys add` makes keys and writes their digests")


def _read_scope(value: object) -> Scope:
    names = [scope.value for scope in Scope]
    if isinstance(value, str) and value in names:
        return Scope(value)
    raise ValueError(
        f"{describe_kind(value)} is not a scope{near_names(value, names)}; "
        f"write one of {', '.join(names)}"
    )


def read_network(value: object) -> Network:
    """An address, or a range of them (RFC 4632). Raises ValueError."""
    advice = "write an address like 10.0.0.7, or a range like 10.0.0.0/8"
    if not isinstance(value, str):
        raise ValueError(f"{describe_kind(value)} is not an address; {advice}")
    try:
        return ip_network(value)
    except ValueError:
        pass
    try:
        meant = ip_network(value, strict=False)
    except ValueError:
        raise ValueError(f"{shorten(value)} is not an address; {advice}") from None
    raise ValueError(f"{shorten(value)} has bits outside its range; write {meant}")


def _write_network(network: Network) -> str:
    whole_range = network.prefixlen == network.max_prefixlen
    return str(ip_address(int(network.network_address)) if whole_range else network)


_TEXT: Final = {"type": "string"}
_PER_TIME: Final = {**_TEXT, "pattern": r"^[0-9.]+ ?[kKmM]? ?/ ?[a-z]+$|\$\{env:"}

KeyName = Annotated[
    str, Kind(read_key_name, {**_TEXT, "pattern": f"^{NAME.pattern}$", "maxLength": MAX_NAME})
]
RateOrNone = Annotated[Rate | None, Kind(parse_rate, _PER_TIME, format_rate).or_none()]
ScopeName = Annotated[
    Scope, Kind(_read_scope, {**_TEXT, "enum": [scope.value for scope in Scope]}, str)
]
Digest = Annotated[str, Kind(_read_digest, {**_TEXT, "pattern": rf"^{DIGEST.pattern}$|\$\{{env:"})]
MomentOrNone = Annotated[float | None, Kind(parse_moment, _TEXT, format_moment).or_none()]
Host = Annotated[Network, Kind(read_network, _TEXT, _write_network)]


class KeyLimitsSection(Section):
    requests: RateOrNone = Field(
        None, description="Requests per time, like `60/min`; null sets no bound."
    )
    tokens: RateOrNone = Field(
        None,
        description="Tokens of prompts and answers together per time, like `100k/min`; null sets "
        "no bound.",
    )
    concurrency: Annotated[int | None, whole(1, 1_000_000).or_none()] = Field(
        None,
        description="Requests at once, those that wait for their model included; null sets no "
        "bound.",
    )

    def value(self) -> Quota:
        return Quota(self.requests, self.tokens, self.concurrency)


class KeySection(Section):
    digest: Digest = Field(
        description="Digest of the key, as `modelyard keys add` writes it. The key itself is kept "
        "nowhere."
    )
    scopes: Annotated[list[ScopeName], listed(",")] = Field(
        [Scope.INFERENCE],
        description="What the key opens: `inference` asks and lists models, `read` looks at the "
        "admin API, `admin` uses it and includes `read`.",
    )
    models: Annotated[list[Name], listed(",")] = Field(
        [],
        description="Ids of the models that the key may ask, or patterns like `qwen*`; none "
        "allows all. Aliases open nothing.",
    )
    hosts: Annotated[list[Host], listed(",")] = Field(
        [],
        description="Addresses, or ranges like `10.0.0.0/8`, from which the key may be used; none "
        "allows any.",
    )
    expires: MomentOrNone = Field(
        None,
        description="Date, or date and time, from which on the key is refused; without a zone it "
        "is UTC.",
    )
    priority: Annotated[int, whole(-1000, 1000)] = Field(
        0,
        description="Among requests that wait for one model, the one with the higher priority "
        "goes first.",
    )
    heartbeats: BooleanOrNone = Field(
        None,
        description="Whether clients with this key hear heartbeats while they wait; null leaves "
        "it to `server.heartbeats`.",
    )
    limits: Annotated[KeyLimitsSection, mapped] = Field(
        default_factory=partial(KeyLimitsSection.model_validate, {}),
        description="How much the key may use.",
    )


Keys = Annotated[dict[KeyName, Annotated[KeySection, mapped]], mapped]


def keys_from(sections: Mapping[str, KeySection]) -> tuple[Key, ...]:
    """The keys that the section `keys` describes."""
    return tuple(
        Key(
            name,
            section.digest,
            frozenset(section.scopes),
            tuple(section.models),
            tuple(section.hosts),
            section.expires,
            section.priority,
            section.limits.value(),
            section.heartbeats,
        )
        for name, section in sections.items()
    )


def written_key(key: Key) -> dict[str, Any]:
    """A key in the words of the file."""
    quota = key.quota
    return {
        "digest": key.digest,
        "scopes": [scope.value for scope in Scope if scope in key.scopes],
        "models": list(key.models),
        "hosts": [_write_network(network) for network in key.hosts],
        "expires": None if key.expires_at is None else format_moment(key.expires_at),
        "priority": key.priority,
        "heartbeats": key.heartbeats,
        "limits": {
            "requests": None if quota.requests is None else format_rate(quota.requests),
            "tokens": None if quota.tokens is None else format_rate(quota.tokens),
            "concurrency": quota.concurrency,
        },
    }


def view_of(key: Key, now: float) -> KeyView:
    """What may be told of a key; `now` is in seconds since 1970."""
    quota = key.quota
    return KeyView(
        name=key.name,
        scopes=[scope.value for scope in Scope if scope in key.scopes],
        models=list(key.models),
        hosts=[_write_network(network) for network in key.hosts],
        expires=None if key.expires_at is None else format_moment(key.expires_at),
        has_expired=key.expires_at is not None and now >= key.expires_at,
        priority=key.priority,
        requests=None if quota.requests is None else format_rate(quota.requests),
        tokens=None if quota.tokens is None else format_rate(quota.tokens),
        concurrency=quota.concurrency,
    )


def key_problems(sections: Mapping[str, KeySection]) -> Iterator[Problem]:
    """What is wrong between keys."""
    owners: dict[str, str] = {}
    for name, section in sections.items():
        owner = owners.setdefault(section.digest, name)
        if owner != name:
            text = f"is the digest of the key {owner}, too; each key has its own"
            yield Problem(("keys", name, "digest"), text)


def administers(sections: Mapping[str, KeySection]) -> bool:
    """Whether there is a key for the admin API."""
    return any(Scope.ADMIN in section.scopes for section in sections.values())
