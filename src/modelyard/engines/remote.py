"""Endpoints of other people: where each upstream of a model is, and how it wants to be asked.

Laws of this file:
- A key is in the header lines of its own upstream and nowhere else: not in a message, not in a
  `repr`, and those lines are sent over connections to that upstream's own address alone.
- No process, no memory: a remote is ready as soon as nothing speaks against it.
- An address is the base URL as OpenAI's clients take it, `https://api.openai.com/v1`: routes are
  appended to it. One without a path means `/v1`, which is where servers of our kind have them.

Source: base URLs and `Authorization: Bearer` of OpenAI's clients
(platform.openai.com/docs/api-reference); `GET /models` exists beside every one of their routes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
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
from modelyard.engines.base import Failure
from modelyard.engines.dialect import Dialect
from modelyard.engines.rename import with_name

ROUTES: Mapping[Task, str] = {
    Task.CHAT: "/chat/completions",
    Task.COMPLETION: "/completions",
    Task.EMBEDDING: "/embeddings",
    Task.RERANK: "/rerank",
}
USUAL_BASE = "/v1"
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
    """Our header lines: where it is, and our key."""
    dialect: Dialect = field(repr=False)
    probe_path: str
    """A route that costs nothing and answers if the upstream is there."""
    weight: int
    connect_timeout_s: float


def _target(spec: ModelSpec, upstream: RemoteUpstream, key: str) -> Target:
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
    rename = partial(with_name, name=upstream.model or spec.id)
    return Target(
        name=f"{parts.scheme}://{authority}",
        endpoint=Endpoint(host, port),
        is_tls=parts.scheme == "https",
        ca_file=upstream.ca_file,
        headers=headers.encode("ascii"),
        dialect=Dialect(
            paths={task: f"{base}{route}{query}" for task, route in ROUTES.items()},
            requests=dict.fromkeys(ROUTES, rename),
        ),
        probe_path=f"{base}/models{query}",
        weight=upstream.weight,
        connect_timeout_s=upstream.connect_timeout_s,
    )


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
        return tuple(_target(spec, each, self._reveal(each.key)) for each in _upstreams(spec))

    def problems(self, spec: ModelSpec) -> Sequence[str]:
        found = [] if _upstreams(spec) else ["upstreams: at least one is needed"]
        for at, upstream in enumerate(_upstreams(spec)):
            try:
                self._reveal(upstream.key)
            except ModelyardError as error:
                found.append(f"upstreams[{at}].key: {error}")
        return found

    def command(self, spec: ModelSpec, placement: Placement, endpoint: Endpoint) -> Command:  # noqa: ARG002
        raise LaunchError(f"model {spec.id!r} is remote: it has no process")

    def fixed_port(self, spec: ModelSpec) -> int | None:  # noqa: ARG002 - it listens elsewhere
        return None

    def health_path(self, spec: ModelSpec) -> str:
        return _target(spec, _upstreams(spec)[0], "").probe_path

    def functional_probe(self, spec: ModelSpec) -> Call | None:  # noqa: ARG002 - it would cost money
        return None

    def dialect(self, spec: ModelSpec) -> Dialect | None:  # noqa: ARG002 - each upstream has its own
        return None

    def warm_up(self, spec: ModelSpec) -> Call | None:  # noqa: ARG002 - it is warm or not ours
        return None

    def progress(self, line: str) -> Progress | None:  # noqa: ARG002 - it prints nothing
        return None

    def failure(self, exit_text: str, last_lines: Sequence[str]) -> Failure:  # noqa: ARG002
        return Failure(exit_text)

    def memory_report(self, lines: Sequence[str], placement: Placement) -> Mapping[str, int]:  # noqa: ARG002
        return {}
