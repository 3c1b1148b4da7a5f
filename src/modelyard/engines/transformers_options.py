"""The options of the engine `transformers`, checked and translated for its server.

Laws of this file:
- Names are those of sentence-transformers and of `from_pretrained` for models that read, those of
  `transformers serve` for models that write; a few are our server's own. The tables below have
  them all; what they mean is in docs/transformers.md.
- What Modelyard itself decides is refused here, with the place where it belongs.

Sources: sentence-transformers 6.2 (`SentenceTransformer`, `CrossEncoder`), transformers 5.23
(`PreTrainedModel.from_pretrained`, cli/serve.py), accelerate 1.15 (`max_memory`).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

from modelyard.core.specs import OptionValue

TEMPLATE_FILE: Final = "chat_template_file"
"""Handed over as a path: the server reads it."""


class _Wrong(Exception):
    """What an option must be instead, as words behind "it must be"."""


Check = Callable[[OptionValue], None]


def _text(value: OptionValue) -> None:
    if not isinstance(value, str) or not value:
        raise _Wrong("a text")


def _switch(value: OptionValue) -> None:
    if not isinstance(value, bool):
        raise _Wrong("true or false")


def _positive(value: OptionValue) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _Wrong("a whole number of at least 1")


def _seed(value: OptionValue) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _Wrong("a whole number")


def _fraction(value: OptionValue) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise _Wrong("a number above 0 and up to 1")


def _mapping(value: OptionValue) -> None:
    if not isinstance(value, dict):
        raise _Wrong("a mapping")


def _texts(value: OptionValue) -> None:
    if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
        raise _Wrong("a mapping of names to texts")


def _memory(value: OptionValue) -> None:
    sizes = value.values() if isinstance(value, dict) else ()
    if not sizes or not all(
        isinstance(size, int | str) and not isinstance(size, bool) for size in sizes
    ):
        raise _Wrong("a mapping of devices to sizes, like {0: 20GiB, cpu: 60GiB}")


def _word(*known: str) -> Check:
    def check(value: OptionValue) -> None:
        if value not in known:
            raise _Wrong(f"{', '.join(known[:-1])} or {known[-1]}")

    return check


_DTYPE: Final = _word("auto", "float32", "float16", "bfloat16")
_COMMON: Final[Mapping[str, Check]] = {
    "device": _text,
    "dtype": _DTYPE,
    "attn_implementation": _text,
    "trust_remote_code": _switch,
    "threads": _positive,
    "max_body_bytes": _positive,
}
READING: Final[Mapping[str, Check]] = MappingProxyType({
    **_COMMON,
    "max_memory": _memory,
    "offload_folder": _text,
    "max_seq_length": _positive,
    "overlong": _word("error", "truncate"),
    "normalize_embeddings": _switch,
    "truncate_dim": _positive,
    "prompts": _texts,
    "default_prompt_name": _text,
    TEMPLATE_FILE: _text,
    "max_batch_tokens": _positive,
    "batch_size": _positive,
    "max_queue": _positive,
    "max_inputs": _positive,
    "model_kwargs": _mapping,
    "processor_kwargs": _mapping,
    "config_kwargs": _mapping,
})  # fmt: skip
"""Options of embedding and rerank models."""
WRITING: Final[Mapping[str, Check]] = MappingProxyType({
    **_COMMON,
    "compile": _switch,
    "quantization": _word("bnb-4bit", "bnb-8bit"),
    "reasoning": _word("on", "off", "auto"),
    "chat_template_kwargs": _mapping,
    "continuous_batching": _switch,
    "cb_block_size": _positive,
    "cb_num_blocks": _positive,
    "cb_max_batch_tokens": _positive,
    "cb_max_memory_percent": _fraction,
    "cb_use_cuda_graph": _switch,
    "default_seed": _seed,
})  # fmt: skip
"""Options of chat and base models."""

_BELONGS: Final = {
    "where the engine listens is chosen by Modelyard": ("host", "port", "enable_cors"),
    "write `source` beside the options": ("model", "model_name_or_path", "force_model"),
    "the model's id and `aliases` are its names": ("alias", "served_model_name"),
    "write `tasks` beside the options": ("task", "tasks"),
    "a model that is idle is stopped by `idle_stop`": ("model_timeout",),
    "nothing is fetched: `source` is a folder": (
        "revision", "token", "cache_folder", "local_files_only",
    ),
}  # fmt: skip
_REFUSED: Final = {name: why for why, names in _BELONGS.items() for name in names}
_ALIASES: Final = {"torch_dtype": "dtype", "max_length": "max_seq_length"}


def settings(options: Mapping[str, OptionValue]) -> dict[str, OptionValue]:
    """Options by the names that the server knows; those without a value are left out."""
    return {_name(name): value for name, value in options.items() if value is not None}


def problems(options: Mapping[str, OptionValue], *, reads: bool) -> Iterator[tuple[str, str]]:
    """Each option that cannot be used, and why. `reads`: the model gives vectors or scores."""
    known, other = (READING, WRITING) if reads else (WRITING, READING)
    seen: dict[str, str] = {}
    for written, value in options.items():
        name = _name(written)
        if name in _REFUSED:
            yield written, f"it is not an option here: {_REFUSED[name]}"
        elif name not in known:
            yield written, _unknown(name, known, other)
        elif value is not None:
            try:
                known[name](value)
            except _Wrong as wrong:
                yield written, f"it must be {wrong}, not {json.dumps(value)}"
        first = seen.setdefault(name, written)
        if first != written:
            yield written, f"it is the same option as {first}; keep one of them"


def _unknown(name: str, known: Mapping[str, Check], other: Mapping[str, Check]) -> str:
    if name in other:
        whose = "chat and base" if other is WRITING else "embedding and rerank"
        return f"only {whose} models have it"
    near = difflib.get_close_matches(name, known, n=3)
    return f"there is no such option; {_meant(near, known)}"


def _meant(near: list[str], known: Mapping[str, Check]) -> str:
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"the options are {', '.join(sorted(known))}"


def _name(written: str) -> str:
    bare = written.lstrip("-").replace("-", "_")
    return _ALIASES.get(bare, bare)
