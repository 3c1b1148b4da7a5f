"""Servers that ask for keys."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx

from modelyard.config import Config, Devices
from modelyard.config.values import Captures
from modelyard.core.keys import Key, digest_of, key_text
from modelyard.core.specs import ModelSpec
from modelyard.testing.server import Running, running

CHAT_PATH = "/v1/chat/completions"


def text_of(name: str) -> str:
    """The key of this name in these tests."""
    return key_text(name, name.encode().ljust(32, b"."))


def key(name: str, **parts: Any) -> Key:
    return Key(name, digest_of(text_of(name)), **parts)


def chat(model: str = "m", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hello"}], **more}


def serve_keyed(
    state: Path,
    *models: ModelSpec,
    keys: tuple[Key, ...] = (),
    captures: Captures | None = None,
    **settings: Any,
) -> AbstractAsyncContextManager[Running]:
    """A server with these models and keys; `settings` are of its section `server`."""
    config = Config(
        models=models,
        keys=keys,
        captures=captures or Captures(),
        devices=Devices(budget_mib={"cpu": 1000}),
    )
    return running(config, state, **settings)


def client(server: Running, key: str | None = None, **headers: str) -> httpx.AsyncClient:
    """A client that shows this key."""
    if key is not None:
        headers["authorization"] = f"Bearer {text_of(key)}"
    return httpx.AsyncClient(base_url=server.url, timeout=60, headers=headers)
