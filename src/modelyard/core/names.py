"""From the name in a request to the model it means.

Laws of this file:
- A name is an id, an alias, a variant of a model, or a virtual model, compared exactly. Ids win
  over the aliases and variants of other models, and all of them over virtual models.
- An unknown name is answered with the names that look like it, never with a guess.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from modelyard.core.errors import ModelNotFound
from modelyard.core.shaping import Shape, VirtualModel
from modelyard.core.specs import ModelSpec

NEAR_NAMES = 3
SIMILARITY = 0.5
"""Share of a name that has to agree, by difflib's ratio."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a name stands for."""

    spec: ModelSpec
    shape: Shape | None = None
    """What is changed in requests under this name; None for nothing."""
    is_engines: bool = True
    """Whether the model's engine knows the name, too."""


class Names:
    """Every name that requests may use."""

    def __init__(self, specs: Iterable[ModelSpec], virtuals: Iterable[VirtualModel] = ()) -> None:
        self.specs = specs = tuple(specs)
        """Every model, in the order in which they were declared and found."""
        self._by_name: dict[str, Meaning] = {}
        for spec in specs:
            for name, shape in spec.variants.items():
                over = shape if spec.shape is None else spec.shape.under(shape)
                self._by_name.setdefault(name, Meaning(spec, over, is_engines=False))
        for spec in specs:
            for alias in spec.aliases:
                self._by_name.setdefault(alias, Meaning(spec, spec.shape))
        self._by_name.update((spec.id, Meaning(spec, spec.shape)) for spec in specs)
        self.virtuals = {
            virtual.id: virtual for virtual in virtuals if virtual.id not in self._by_name
        }

    def resolve(self, name: str) -> ModelSpec:
        """The model that `name` means. Raises ModelNotFound with near names."""
        return self.meaning(name).spec

    def knows(self, name: str) -> bool:
        """Whether `name` means a single model."""
        return name in self._by_name

    def meaning(self, name: str) -> Meaning:
        """The model that `name` means, and how. Raises ModelNotFound with near names.

        A virtual model means no single one; `virtuals` has it.
        """
        found = self._by_name.get(name)
        if found is None:
            raise ModelNotFound(name[:200], self._near(name[:200]))
        return found

    def _near(self, name: str) -> list[str]:
        known = [*self._by_name, *self.virtuals]
        folded = {each.casefold(): each for each in known}
        close = get_close_matches(name.casefold(), folded, NEAR_NAMES, SIMILARITY)
        return [folded[match] for match in close]
