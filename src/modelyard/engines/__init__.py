"""Adapters: how each kind of inference server is started, probed and understood."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from modelyard.engines.base import Engine
from modelyard.engines.command import CommandEngine
from modelyard.engines.llamacpp import LlamaCpp

__all__ = ["build"]


def build(python: str, llama_server: str | None = None) -> Mapping[str, Engine]:
    """Every engine by the word that the config uses.

    `python` runs the servers of our own; `llama_server` is the path of a llama-server to use in
    their place, None uses the xllamacpp wheel.
    """
    unified_memory = sys.platform == "darwin"
    engines: tuple[Engine, ...] = (
        LlamaCpp(python, llama_server, unified_memory=unified_memory),
        CommandEngine(),
    )
    return {engine.name: engine for engine in engines}
