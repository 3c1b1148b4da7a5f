"""What each client needs to know, in its own words.

Laws of this file:
- Pure: from an address, a key and a model to files and advice. `files.py` writes them.
- A client's own settings are laid beside ours, never replaced: where a client takes a profile or a
  file of its own, it gets one.
- What a client keeps in a place of its own (a keychain, a database, a form) is said, not written.

Sources: Codex, developers.openai.com/codex/config-advanced (a profile is a file of its own since
0.134; `wire_api` is `responses`); Claude Code, code.claude.com/docs/en/llm-gateway-connect and
/settings; Continue, docs.continue.dev/reference; Zed, zed.dev/docs/ai/use-api-access; aider,
aider.chat/docs/llms/openai-compat.html and /docs/config/aider_conf.html; opencode,
opencode.ai/docs/providers; Open WebUI, docs.openwebui.com (environment variables).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

NO_KEY: Final = "modelyard"
"""What clients send that insist on a key where the server asks for none."""
NAME: Final = "Modelyard"
USUAL_CONTEXT: Final = 32768
"""Tokens of a sequence for clients that want a number where nobody knows it."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a client is to use."""

    url: str
    """Root of the server, without a slash at its end."""
    model: str
    key: str = ""
    """Empty where the server asks for none."""
    context_length: int | None = None

    @property
    def base_url(self) -> str:
        """As OpenAI's clients take it."""
        return f"{self.url}/v1"

    @property
    def shown_key(self) -> str:
        return self.key or NO_KEY


@dataclass(frozen=True, slots=True)
class Whole:
    """A file that is ours alone."""

    path: Path
    text: str


@dataclass(frozen=True, slots=True)
class Merge:
    """Values laid into a JSON or YAML file that is the client's.

    A list in `values` is added to the file's: entries with the same `name` are replaced.
    """

    path: Path
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one client is connected."""

    edits: tuple[Whole | Merge, ...] = ()
    advice: str = ""
    """What a person does besides, or all of it if there are no edits."""


@dataclass(frozen=True, slots=True)
class Client:
    """A program that can be connected."""

    id: str
    title: str
    recipe: Callable[[Target, Path], Recipe]
    """From what is to be used and the home folder to what has to be done."""


def _codex(target: Target, home: Path) -> Recipe:
    folder = Path(os.environ.get("CODEX_HOME") or home / ".codex")
    lines = [
        f"model = {json.dumps(target.model)}",
        'model_provider = "modelyard"',
        *([f"model_context_window = {target.context_length}"] if target.context_length else []),
        "",
        "[model_providers.modelyard]",
        f'name = "{NAME}"',
        f"base_url = {json.dumps(target.base_url)}",
        'wire_api = "responses"',
    ]
    advice = "Start it with: codex --profile modelyard"
    if target.key:
        lines.append('env_key = "MODELYARD_API_KEY"')
        advice = f"Start it with: MODELYARD_API_KEY={target.key} codex --profile modelyard"
    return Recipe((Whole(folder / "modelyard.config.toml", "\n".join(lines) + "\n"),), advice)


def _claude_code(target: Target, home: Path) -> Recipe:
    env = {
        "ANTHROPIC_BASE_URL": target.url,
        "ANTHROPIC_AUTH_TOKEN": target.shown_key,
        "ANTHROPIC_MODEL": target.model,
        "ANTHROPIC_DEFAULT_OPUS_MODEL": target.model,
        "ANTHROPIC_DEFAULT_SONNET_MODEL": target.model,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": target.model,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    return Recipe(
        (Merge(home / ".claude" / "settings.json", {"env": env}),),
        "Start claude anew; /status shows the address. Unset ANTHROPIC_API_KEY in your shell.",
    )


def _continue(target: Target, home: Path) -> Recipe:
    model = {
        "name": f"{NAME}: {target.model}",
        "provider": "openai",
        "model": target.model,
        "apiBase": target.base_url,
        "apiKey": target.shown_key,
        "roles": ["chat", "edit", "apply"],
    }
    values = {"name": "Local", "version": "1.0.0", "schema": "v1", "models": [model]}
    return Recipe(
        (Merge(home / ".continue" / "config.yaml", values),),
        "Choose the model in Continue's list.",
    )


def _zed(target: Target, home: Path) -> Recipe:
    provider = {
        "api_url": target.base_url,
        "available_models": [
            {
                "name": target.model,
                "display_name": target.model,
                "max_tokens": target.context_length or USUAL_CONTEXT,
            }
        ],
    }
    values = {"language_models": {"openai_compatible": {NAME: provider}}}
    return Recipe(
        (Merge(home / ".config" / "zed" / "settings.json", values),),
        f"Zed reads the key from MODELYARD_API_KEY={target.shown_key}, or asks for it in the agent "
        "panel's settings.",
    )


def _aider(target: Target, home: Path) -> Recipe:
    values = {
        "model": f"openai/{target.model}",
        "openai-api-base": target.base_url,
        "openai-api-key": target.shown_key,
    }
    return Recipe((Merge(home / ".aider.conf.yml", values),), "Start it with: aider")


def _opencode(target: Target, home: Path) -> Recipe:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": NAME,
        "options": {"baseURL": target.base_url, "apiKey": target.shown_key},
        "models": {target.model: {"name": target.model}},
    }
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "opencode"
    return Recipe(
        (Merge(folder / "opencode.json", {"provider": {"modelyard": provider}}),),
        f"Start it with: opencode --model modelyard/{target.model}",
    )


def _open_webui(target: Target, _: Path) -> Recipe:
    return Recipe(
        advice=f"""\
