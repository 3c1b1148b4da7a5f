"""What switches cost, by the kind of engine.

Laws of this file:
- The figures are fits to published measurements: vLLM's sleep levels (its blog's data, A100 and
  A4000), vLLM's start with a warm compile cache, llama.cpp from the page cache.
- `L1` and `L2` come in two forms. `anywhere` treats a wake like a start that costs as little: any
  device will do, as if every card held a sleeper. `home` has real sleepers, which wake where they
  fell asleep. `tiers` are engines as they are: cold starts, and both levels to sleep at.
"""

from __future__ import annotations

from modelyard.simulation.values import Costs, Switch

KINDS = ("L1", "L2", "cold", "gguf", "tiers")
WAKES = ("anywhere", "home")
_LEVELS = {"L1": 1, "L2": 2}


def switch(kind: str, weights_gib: float) -> Switch:
    """One way to come and go, for a model of this size. `kind` is none of the mixed ones."""
    size = weights_gib
    match kind:
        case "L1":
            return Switch(0.4 + size / 20, 0.1 + size / 22)
        case "L2":
            return Switch(0.6 + size / 4.5, 0.3)
        case "cold":
            return Switch(35 + size / 2.5, 3.0)
        case "gguf":
            return Switch(1.5 + size / 6, 0.5)
    raise ValueError(f"{kind!r} is not a kind of costs; there are {', '.join(KINDS)}")


def costs_of(kind: str, weights_gib: float, wake: str = "anywhere") -> Costs:
    """The costs of a model of this size. Raises ValueError for a kind that does not exist."""
    if kind == "tiers":
        levels = {level: switch(name, weights_gib) for name, level in _LEVELS.items()}
        return Costs(switch("cold", weights_gib), levels)
    both = switch(kind, weights_gib)
    if kind in _LEVELS and wake == "home":
        return Costs(both, {_LEVELS[kind]: both})
    return Costs(both)
