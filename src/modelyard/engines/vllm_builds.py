"""One installed vLLM: how it is started, which version it is, and what it can do.

Laws of this file:
- A `Build` is what somebody else has found out (`runtime.vllm_lookup`); nothing is looked up here.
- What a build says of itself wins over what is recorded of its version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from modelyard.core.specs import SleepLevel
from modelyard.engines import sleeping
from modelyard.engines.vllm_table import RECORDED, Form, Forms, Version, known, version_of

MODULE: Final = "vllm.entrypoints.openai.api_server"
"""What `python -m` starts where there is no `vllm` script that works."""


@dataclass(frozen=True, slots=True)
class Build:
    """A vLLM that can be started, or the reason why there is none."""

    launch: tuple[str, ...] = ()
    """The program and its words before the model: `(/opt/v/bin/vllm, serve)`, or a module of a
    Python. Empty if none was found."""
    version: str = ""
    """As its distribution says, `0.32.0`; empty if it does not tell."""
    platform: str = ""
    """`cuda`, `rocm`, `xpu` or `cpu`: what it was built for; empty if that is not known."""
    told: Mapping[str, Form] = field(default_factory=lambda: MappingProxyType({}))
    """The options it printed; empty if it was not asked, or did not answer in time."""
    trouble: str = ""
    """Why it cannot be started."""

    @property
    def options(self) -> Forms:
        """Its options: what it says, else what is recorded of its version."""
        return self.told or known(self.number)

    @property
    def number(self) -> Version:
        return version_of(self.version)

    @property
    def is_module(self) -> bool:
        """Whether the model is an option, `--model`, and not the first word."""
        return "-m" in self.launch

    @property
    def is_cpu(self) -> bool:
        return self.platform == "cpu"

    @property
    def sleep_levels(self) -> Mapping[int, SleepLevel]:
        """The levels at which it can sleep on a GPU."""
        return sleeping.vllm_levels(self.number, self.platform)

    def __str__(self) -> str:
        return f"vLLM {self.version or f'as of {RECORDED[-1]}'}"
