"""What is known of a program that serves models.

Laws of this file:
- Frozen data without behaviour.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from modelyard.engines.quirks import Quirks


class Spelling(Enum):
    """How a program's options are spelled; people may write dashes or underscores."""

    DASHES = "-"
    UNDERSCORES = "_"
    AS_WRITTEN = ""
    """The program mixes both, so nothing is changed."""


@dataclass(frozen=True, slots=True)
class Preset:
    """How one program is started and asked. In texts `{port}`, `{host}`, `{model}`, `{alias}` (the
    id) and `{names}` (id and aliases, separated by commas) are filled in."""

    name: str
    program: tuple[str, ...]
    """What comes before the arguments; a `command` of the user's without `{port}` replaces it."""
    arguments: tuple[str, ...] = ()
    filled: frozenset[str] = frozenset()
    """Options that Modelyard fills in, with underscores: a user cannot set them."""
    spelling: Spelling = Spelling.DASHES
    health_path: str = "/health"
    env: Mapping[str, str] = field(default_factory=dict)
    env_on_host: Mapping[str, str] = field(default_factory=dict)
    """Added where the model runs on the host alone."""
    env_on_gpu: Mapping[str, str] = field(default_factory=dict)
    task_arguments: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Added for models that serve this task."""
    sleep_arguments: tuple[str, ...] = ()
    """Added for models that are to sleep, unless the user has set the same options."""
    parallel_option: str = ""
    """The option that is set to the number of GPUs where there are several."""
    model_option: str = ""
    """An option that may stand in place of the model (parts of an image model, say)."""
    runs_in_model: bool = False
    """The model's `source` is a folder with the program, in which it is started."""
    quirks: Quirks | None = None
    assigns: Mapping[str, str] = field(default_factory=dict)
    """What `modelyard assign` sets: `gpu_memory`, `max_model_len`, `tensor_parallel` and `dtype` to
    the program's own option."""
