"""Who asks, and what they may: one answer for the hot path, the admin API and every dialect.

Laws of this file:
- No I/O and no lock. Without keys nobody is asked anything, and it costs a comparison.
- A key is looked up by its name and compared by its digest in constant time. What is wrong with it
  otherwise (expired, another host) is told only to who holds it.
- Everything is closed but what is listed here as open: the path that counts is the one that the
  application routes by, never one that a header could change.
- Following another configuration keeps what keys have used: limits are not filled up by it.

A refusal for a model is OpenAI's: 404 `model_not_found`, the same as for one that is not there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from hashlib import sha256
from hmac import compare_digest
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Final

from modelyard.core.errors import Forbidden, ModelNotFound, RateLimited, Unauthorized
from modelyard.core.keys import PREFIX, SECRET_LENGTH, Key, Scope, admin_is_open
from modelyard.core.names import Meaning, Names
from modelyard.core.quota import NS, Allowance, Balance, Refusal
from modelyard.http.record import Record

if TYPE_CHECKING:
    from starlette.requests import Request

MOST_REMEMBERED: Final = 1000
"""Answers about hosts, and about models, that a caller remembers."""

OPEN: Final = frozenset({
    "/", "/health", "/v1/health", "/api/health", "/api/version", "/docs", "/redoc",
    "/openapi.json", "/docs/oauth2-redirect",
})  # fmt: skip
"""Paths that tell nothing about this machine, but that a server of this version is up."""
FOR_CLIENTS: Final = "/v1/"
"""Below this is what clients of models use; nothing there changes anything."""
LISTINGS: Final = frozenset({"/api/tags", "/api/show", "/api/ps"})
"""Paths at which Ollama's clients look for models before they ask them."""
QUESTIONS: Final = frozenset({"/api/plan"})
"""Paths to which a POST changes nothing."""
FOR_ADMINS: Final = ("/api/captures", "/api/keys", "/upstream")
"""Paths at which more is seen than `read` allows; those below them count, too."""

_SECRET_PART: Final = SECRET_LENGTH + 1
_NAME_AT: Final = len(PREFIX)


class Caller:
    """One who asks: what their key allows, and what they have used of it."""

    __slots__ = (
        "_allowance", "_hosts", "_models", "digest", "key", "last_used", "name", "priority",
        "requests", "tokens",
    )  # fmt: skip

    def __init__(self, key: Key | None) -> None:
        self.requests = 0
        """Requests admitted since the server has known the key."""
        self.tokens = 0
        self.last_used: float | None = None
        """When the last request ended, in seconds since 1970."""
        self._allowance: Allowance | None = None
        self.become(key)

    def __repr__(self) -> str:
        return f"Caller({self.name!r})"

    def become(self, key: Key | None) -> None:
        """Follow another entry of the configuration under the same name."""
        self.key = key
        self.name = key.name if key is not None else ""
        self.priority = key.priority if key is not None else 0
        self.digest = bytes.fromhex(key.digest.partition(":")[2]) if key is not None else b""
        self._models: dict[str, bool] = {}
        self._hosts: dict[str, bool] = {}
        if key is not None and self._allowance is not None:
            self._allowance.change(key.quota)
        elif key is not None:
            self._allowance = Allowance(key.quota)

    @property
    def running(self) -> int:
        """Requests under way."""
        return self._allowance.running if self._allowance is not None else 0

    def may_use(self, model_id: str) -> bool:
        """Whether the caller may ask the model of this id."""
        if self.key is None or not self.key.models:
            return True
        known = self._models.get(model_id)
        if known is None:
            known = self.key.may_use(model_id)
            if len(self._models) < MOST_REMEMBERED:
                self._models[model_id] = known
        return known

    def unknown(self, name: str, error: ModelNotFound | None = None) -> ModelNotFound:
        """The refusal for a model that is not there, or not for this caller.

        Near names are told only to those who may know all of them.
        """
        if error is not None and (self.key is None or not self.key.models):
            return error
        return ModelNotFound(name[:200])

    def enter(self, now: float, body_bytes: int) -> int:
        """Begin a request: what is held back for it, to be given to `leave`, once.

        Raises RateLimited. `now` is in seconds of a clock that never runs backwards.
        """
        allowance = self._allowance
        if allowance is None:
            return 0
        held = allowance.enter(body_bytes, int(now * NS))
        if isinstance(held, Refusal):
            raise self._limited(held)
        self.requests += 1
        return held

    def leave(self, held: int, record: Record, now: float) -> None:
        """A request that entered has ended: its tokens are what the record says."""
        allowance = self._allowance
        if allowance is None:
            return
        allowance.leave(
            held, record.bytes_in, record.prompt_tokens, record.completion_tokens, int(now * NS)
        )
        self.tokens += record.prompt_tokens + record.completion_tokens
        self.last_used = record.arrived + record.total_s

    def balances(self, now: float) -> list[Balance]:
        """How the limits stand that count over time; nothing where there are none."""
        allowance = self._allowance
        if allowance is None or not allowance.quota:
            return []
        return allowance.balances(int(now * NS))

    def comes_from(self, host: str) -> bool:
        """Whether the key may be used from this address."""
        known = self._hosts.get(host)
        if known is None:
            known = self._is_within(host)
            if len(self._hosts) < MOST_REMEMBERED:
                self._hosts[host] = known
        return known

    def _is_within(self, host: str) -> bool:
        try:
            address = ip_address(host.partition("%")[0])
        except ValueError:
            return False  # no address at all, like a Unix socket's
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        networks = self.key.hosts if self.key is not None else ()
        return any(address in network for network in networks)

    def _limited(self, refusal: Refusal) -> RateLimited:
        assert self.key is not None, "only keys have limits"
        quota = self.key.quota
        if refusal.limit == "concurrency":
            what = f"{quota.concurrency} requests at once"
        else:
            rate = quota.requests if refusal.limit == "requests" else quota.tokens
            assert rate is not None, "refused by this limit"
            what = f"{rate.amount} {refusal.limit} in {rate.per_s} s"
        return RateLimited(
            f"the key {self.name!r} may use {what}; come again in {refusal.wait_s:.1f} s",
            refusal.wait_s,
        )


