"""From the name in a request to the model it means.

Laws of this file:
- A name is an id or an alias, compared exactly; ids win over aliases of other models.
- An unknown name is answered with the names that look like it, never with a guess.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from modelyard.core.errors import ModelNotFound
from modelyard.core.specs import ModelSpec

NEAR_NAMES = 3
SIMILARITY = 0.5
"""Share of a name that has to agree, by difflib's ratio."""


class Names:
    """Every name that requests may use."""

    def __init__(self, specs: Iterable[ModelSpec]) -> None:
        specs = tuple(specs)
        self._by_name: dict[str, ModelSpec] = {}
        for spec in specs:
            for alias in spec.aliases:
                self._by_name.setdefault(alias, spec)
        self._by_name.update((spec.id, spec) for spec in specs)

    def resolve(self, name: str) -> ModelSpec:
        """The model that `name` means. Raises ModelNotFound with near names."""
        spec = self._by_name.get(name)
        if spec is None:
            raise ModelNotFound(name[:200], self._near(name[:200]))
        return spec

    def _near(self, name: str) -> list[str]:
        folded = {known.casefold(): known for known in self._by_name}
        close = get_close_matches(name.casefold(), folded, NEAR_NAMES, SIMILARITY)
        return [folded[match] for match in close]
