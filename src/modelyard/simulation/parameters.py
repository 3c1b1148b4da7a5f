"""`scheduling.key=value` into the scheduler's parameters.

Laws of this file:
- The configuration's own checks decide what a key may hold, so that what is tried here can be
  written there.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from modelyard.config.load import load
from modelyard.config.tree import EnvText
from modelyard.core.errors import ConfigError
from modelyard.core.policy import Policy

SECTION = "scheduling."


def parameters(assignments: Iterable[str], config: Path | None = None) -> Policy:
    """The parameters of a configuration (None: the defaults), with these set.

    `fair_after=10s` and `scheduling.fair_after=10s` are the same.
    Raises ConfigError with every assignment that is wrong.
    """
    overrides, problems = {}, []
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            problems.append(f"{text!r} is not an assignment; write it like {SECTION}fair_after=10s")
            continue
        overrides[SECTION + key.strip().removeprefix(SECTION)] = EnvText(value.strip())
    if problems:
        raise ConfigError("--set", problems)
    return load(config, env={}, overrides=overrides).scheduling
