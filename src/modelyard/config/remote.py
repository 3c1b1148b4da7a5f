"""A model's `upstreams` and `circuit`: where somebody else serves it.

Laws of this file:
- No message repeats a key, nor an address that holds one.
- An address is checked as far as it can be without asking it: what is wrong is said here, and not
  by the first request.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field

from modelyard.config.kinds import (
    FilePathOrNone,
    Kind,
    PositiveDuration,
    listed,
    mapped,
    read_name,
    whole,
)
from modelyard.config.sections import Section
from modelyard.config.units import format_duration
from modelyard.config.values import KeyPath
from modelyard.config.wording import describe_kind, near_names, shorten
from modelyard.core.circuit import Thresholds
from modelyard.core.specs import RemoteModel, RemoteUpstream

MAX_UPSTREAMS = 32
MAX_KEY = 8192
MAX_URL = 2000
HIDDEN_KEY = "<hidden>"
KEY_HEADERS: Mapping[str, str] = MappingProxyType(
    {"openai": "authorization", "anthropic": "x-api-key"}
)
"""The header in which each dialect has its key."""
ROUTING = frozenset({"model", "stream", "stream_options", "messages"})
"""Members of a chat that Modelyard itself reads."""
_UPSTREAM, _CIRCUIT = RemoteUpstream(""), Thresholds()
_VISIBLE = re.compile(r"[!-~]+")
_HOST = re.compile(r"[A-Za-z0-9._:-]+")
_HEADER = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")
_OURS = frozenset({
    "connection", "content-length", "content-type", "expect", "host", "te", "trailer",
    "transfer-encoding", "upgrade", "x-request-id",
})  # fmt: skip


def _read_url(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be an address, not {describe_kind(value)}")
    advice = "; write it like https://api.example.com/v1"
    if len(value) > MAX_URL or not _VISIBLE.fullmatch(value):
        raise ValueError(f"is too long, or holds spaces or characters that are not ASCII{advice}")
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise ValueError(f"is no address{advice}") from None
    if "@" in parts.netloc:
        raise ValueError("must not hold a user or a password; write the key under `key`")
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"must begin with https:// or http://{advice}")
    if not parts.hostname or not _HOST.fullmatch(parts.hostname) or port == 0:
        raise ValueError(f"names no host{advice}")
    if parts.fragment:
        raise ValueError("must not hold a #; remove what follows it")
    for route in ("/chat/completions", "/completions", "/embeddings", "/rerank", "/messages"):
        if parts.path.rstrip("/").endswith(route):
            raise ValueError(f"is a whole route; leave out {route}, which is appended to it")
    return str(value)


def _read_key(value: object) -> str:
    """A key as a header can hold it (visible ASCII; RFC 9110, 5.5)."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError("must be text; quote it, or better write ${env:NAME}")
    if value and (len(value) > MAX_KEY or not _VISIBLE.fullmatch(value)):
        raise ValueError(
            "holds spaces, line breaks or characters that are not ASCII, or is endless"
        )
    return str(value)


def _read_key_header(value: object) -> str:
    if not isinstance(value, str) or len(value) > 100 or not _HEADER.fullmatch(value):
        raise ValueError(f"{shorten(value)} is not the name of a header; write it like x-api-key")
    if value.lower() in _OURS:
        raise ValueError(f"{shorten(value)} is a header that Modelyard writes; choose the key's")
    return value.lower()


def _read_dialect(value: object) -> str:
    if isinstance(value, str) and value in KEY_HEADERS:
        return str(value)
    raise ValueError(
        f"{describe_kind(value)} is not a dialect{near_names(value, KEY_HEADERS)}; "
        f"write one of {', '.join(KEY_HEADERS)}"
    )


def _hide(key: Any) -> str:
    return HIDDEN_KEY if key else ""


