"""Endpoints of other people: where each upstream of a model is, and how it wants to be asked.

Laws of this file:
- A key is in the header lines of its own upstream and nowhere else: not in a message, not in a
  `repr`, and those lines are sent over connections to that upstream's own address alone.
- No process, no memory: a remote is ready as soon as nothing speaks against it.
- Where OpenAI itself is asked, `max_tokens` becomes `max_completion_tokens`, unless the
  configuration says otherwise: its newer models refuse the old name, and none refuses the new one.
- An address is the base URL as OpenAI's clients take it, `https://api.openai.com/v1`: routes are
  appended to it. One without a path means `/v1`, which is where servers of our kind have them.

Source: base URLs and `Authorization: Bearer` of OpenAI's clients
(platform.openai.com/docs/api-reference); `GET /models` exists beside every one of their routes.
`max_tokens` is deprecated there (chat/create), and an error for o-series models and gpt-5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

from modelyard.core.errors import LaunchError, ModelyardError
from modelyard.core.specs import (
    Call,
    Command,
    Endpoint,
    ModelSpec,
    Placement,
    Progress,
    RemoteUpstream,
    Task,
)
from modelyard.dialects import to_anthropic
from modelyard.engines.base import Failure
from modelyard.engines.quirks import USUAL_BASE, Quirks
from modelyard.engines.rename import with_parameters

ANTHROPIC: Final = "anthropic"
SPEAKS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "openai": frozenset(),
        ANTHROPIC: frozenset({to_anthropic.PATH, f"{to_anthropic.PATH}/count_tokens"}),
    }
)
_CHAT: Final = "/v1/chat/completions"
_OPENAIS: Final = "api.openai.com"
_OPENAIS_NAMES: Final[Mapping[str, str]] = MappingProxyType({"max_tokens": "max_completion_tokens"})
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Target:
    """One upstream as connections and requests need it."""

    name: str
    """Its address without path, key or query, for messages."""
    endpoint: Endpoint
    is_tls: bool
    ca_file: str | None
    headers: bytes = field(repr=False)
    """Our header lines: where it is, our key, and the version of its dialect."""
    speaks: frozenset[str]
    """Routes of other dialects than OpenAI's that it takes as clients write them."""
    quirks: Quirks = field(repr=False)
    models_path: str
    """The route that lists its models: asking it costs nothing, and it answers if it is there."""
    weight: int
    connect_timeout_s: float


def _target(upstream: RemoteUpstream, model: str, key: str) -> Target:
    parts = urlsplit(upstream.url)
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    shown = f"[{host}]" if ":" in host else host
    authority = shown if port == _PORTS[parts.scheme] else f"{shown}:{port}"
    base = parts.path.rstrip("/") or USUAL_BASE
    query = f"?{parts.query}" if parts.query else ""
    headers = f"host: {authority}\r\n"
    if key:
        scheme = "Bearer " if upstream.key_header == "authorization" else ""
        headers += f"{upstream.key_header}: {scheme}{key}\r\n"
    quirks = Quirks(base=base, query=query, served_name=upstream.model or model)
    if upstream.dialect == ANTHROPIC:
        headers += f"anthropic-version: {to_anthropic.VERSION}\r\n"
        quirks = replace(
            quirks,
            paths={_CHAT: f"{base}/messages"},
            requests={_CHAT: to_anthropic.request},
            replies={_CHAT: to_anthropic.reply_to},
        )
    elif renames := _renames(upstream, host):
        rename = partial(with_parameters, names=renames)
        quirks = replace(quirks, requests={_CHAT: rename})
    return Target(
        name=f"{parts.scheme}://{authority}",
        endpoint=Endpoint(host, port),
        is_tls=parts.scheme == "https",
        ca_file=upstream.ca_file,
        headers=headers.encode("ascii"),
        speaks=SPEAKS[upstream.dialect],
        quirks=quirks,
        models_path=f"{base}/models{query}",
        weight=upstream.weight,
        connect_timeout_s=upstream.connect_timeout_s,
    )


def _renames(upstream: RemoteUpstream, host: str) -> Mapping[str, str]:
    """What parameters of chats are called there, by their usual names."""
    if upstream.renames is not None:
        return upstream.renames
    return _OPENAIS_NAMES if host == _OPENAIS else {}


def _upstreams(spec: ModelSpec) -> tuple[RemoteUpstream, ...]:
    return spec.remote.upstreams


class Remote:
    """Asks the upstreams that the model names; `runtime.remote_run` runs it."""

    name = "remote"

    def __init__(self, reveal: Callable[[str], str] = str) -> None:
        """`reveal` decrypts keys that are written down encrypted."""
        self._reveal = reveal

    def targets(self, spec: ModelSpec) -> tuple[Target, ...]:
        """The upstreams in the order written. Raises ModelyardError for a key it cannot decrypt."""
        return tuple(self.target(each, spec.id) for each in _upstreams(spec))

    def target(self, upstream: RemoteUpstream, model: str) -> Target:
        """Where requests for `model` go, unless the upstream has a name of its own for it.

        Raises ModelyardError for a key that cannot be decrypted.
        """
        return _target(upstream, model, self._reveal(upstream.key))

    def problems(self, spec: ModelSpec) -> Sequence[str]:
        found = [] if _upstreams(spec) else ["upstreams: at least one is needed"]
        for at, upstream in enumerate(_upstreams(spec)):
            try:
                self._reveal(upstream.key)
            except ModelyardError as error:
                found.append(f"upstreams[{at}].key: {error}")
            if upstream.dialect == ANTHROPIC and spec.tasks - {Task.CHAT}:
                others = ", ".join(sorted(spec.tasks - {Task.CHAT}))
                found.append(f"upstreams[{at}].dialect: {ANTHROPIC} has no {others}, only chat")
        return found

    def command(self, spec: ModelSpec, placement: Placement, endpoint: Endpoint) -> Command:  # noqa: ARG002
        raise LaunchError(f"model {spec.id!r} is remote: it has no process")

    def fixed_port(self, spec: ModelSpec) -> int | None:  # noqa: ARG002 - it listens elsewhere
        return None

    def health_path(self, spec: ModelSpec) -> str:
        return _target(_upstreams(spec)[0], spec.id, "").models_path

    def functional_probe(self, spec: ModelSpec) -> Call | None:  # noqa: ARG002 - it would cost money
        return None

    def quirks(self, spec: ModelSpec) -> Quirks | None:  # noqa: ARG002 - each upstream has its own
        return None

    def warm_up(self, spec: ModelSpec) -> Call | None:  # noqa: ARG002 - it is warm or not ours
        return None

    def progress(self, line: str) -> Progress | None:  # noqa: ARG002 - it prints nothing
        return None

    def failure(self, exit_text: str, last_lines: Sequence[str]) -> Failure:  # noqa: ARG002
        return Failure(exit_text)

    def memory_report(self, lines: Sequence[str], placement: Placement) -> Mapping[str, int]:  # noqa: ARG002
        return {}
