"""What the command line says about the model, as values with their defaults.

Laws of this file:
- Only the standard library and msgspec: it is read before torch is imported.
- Names are those of sentence-transformers and of `from_pretrained` where these have one. The
  adapter (`engines/transformers_options.py`) has checked what a user wrote; here it is checked
  again, because a process can be started by anybody.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from enum import StrEnum
from typing import Any, Literal, TypeVar

import msgspec

from modelyard.servers.lifeline import Unusable


class Duty(StrEnum):
    """What the process is to do."""

    EMBEDDING = "embedding"
    RERANK = "rerank"
    CHAT = "chat"


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of embedding and rerank models."""

    device: str | None = None
    """`cpu`, `cuda:0`, `mps` …; None takes the GPU that the process sees, else the host."""
    dtype: str | None = None
    """Numbers that the weights are loaded as; None takes those of the checkpoint."""
    attn_implementation: str | None = None
    max_memory: dict[str, str | int] | None = None
    """Most memory by device (`"0"`, `"cpu"`, `"disk"`), as accelerate takes it: what does not fit
    on the first goes to the next. Bytes, or a text such as `10GiB`."""
    offload_folder: str | None = None
    """Where weights go that fit nowhere else."""
    trust_remote_code: bool = False
    """Run Python code that lies in the model's folder."""
    max_seq_length: msgspec.UnsetType | int = msgspec.UNSET
    """Tokens of one input; unset takes the model's own limit."""
    overlong: Literal["error", "truncate"] = "error"
    """What becomes of an input that is longer, unless the request says."""
    normalize_embeddings: bool = False
    """Make vectors unit vectors, also those of models that do not do so themselves."""
    truncate_dim: int | None = None
    """Numbers of a vector; None takes the model's own."""
    prompts: dict[str, str] | None = None
    """More prompts, by name."""
    default_prompt_name: str | None = None
    chat_template: str | None = None
    """Jinja template of a reranker that is a language model."""
    max_batch_tokens: int = 16384
    """Tokens computed at once, padding counted."""
    batch_size: int = 64
    """Inputs computed at once."""
    max_queue: int = 4096
    """Inputs that have been taken on and not answered; a request beyond is turned away."""
    max_inputs: int = 2048
    """Inputs of one request."""
    max_body_bytes: int = 32 * 1024 * 1024
    threads: int | None = None
    """Processors to compute on; None takes all that the process may use."""
    model_kwargs: dict[str, Any] | None = None
    processor_kwargs: dict[str, Any] | None = None
    config_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.max_inputs > self.max_queue:
            raise ValueError(
                f"max_inputs ({self.max_inputs}) is more than max_queue ({self.max_queue}): "
                "no such request could ever be taken"
            )


_POSITIVE = (
    "max_seq_length", "truncate_dim", "max_batch_tokens", "batch_size", "max_queue", "max_inputs",
    "max_body_bytes", "threads",
)  # fmt: skip


class ChatSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of `transformers serve` (transformers 5.23, cli/serve.py), by its own names.

    None leaves its own default.
    """

    device: str | None = None
    dtype: str | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    compile: bool | None = None
    quantization: Literal["bnb-4bit", "bnb-8bit"] | None = None
    reasoning: Literal["on", "off", "auto"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continuous_batching: bool | None = None
    cb_block_size: int | None = None
    cb_num_blocks: int | None = None
    cb_max_batch_tokens: int | None = None
    cb_max_memory_percent: float | None = None
    cb_use_cuda_graph: bool | None = None
    default_seed: int | None = None
    max_body_bytes: int = 32 * 1024 * 1024
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, not {self.threads}")


AnySettings = TypeVar("AnySettings", Settings, ChatSettings)


def read_settings(kind: type[AnySettings], assignments: Iterable[str]) -> AnySettings:
    """`NAME=JSON` for each setting that is not to keep its default. Raises Unusable."""
    values: dict[str, Any] = {}
    for each in assignments:
        name, equals, text = each.partition("=")
        if not equals:
            raise Unusable(f"--set {each}: write NAME=JSON")
        if name not in kind.__struct_fields__:
            near = difflib.get_close_matches(name, kind.__struct_fields__, n=3)
            meant = f"; did you mean {' or '.join(near)}?" if near else ""
            raise Unusable(f"there is no option {name}{meant}")
        try:
            values[name] = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Unusable(f"--set {each}: the value is not JSON ({error})") from None
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise Unusable(f"an option is wrong: {error}") from None
