"""Adapters: how each kind of inference server is started, probed and understood."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

from modelyard.engines.base import Engine
from modelyard.engines.command import CommandEngine
from modelyard.engines.llamacpp import LlamaCpp
from modelyard.engines.presets import PRESETS
from modelyard.engines.presets.engine import PresetEngine
from modelyard.engines.remote import Remote
from modelyard.engines.transformers import Transformers
from modelyard.engines.vllm import Vllm
from modelyard.engines.vllm_builds import Build

__all__ = ["build"]


def build(
    python: str,
    llama_server: str | None = None,
    vllm: Vllm | None = None,
    reveal: Callable[[str], str] = str,
) -> Mapping[str, Engine]:
    """Every engine by the word that the config uses.

    `python` runs the servers of our own; `llama_server` is the path of a llama-server to use in
    their place, None uses the xllamacpp wheel. `vllm` knows the vLLMs of this machine, None none.
    `reveal` decrypts keys that are written down encrypted, and raises ModelyardError if it cannot.
    """
    unified_memory = sys.platform == "darwin"
    engines: tuple[Engine, ...] = (
        LlamaCpp(python, llama_server, unified_memory=unified_memory),
        vllm or Vllm(lambda _: Build(trouble="no vLLM was looked for"), lambda _: None),
        Transformers(python, unified_memory=unified_memory),
        CommandEngine(),
        Remote(reveal),
        *(PresetEngine(preset) for preset in PRESETS.values()),
    )
    return {engine.name: engine for engine in engines}
