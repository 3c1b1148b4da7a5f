"""Makes sure that what an importer wrote is a configuration, with every engine's consent.

Laws of this file:
- The text is loaded by `modelyard.config.load`, as `modelyard config check` loads it.
- A model that is refused is set aside as a comment with the reason; the rest stays usable.
- Variables that the text refers to may be set later, so here they count as set.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from modelyard.config import Config, load
from modelyard.core.errors import ConfigError
from modelyard.importers.draft import Draft, ModelDraft
from modelyard.importers.yaml_text import render

EngineProblems = Callable[[Config], Sequence[str]]
"""What the engines find wrong with the models of a configuration."""
REFERENCE = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")
_STAND_IN = "0"


def problems(text: str, engines: EngineProblems) -> list[str]:
    """What is wrong with the configuration `text`; nothing if it is fine."""
    with tempfile.TemporaryDirectory(prefix="modelyard-import-") as folder:
        path = Path(folder) / "modelyard.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            return list(engines(load(path, env=_variables(text))))
        except ConfigError as error:
            return list(error.problems)


def set_aside(draft: Draft, engines: EngineProblems) -> list[ModelDraft]:
    """Set aside every model that alone is refused; returns those."""
    if not problems(render(draft, ()), engines):
        return []
    refused = []
    for model in draft.models:
        if model.aside:
            continue
        found = problems(render(Draft(models=[model]), ()), engines)
        if found:
            model.aside = "; ".join(found[:3])
            refused.append(model)
    return refused


def _variables(text: str) -> Mapping[str, str]:
    return dict.fromkeys(REFERENCE.findall(text), _STAND_IN)