ANYONE: Final = Caller(None)
"""Whoever asks a server that has no keys. It keeps nothing, so all may share it."""


def caller_of(request: Request) -> Caller:
    """Who asks, as the middleware of the ASGI application has found out."""
    caller: Caller = request.state.caller
    return caller


def resolved(names: Names, name: str, caller: Caller) -> Meaning:
    """The model that `name` means to this caller. Raises ModelNotFound.

    Who may not use a model learns nothing of it, not even that it is there.
    """
    try:
        meaning = names.meaning(name)
    except ModelNotFound as error:
        raise caller.unknown(name, error) from None
    if caller is not ANYONE and not caller.may_use(meaning.spec.id):
        raise caller.unknown(name)
    return meaning


class Access:
    """Decides by keys. `update` follows the configuration."""

    def __init__(
        self, keys: Iterable[Key], *, is_loopback: bool, clock: Callable[[], float] = time.time
    ) -> None:
        """`is_loopback` says that only this machine can reach the server; `clock` tells the
        seconds since 1970."""
        self._is_loopback = is_loopback
        self._clock = clock
        self._callers: dict[bytes, Caller] = {}
        self._admin_is_open = True
        self.generation = 0
        """Changes whenever keys do."""
        self.update(keys)

    def update(self, keys: Iterable[Key]) -> None:
        """Let in these keys from now on. What goes on under a key that is gone goes on."""
        self.generation += 1
        before = self._callers
        self._callers = {}
        keys = tuple(keys)
        for key in keys:
            name = key.name.encode()
            caller = before.get(name)
            if caller is None or caller.key is None or caller.key.digest != key.digest:
                caller = Caller(key)
            elif caller.key != key:
                caller.become(key)
            self._callers[name] = caller
        self._admin_is_open = admin_is_open(keys, is_loopback=self._is_loopback)

    @property
    def callers(self) -> list[Caller]:
        """Everybody who has a key, in the order of the configuration."""
        return list(self._callers.values())

    def caller(self, credential: bytes, host: str) -> Caller:
        """Who asks a model with the value of an `Authorization`, `x-api-key` or `api-key` header
        (empty for none) from this address. Raises Unauthorized, and Forbidden."""
        if not self._callers:
            return ANYONE
        caller = self._known(credential, host)
        if caller.key is None or Scope.INFERENCE not in caller.key.scopes:
            raise _out_of_scope(caller, Scope.INFERENCE)
        return caller

    def visitor(self, method: str, path: str, credential: bytes, host: str) -> Caller:
        """Who asks for anything else, by the path as it is routed. Raises as `caller` does."""
        if not self._callers or path in OPEN:
            return ANYONE
        if path in LISTINGS or path.startswith(FOR_CLIENTS):
            return self._lister(credential, host)
        if self._admin_is_open:
            return ANYONE
        scope = _scope_of(method, path)
        caller = self._known(credential, host)
        if caller.key is None or not caller.key.allows(scope):
            raise _out_of_scope(caller, scope)
        return caller

    def _lister(self, credential: bytes, host: str) -> Caller:
        caller = self._known(credential, host)
        key = caller.key
        if key is None or not (Scope.INFERENCE in key.scopes or key.allows(Scope.READ)):
            raise _out_of_scope(caller, Scope.INFERENCE)
        return caller

    def _known(self, credential: bytes, host: str) -> Caller:
        """The holder of a key that is right, in time, and used where it may be."""
        text = credential[7:].strip() if credential[:7].lower() == b"bearer " else credential
        is_long = len(text) > _NAME_AT + _SECRET_PART
        caller = self._callers.get(text[_NAME_AT:-_SECRET_PART]) if is_long else None
        if caller is None or not compare_digest(sha256(text).digest(), caller.digest):
            raise _unknown(text)
        key = caller.key
        assert key is not None, "found by its name"
        if key.expires_at is not None and self._clock() >= key.expires_at:
            raise Unauthorized(f"the key {key.name!r} has expired")
        if key.hosts and not caller.comes_from(host):
            raise Forbidden(f"the key {key.name!r} may not be used from {host or 'this place'}")
        return caller


def _scope_of(method: str, path: str) -> Scope:
    if any(path == below or path.startswith(f"{below}/") for below in FOR_ADMINS):
        return Scope.ADMIN
    if method in ("GET", "HEAD") or (method == "POST" and path in QUESTIONS):
        return Scope.READ
    return Scope.ADMIN


def _unknown(text: bytes) -> Unauthorized:
    if not text:
        return Unauthorized(
            "this server asks for a key, and the request has none",
            hint="send it as `Authorization: Bearer KEY`",
        )
    return Unauthorized("this server does not know the key of the request")


def _out_of_scope(caller: Caller, scope: Scope) -> Forbidden:
    return Forbidden(f"the key {caller.name!r} has no scope {scope.value!r}")