Start Open WebUI with these variables:

    OPENAI_API_BASE_URL={target.base_url}
    OPENAI_API_KEY={target.shown_key}

or, where it runs already: Admin Panel, Settings, Connections, OpenAI API, add {target.base_url}.
From a container, the host of this machine is host.docker.internal; the server must listen there and
know that name (server.host, server.allowed_hosts)."""
    )


def _cline(target: Target, _: Path) -> Recipe:
    return Recipe(
        advice=f"""\
In Cline's settings choose the API provider "OpenAI Compatible" and enter:

    Base URL   {target.base_url}
    API Key    {target.shown_key}
    Model ID   {target.model}"""
    )


def _n8n(target: Target, _: Path) -> Recipe:
    return Recipe(
        advice=f"""\
Make a credential of the kind "OpenAI" with:

    API Key    {target.shown_key}
    Base URL   {target.base_url}

and name the model {target.model} by its id in the node "OpenAI Chat Model"."""
    )


def _langchain(target: Target, _: Path) -> Recipe:
    return Recipe(
        advice=f"""\
from langchain_openai import ChatOpenAI

llm = ChatOpenAI(
    model={target.model!r},
    base_url={target.base_url!r},
    api_key={target.shown_key!r},
    stream_usage=True,
)"""
    )


def _openai(target: Target, _: Path) -> Recipe:
    return Recipe(
        advice=f"""\
export OPENAI_BASE_URL={target.base_url}
export OPENAI_API_KEY={target.shown_key}

or in Python: OpenAI(base_url={target.base_url!r}, api_key={target.shown_key!r})
and model={target.model!r}."""
    )


def _ollama(target: Target, _: Path) -> Recipe:
    return Recipe(
        advice=f"""\
export OLLAMA_HOST={target.url}

Clients that look for Ollama on port 11434 find it with `server.ollama_port: 11434` in the
configuration. The model is {target.model}."""
    )


CLIENTS: Final[Mapping[str, Client]] = {
    client.id: client
    for client in (
        Client("codex", "Codex", _codex),
        Client("claude-code", "Claude Code", _claude_code),
        Client("open-webui", "Open WebUI", _open_webui),
        Client("continue", "Continue", _continue),
        Client("cline", "Cline", _cline),
        Client("zed", "Zed", _zed),
        Client("aider", "aider", _aider),
        Client("opencode", "opencode", _opencode),
        Client("langchain", "LangChain", _langchain),
        Client("n8n", "n8n", _n8n),
        Client("openai", "OpenAI's libraries", _openai),
        Client("ollama", "clients of Ollama", _ollama),
    )
}
