"""What is assigned to a model by command, as values that travel between command line and server.

Laws of this file:
- Standard library only: the command line uses it without anything that validates.
- `None` means "not given": an assignment adds to what is assigned already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modelyard.core.specs import OptionValue


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a person wants assigned. Which option of the engine each of these is, it knows."""

    devices: list[str] | None = None
    """Devices by words, index or id; an empty list takes the assigned ones back."""
    gpu_memory: float | None = None
    """Share of each GPU's memory, more than 0 and at most 1."""
    max_model_len: int | None = None
    """Longest sequence, in tokens."""
    tensor_parallel: int | None = None
    """Over how many GPUs each layer is spread."""
    dtype: str | None = None
    # Any is OptionValue, a recursive type, which not all that carries these values can express.
    options: dict[str, Any] = field(default_factory=dict)
    """Options by the engine's own names; null takes an assigned one back."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What is assigned to a model."""

    devices: tuple[str, ...] = ()
    options: Mapping[str, OptionValue] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.devices or self.options)

    def plus(self, devices: list[str] | None, options: Mapping[str, OptionValue]) -> Assignment:
        """This assignment, changed by another."""
        merged = {**self.options, **options}
        return Assignment(
            self.devices if devices is None else tuple(devices),
            {name: value for name, value in merged.items() if value is not None},
        )


@dataclass(frozen=True, slots=True)
class AssignmentView:
    """What is assigned to a model, and where it is written."""

    model: str
    devices: list[str]
    options: dict[str, Any]
    path: str | None
    """The configuration file; None if there is none."""
    changed: bool = False
    """Whether the file was written."""


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What reading the configuration anew has changed."""

    path: str | None
    added: list[str]
    changed: list[str]
    removed: list[str]
    needs_restart: list[str]
    """Sections whose changes count only after a restart of the server."""