def _read_renames(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError(f"must be usual names and theirs, not {describe_kind(value)}")
    names = {read_name(usual): read_name(theirs) for usual, theirs in value.items()}
    for name in (*names, *names.values()):
        if name in ROUTING:
            raise ValueError(f"{name!r} says where a request goes and cannot be renamed")
    if len(set(names.values())) < len(names):
        raise ValueError("gives two parameters the same name")
    return names


_TEXT = {"type": "string"}
Renames = Annotated[
    dict[str, str] | None,
    Kind(_read_renames, {"type": "object", "additionalProperties": _TEXT}, dict).or_none(),
]


class EndpointSection(Section):
    """Somebody else's endpoint, and how it is asked."""

    url: Annotated[str, Kind(_read_url, {**_TEXT, "minLength": 1})] = Field(
        description="Base address as OpenAI's clients take it, like `https://api.example.com/v1`; "
        "without a path `/v1` is meant.",
    )
    key: Annotated[str, Kind(_read_key, {"type": ["string", "null"]}, _hide)] = Field(
        _UPSTREAM.key,
        description="Key for this endpoint: `${env:NAME}`, or `enc:...` from `modelyard secret`. "
        "It is sent there alone.",
    )
    key_header: Annotated[str | None, Kind(_read_key_header, _TEXT).or_none()] = Field(
        None,
        description="Header that carries the key; `authorization` as `Bearer KEY`, any other "
        "(`api-key`, `x-api-key`) as it is. Default: `authorization`, and `x-api-key` for the "
        "dialect `anthropic`.",
    )
    dialect: Annotated[str, Kind(_read_dialect, {"enum": list(KEY_HEADERS)})] = Field(
        _UPSTREAM.dialect,
        description="What the endpoint speaks. Chats are translated to and from `anthropic`.",
    )
    ca_file: FilePathOrNone = Field(
        None,
        description="PEM file of the certificates to trust in place of the system's, for an "
        "endpoint with a certificate of your own making.",
    )
    connect_timeout_s: PositiveDuration = Field(
        _UPSTREAM.connect_timeout_s,
        description="Longest wait for a connection, encryption included, before the next upstream "
        "is asked.",
    )

    renames: Renames = Field(
        None,
        description="What parameters of chats are called there: `{max_tokens: "
        "max_completion_tokens}`. Default: just that for api.openai.com, nothing elsewhere; `{}` "
        "renames nothing.",
    )

    def value(self, ca_file: Path | None, model: str | None = None) -> RemoteUpstream:
        """The endpoint; `ca_file` is the section's own, made absolute."""
        return RemoteUpstream(
            url=self.url,
            key=self.key,
            key_header=self.key_header or KEY_HEADERS[self.dialect],
            dialect=self.dialect,
            model=model,
            ca_file=None if ca_file is None else str(ca_file),
            connect_timeout_s=self.connect_timeout_s,
            renames=None if self.renames is None else MappingProxyType(self.renames),
        )


class UpstreamSection(EndpointSection):
    """One endpoint that serves the model."""

    model: Annotated[str | None, Kind(read_name, {"type": "string"}).or_none()] = Field(
        None, description="What the upstream calls the model. Default: the model's id here."
    )
    weight: Annotated[int, whole(0, 1000)] = Field(
        _UPSTREAM.weight,
        description="Share of the requests; 0 is asked only if no other upstream can be.",
    )


class CircuitSection(Section):
    """When an upstream that fails is left alone, and for how long."""

    failures: Annotated[int, whole(1, 1000)] = Field(
        _CIRCUIT.failures,
        description="Failures of an upstream in a row after which it is not asked for a while.",
    )
    open_s: PositiveDuration = Field(
        _CIRCUIT.open_s,
        description="Time until an upstream that is not asked is looked at again; it doubles each "
        "time in vain.",
    )
    open_max_s: PositiveDuration = Field(_CIRCUIT.open_max_s, description="Longest such time.")

    def value(self) -> Thresholds:
        return Thresholds(self.failures, self.open_s, self.open_max_s)


Upstreams = Annotated[
    list[Annotated[UpstreamSection, mapped]], listed("\0", "write it like [{url: https://...}]")
]
Circuit = Annotated[CircuitSection, mapped]
usual_circuit = partial(CircuitSection.model_validate, {})


def remote_of(
    upstreams: Sequence[UpstreamSection],
    circuit: CircuitSection,
    resolve: Callable[[Path, KeyPath], Path],
) -> RemoteModel:
    """Where the model is; `resolve` makes a path absolute that stands at a key of the model."""

    def value(at: int, each: UpstreamSection) -> RemoteUpstream:
        ca_file = resolve(each.ca_file, ("upstreams", at, "ca_file")) if each.ca_file else None
        return replace(each.value(ca_file, each.model), weight=each.weight)

    return RemoteModel(tuple(value(at, each) for at, each in enumerate(upstreams)), circuit.value())


def revision_of(remote: RemoteModel) -> str:
    """Changes when anything about the upstreams does, so that a run of the old ones is ended."""
    if not remote.upstreams:
        return ""
    said = [*((u, u.key) for u in remote.upstreams), remote.circuit]  # a key is not in a repr
    return hashlib.sha256(repr(said).encode()).hexdigest()[:16]


def remote_problems(
    engine: str, upstreams: Sequence[UpstreamSection], circuit: CircuitSection
) -> Iterator[tuple[KeyPath, str]]:
    """What is wrong with the upstreams of a model of this engine, taken together."""
    if engine != "remote":
        if upstreams:
            yield ("upstreams",), "belongs to engine: remote; set that, or remove this"
        if circuit != usual_circuit():
            yield ("circuit",), "belongs to engine: remote; set that, or remove this"
        return
    if not upstreams:
        text = "is missing; the engine remote needs it: [{url: https://api.example.com/v1}]"
        yield ("upstreams",), text
    elif len(upstreams) > MAX_UPSTREAMS:
        text = f"has {len(upstreams)} upstreams; there can be at most {MAX_UPSTREAMS}"
        yield ("upstreams",), text
    elif not any(each.weight for each in upstreams):
        yield ("upstreams", 0, "weight"), "is 0 for every upstream; give one of them at least 1"
    if circuit.open_s > circuit.open_max_s:
        yield ("circuit", "open"), "is longer than open_max; lower one of them"


def written_endpoint(upstream: RemoteUpstream) -> dict[str, Any]:
    """Where an upstream is, in the words of the file and without its key."""
    return {
        "url": upstream.url,
        "key": _hide(upstream.key),
        "key_header": upstream.key_header,
        "dialect": upstream.dialect,
        "ca_file": upstream.ca_file,
        "connect_timeout": format_duration(upstream.connect_timeout_s),
        "renames": None if upstream.renames is None else dict(upstream.renames),
    }


def written_remote(remote: RemoteModel) -> dict[str, Any]:
    """A model's upstreams in the words of the file, without their keys."""
    circuit = remote.circuit
    return {
        "upstreams": [
            {**written_endpoint(each), "model": each.model, "weight": each.weight}
            for each in remote.upstreams
        ],
        "circuit": {
            "failures": circuit.failures,
            "open": format_duration(circuit.open_s),
            "open_max": format_duration(circuit.open_max_s),
        },
    }
