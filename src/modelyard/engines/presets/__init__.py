"""Programs that `engine: command` knows how to start: facts, one module for each kind.

Laws of this package:
- A preset is data: a command line with blanks, a health route, the names of its tasks' arguments.
  `engine.py` alone turns presets into commands.
- Whatever a preset says, the user's configuration may say differently: its command, its options,
  its environment, its health route, its tasks, its sleep.
- Each fact names its source in the docstring of its module.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from modelyard.engines.presets.base import Preset
from modelyard.engines.presets.media import KOKORO, STABLE_DIFFUSION, WHISPER
from modelyard.engines.presets.text import (
    LLAMA_SERVER,
    LMDEPLOY,
    MLX,
    OLLAMA,
    SGLANG,
    TENSORRT_LLM,
)
from modelyard.engines.presets.vectors import INFINITY, TEI

__all__ = ["PRESETS", "Preset"]

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            SGLANG,
            LMDEPLOY,
            TENSORRT_LLM,
            LLAMA_SERVER,
            MLX,
            OLLAMA,
            TEI,
            INFINITY,
            WHISPER,
            KOKORO,
            STABLE_DIFFUSION,
        )
    }
)
"""By the name that the config's `preset` key uses (`config.values.PRESETS`)."""
