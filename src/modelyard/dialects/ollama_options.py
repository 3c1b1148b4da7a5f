"""Ollama's options, formats and durations in OpenAI's terms, and in those of the engines.

Laws of this file:
- What samples is passed on, by the name that engines know, or by its own where they agree.
- What says how a model is loaded is ignored, because placing a model is Modelyard's business and an
  engine that runs is not restarted for one request (`LOADING`).
- A null or an empty value says nothing.

Sources: api/types.go of Ollama (Options, Runner, Duration), time.ParseDuration of Go;
llama.cpp's server README and vLLM's OpenAI server for their names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

from modelyard.dialects.base import refused

LOADING: Final = frozenset(
    {
        "num_ctx",  # the context a model runs with is an option of the model here
        "num_batch",
        "num_gpu",
        "main_gpu",
        "num_thread",
        "numa",
        "low_vram",
        "f16_kv",
        "logits_all",
        "vocab_only",
        "use_mmap",
        "use_mlock",
        "embedding_only",
    }
)
"""Options of loading; see the laws."""

_RENAMED: Final[Mapping[str, tuple[str, ...]]] = {
    # Engines take one of the two and skip the other: llama.cpp's name, and vLLM's.
    "repeat_penalty": ("repeat_penalty", "repetition_penalty"),
    "num_keep": ("n_keep",),
}

_LEVELS: Final = ("low", "medium", "high", "max")
_UNIT_S: Final[Mapping[str, float]] = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_NUMBER: Final = r"(?:[0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})"
_STEP: Final = re.compile(rf"({_NUMBER})(ns|us|µs|μs|ms|s|m|h)")
_DURATION: Final = re.compile(rf"([+-]?)((?:{_NUMBER}(?:ns|us|µs|μs|ms|s|m|h)){{1,8}})")
_BARE: Final = re.compile(rf"[+-]?{_NUMBER}")


def sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of one answer. Raises InvalidRequest."""
    wanted: dict[str, Any] = {}
    for name, value in unlisted(options).items():
        if name == "num_predict":
            wanted.update(_max_tokens(value))
        elif name == "seed":
            # A negative seed means a random one, which is what engines do without.
            wanted.update({} if _is_number(value) and value < 0 else {"seed": value})
        else:
            wanted.update(dict.fromkeys(_RENAMED.get(name, (name,)), value))
    return wanted


def unlisted(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that say something and are not about loading."""
    return {
        name: value
        for name, value in options.items()
        if name not in LOADING and value is not None and value != []
    }


def response_format(asked: Any) -> dict[str, Any]:
    """OpenAI's `response_format` for `json` or a JSON schema. Raises InvalidRequest."""
    if asked is None or asked == "":
        return {}
    if asked == "json":
        return {"response_format": {"type": "json_object"}}
    if isinstance(asked, dict):
        schema = {"name": "answer", "schema": asked}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    raise refused('a format is "json" or a JSON schema', param="format")


def reasoning(think: bool | str | None) -> dict[str, Any]:
    """Whether and how much the model thinks aloud. Raises InvalidRequest.

    Templates that can switch it read `enable_thinking` (Qwen, GLM, DeepSeek) or `reasoning_effort`
    (gpt-oss); llama.cpp, vLLM and SGLang hand both to them, and models that cannot ignore them.
    """
    if think is None or think == "":
        return {}
    if isinstance(think, bool):
        return {"chat_template_kwargs": {"enable_thinking": think}}
    if think not in _LEVELS:
        raise refused(f"think is true, false or one of {', '.join(_LEVELS)}", param="think")
    levels = {"enable_thinking": True, "reasoning_effort": think}
    return {"reasoning_effort": think, "chat_template_kwargs": levels}


def keep_alive_s(asked: str | float | None) -> float | None:
    """Seconds of a `keep_alive`: a number of seconds, or a duration of Go like `1h30m`.

    None for none; infinity for what is negative, which means always. Raises InvalidRequest.
    """
    if asked is None or asked == "":
        return None
    seconds = float(asked) if not isinstance(asked, str) else _duration_s(asked.strip())
    return math.inf if seconds < 0 else seconds


def _duration_s(text: str) -> float:
    if _BARE.fullmatch(text):  # Ollama's own settings are written so
        return float(text)
    whole = _DURATION.fullmatch(text)
    if whole is None:
        raise refused(
            f"keep_alive {text[:40]!r} is no duration",
            param="keep_alive",
            hint='write "10m", "1h30m", a number of seconds, -1 for always, or 0',
        )
    seconds = sum(float(number) * _UNIT_S[unit] for number, unit in _STEP.findall(whole[2]))
    return -seconds if whole[1] == "-" else seconds


def _max_tokens(asked: Any) -> dict[str, Any]:
    """-1 is without end and -2 until the context is full: what engines do without a bound."""
    if not _is_number(asked):
        raise refused("num_predict is a whole number", param="num_predict")
    return {} if asked < 0 else {"max_tokens": int(asked)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
