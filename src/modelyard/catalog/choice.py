"""Which engine should run a model, and why.

Laws of this file:
- Pure: what the model is and which engines there are go in, a choice with its reason comes out.
- Engines that are not there are named with what they would need, so that a person knows what to
  install.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from modelyard.catalog.classify import Ability
from modelyard.catalog.quantization import UNKNOWN_TO_ENGINES, WITHOUT_VLLM

LLAMACPP: Final = "llamacpp"
VLLM: Final = "vllm"
TRANSFORMERS: Final = "transformers"


class Form(StrEnum):
    """How a model's weights lie on the disk."""

    GGUF = "gguf"
    SAFETENSORS = "safetensors"
    PICKLED = "pickled"
    """PyTorch's `.bin`: loading it runs whatever code is in it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The engine for a model, None where none of those that are there can run it."""

    engine: str | None
    reason: str


_ORDERS: Final = {
    Ability.CHAT: (VLLM, TRANSFORMERS),
    Ability.BASE: (VLLM, TRANSFORMERS),
    Ability.EMBEDDING: (TRANSFORMERS, VLLM),
    Ability.RERANK: (TRANSFORMERS, VLLM),
    Ability.CLASSIFICATION: (VLLM,),
    Ability.TRANSCRIPTION: (VLLM,),
}
_WHY: Final = {
    VLLM: "vLLM runs safetensors with most requests at once",
    TRANSFORMERS: "sentence-transformers reads its pooling and prompts from the model's own files",
}


def choose_engine(
    form: Form, ability: Ability | None, method: str | None, engines: Collection[str]
) -> Choice:
    """The engine for weights in `form` that can do `ability` and are stored by the quantisation
    `method` (None for plain numbers). `engines` are those that can be started."""
    if form is Form.GGUF:
        if LLAMACPP in engines:
            return Choice(LLAMACPP, "GGUF is llama.cpp's own format")
        return Choice(None, "GGUF needs the engine llamacpp, which is not there")
    foreign = UNKNOWN_TO_ENGINES.get(method or "")
    if foreign is not None:
        return Choice(None, foreign)
    order = _ORDERS.get(ability) if ability is not None else None
    if order is None:
        return Choice(None, f"no engine here does {ability or 'what it is for'}")
    able = [engine for engine in order if not (engine == VLLM and method in WITHOUT_VLLM)]
    for engine in able:
        if engine in engines:
            writes = ability in {Ability.CHAT, Ability.BASE}
            why = _WHY[engine]
            if engine == TRANSFORMERS and writes:
                why = f"vLLM does not load {method}" if method in WITHOUT_VLLM else "vLLM is absent"
            return Choice(engine, why)
    return Choice(None, f"it needs the engine {' or '.join(able)}, which is not there")
