"""The section `server`: the listener and how patient it is.

Laws of this file:
- Defaults come from `values.Server`; descriptions are for users and published in the JSON Schema.
- What spans several keys, like a host that needs a key, is in `rules.py`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field

from modelyard.config.kinds import (
    Boolean,
    Duration,
    FilePath,
    Host,
    Name,
    Origin,
    PositiveDuration,
    Size,
    listed,
    mapped,
    whole,
)
from modelyard.config.sections import Section
from modelyard.config.tls import TlsSection
from modelyard.config.values import Server, default_state_dir

_SERVER = Server(state_dir=Path())


class ServerSection(Section):
    host: Host = Field(
        _SERVER.host,
        description="Address to listen on. One that other machines can reach needs a key with the "
        "scope `admin`, or `insecure`.",
    )
    port: Annotated[int, whole(0, 65535)] = Field(
        _SERVER.port, description="TCP port to listen on; 0 takes a free one."
    )
    list_aliases: Boolean = Field(
        _SERVER.list_aliases,
        description="List aliases as models of their own, for clients that offer only what is "
        "listed.",
    )
    ollama_port: Annotated[int | None, whole(0, 65535).or_none()] = Field(
        _SERVER.ollama_port,
        description="Second TCP port for the same server, for clients that look for Ollama where "
        "it usually is, 11434; null opens none.",
    )
    allowed_hosts: Annotated[list[Host], listed(",")] = Field(
        list(_SERVER.allowed_hosts),
        description="Host names that requests may be addressed to, besides loopback names and "
        "`host`; `*` allows all. It keeps foreign web pages out (DNS rebinding).",
    )
    tls: Annotated[TlsSection, mapped] = Field(
        default_factory=partial(TlsSection.model_validate, {}),
        description="Certificates, for https.",
    )
    insecure: Boolean = Field(
        _SERVER.insecure,
        description="Allow a `host` that other machines can reach, although no key protects it.",
    )
    cors_origins: Annotated[list[Origin], listed(",")] = Field(
        list(_SERVER.cors_origins),
        description="Web pages that may use this server, by their origin like "
        "`https://chat.example.com`; `*` allows all and needs a key with the scope `admin`. "
        "Pages of this server itself always may.",
    )
    max_body_bytes: Size = Field(
        _SERVER.max_body_bytes, description="Largest body of a request that is accepted."
    )
    heartbeat_after_s: Duration = Field(
        _SERVER.heartbeat_after_s,
        description="A streaming client that waits this long for its model gets its headers and "
        "a first heartbeat; errors before that keep their status code.",
    )
    heartbeat_every_s: PositiveDuration = Field(
        _SERVER.heartbeat_every_s, description="Time between two heartbeats."
    )
    heartbeats: Boolean = Field(
        _SERVER.heartbeats,
        description="Whether clients that wait hear heartbeats at all; a key may say otherwise.",
    )
    no_heartbeats_for: Annotated[list[Name], listed(",")] = Field(
        list(_SERVER.no_heartbeats_for),
        description="Programs that stumble over heartbeats and get none, by patterns of their "
        "`User-Agent` like `some-client/*`.",
    )
    header_timeout_s: PositiveDuration = Field(
        _SERVER.header_timeout_s,
        description="Longest time that the head of a request may take to arrive.",
    )
    body_timeout_s: PositiveDuration = Field(
        _SERVER.body_timeout_s,
        description="Longest silence of a client that is sending its request.",
    )
    send_timeout_s: PositiveDuration = Field(
        _SERVER.send_timeout_s,
        description="A client that takes nothing of its answer for this long is cut off.",
    )
    keep_alive_s: PositiveDuration = Field(
        _SERVER.keep_alive_s, description="How long an idle connection of a client is kept open."
    )
    websocket_idle_s: PositiveDuration = Field(
        _SERVER.websocket_idle_s,
        description="How long a WebSocket is kept open on which neither end says anything.",
    )
    shutdown_timeout_s: Duration = Field(
        _SERVER.shutdown_timeout_s,
        description="Longest wait for requests in flight when the server is asked to end.",
    )
    state_dir: FilePath = Field(
        default_factory=default_state_dir,
        description="Folder for logs and other state. Default: the platform's folder for the "
        "state of programs, `~/.local/state/modelyard` on Linux.",
    )
