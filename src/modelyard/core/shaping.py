"""What a model changes about the requests to it, and virtual models: names that stand for others.

Laws of this file:
- Pure values and decisions. The bytes of a request are changed in `http/shaping.py`.
- A shape changes parameters in one order: strip, default, set, clamp; then the cap, then the
  system prompt. A variant's shape is laid over its model's: what both say, the variant says.
- A virtual model's targets are models, never other virtual models: there is nothing to go round in.
- `choose` never loads anything: it only says who is asked first and who is asked instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"

Range = tuple[float | None, float | None]
"""Least and most; None bounds nothing."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What is changed in a request. Names are those of OpenAI's parameters, or the engine's own."""

    strip: frozenset[str] = frozenset()
    """Parameters that are taken out."""
    default: Mapping[str, Json] = field(default_factory=dict)
    """Parameters for requests that do not have them."""
    set: Mapping[str, Json] = field(default_factory=dict)
    """Parameters for all requests. An object is laid over the one that the request has."""
    clamp: Mapping[str, Range] = field(default_factory=dict)
    """Bounds of numbers, for requests that have them."""
    max_output_tokens: int | None = None
    """Most tokens of an answer; requests that ask for more, or for nothing, get this bound."""
    system: str = ""
    """What every conversation's system prompt begins with."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Header lines that the engine gets besides the client's."""
    timeout_s: float | None = None
    """Longest time from the request's arrival to the end of its answer; None bounds nothing."""

    def under(self, other: Shape) -> Shape:
        """This shape with `other` laid over it."""
        return Shape(
            strip=self.strip | other.strip,
            default={**self.default, **other.default},
            set={**self.set, **other.set},
            clamp={**self.clamp, **other.clamp},
            max_output_tokens=other.max_output_tokens or self.max_output_tokens,
            system=other.system or self.system,
            headers={**self.headers, **other.headers},
            timeout_s=other.timeout_s or self.timeout_s,
        )

    def told(self) -> dict[str, Json]:
        """What is changed, for people: nothing that is not; header lines by their names alone,
        because their values may be secret."""
        parts: dict[str, Json] = {
            "strip": list[Json](sorted(self.strip)),
            "default": dict(self.default),
            "set": dict(self.set),
            "clamp": {name: list[Json](bounds) for name, bounds in self.clamp.items()},
            "max_output_tokens": self.max_output_tokens,
            "system": self.system,
            "headers": list[Json](sorted(self.headers)),
            "timeout_s": self.timeout_s,
        }
        return {name: part for name, part in parts.items() if part}

    @property
    def changes_body(self) -> bool:
        """Whether it changes more than header lines and times."""
        return bool(
            self.strip
            or self.default
            or self.set
            or self.clamp
            or self.max_output_tokens
            or self.system
        )


class Choose(StrEnum):
    """Which target of a virtual model is asked first."""

    ORDERED = "ordered"
    """The first one."""
    WEIGHTED = "weighted"
    """Each in turn, as often as its weight says: a canary gets its share."""
    WARM = "warm"
    """The first that is ready; the first one if none is."""
    SPILLOVER = "spillover"
    """The first that can answer at once; the first one if none can."""


@dataclass(frozen=True, slots=True)
class Target:
    """One model behind a virtual one."""

    model: str
    """Id, alias or variant of a model."""
    weight: int = 1


@dataclass(frozen=True, slots=True)
class VirtualModel:
    """A name that stands for one of several models."""

    id: str
    targets: tuple[Target, ...]
    choose: Choose = Choose.ORDERED
    fallback: bool = True
    """Whether the next target is asked when one cannot answer."""
    modes: Mapping[str, tuple[Target, ...]] = field(default_factory=dict)
    """Other targets, by the name of the mode in which they hold."""

    def targets_in(self, mode: str) -> tuple[Target, ...]:
        """The targets that hold in a mode; the usual ones where it says nothing."""
        return self.modes.get(mode, self.targets)


@dataclass(frozen=True, slots=True)
class Standing:
    """What `choose` wants to know of a target."""

    is_ready: bool
    """Whether a replica of it is ready."""
    has_room: bool
    """Whether it would serve a request at once."""


class Turns:
    """Whose turn it is among weighted targets: spread out, and exact over each round of turns.

    Smooth weighted round robin, as nginx does it (nginx commit 52327e0627f4): each target gains its
    weight, the richest is chosen and pays the sum of the weights.
    """

    def __init__(self) -> None:
        self._credit: dict[tuple[str, str], int] = {}

    def next(self, virtual: str, targets: Sequence[Target]) -> int:
        """The place of the target whose turn it is. Targets without weight have none."""
        total = sum(target.weight for target in targets)
        credit = self._credit
        for target in targets:
            key = (virtual, target.model)
            credit[key] = credit.get(key, 0) + target.weight
        best = max(range(len(targets)), key=lambda at: (credit[virtual, targets[at].model], -at))
        credit[virtual, targets[best].model] -= total
        return best


def choose(
    virtual: VirtualModel,
    mode: str,
    turns: Turns,
    standing: Callable[[str], Standing],
) -> list[str]:
    """The models to ask, in this order: the first one, and who is asked instead of it."""
    targets = virtual.targets_in(mode)
    first = 0
    if virtual.choose is Choose.WEIGHTED:
        first = turns.next(virtual.id, targets)
    elif virtual.choose is not Choose.ORDERED:
        wants_room = virtual.choose is Choose.SPILLOVER
        for at, target in enumerate(targets):
            now = standing(target.model)
            if now.has_room if wants_room else now.is_ready:
                first = at
                break
    order = [targets[first], *targets[:first], *targets[first + 1 :]]
    return [target.model for target in (order if virtual.fallback else order[:1])]
