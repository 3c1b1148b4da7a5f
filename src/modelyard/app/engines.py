"""The engine adapters: told where their programs are, and asked what is wrong with the models.

Laws of this file:
- Nothing of an engine is started here; looking for a vLLM may run its program, in a thread.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import sys
from pathlib import Path

from modelyard import engines
from modelyard.config import Config
from modelyard.config.tree import show
from modelyard.core.errors import ModelyardError
from modelyard.core.specs import ModelSpec
from modelyard.engines.base import Engine
from modelyard.runtime.vllm_here import VllmHere
from modelyard.store.sealing import Seal


def find_vllm(config: Config) -> VllmHere:
    """The vLLMs that the models need. Blocks, for minutes where one is new here."""
    here = VllmHere(os.environ)
    here.look(config)
    return here


def build_engines(config: Config, here: VllmHere) -> dict[str, Engine]:
    """Every engine adapter, told where its programs are."""
    wanted = config.engines.llama_server or shutil.which("llama-server")
    llama_server = None if wanted == "builtin" else wanted
    reveal = Seal(config.server.state_dir).reveal
    return dict(engines.build(sys.executable, llama_server, here.adapter(), reveal))


def uses_cards(config: Config, here: VllmHere, spec: ModelSpec) -> bool:
    """Whether the engine of a model is built for cards, as far as that is known: the built-in
    llama.cpp is not, but for Apple's."""
    if spec.engine == "vllm":
        return not here.build_of(spec.command).is_cpu
    if spec.engine != "llamacpp" or sys.platform == "darwin":
        return True
    wanted = config.engines.llama_server or shutil.which("llama-server")
    return wanted not in (None, "builtin")


def engine_versions(config: Config, here: VllmHere) -> dict[str, str]:
    """What tells one build of an engine from another, for those that we start ourselves."""
    binary = config.engines.llama_server or shutil.which("llama-server")
    if binary is None or binary == "builtin":
        llamacpp = f"xllamacpp {importlib.metadata.version('xllamacpp')}"
    else:
        try:
            changed = Path(binary).stat().st_mtime_ns
        except OSError:
            changed = 0
        llamacpp = f"{binary} {changed}"
    return {"llamacpp": llamacpp, "vllm": here.version, "transformers": _transformers_version()}


def _transformers_version() -> str:
    """The libraries that the engine `transformers` runs on, as far as they are installed."""
    parts = []
    for name in ("torch", "transformers", "sentence-transformers"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            parts.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(parts)


def engine_problems(config: Config, here: VllmHere | None = None) -> list[str]:
    """What the engines find wrong with the declared models, with full key paths.

    Blocks if it has to find the vLLMs itself.
    """
    adapters = build_engines(config, here or find_vllm(config))
    found = [
        f"{show(('models', spec.id))}.{problem}"
        for spec in config.models
        for problem in adapters[spec.engine].problems(spec)
    ]
    reveal = Seal(config.server.state_dir).reveal
    for endpoint in config.remotes:
        try:
            reveal(endpoint.upstream.key)
        except ModelyardError as error:
            found.append(f"{show(('remotes', endpoint.name))}.key: {error}")
    return found
