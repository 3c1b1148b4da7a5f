"""A model's `shape` and `variants`, and the virtual models: what is changed, and who is asked.

Laws of this file:
- A variant is a shape under a name of its own; `core.shaping` says how the two are joined.
- Targets are written as names, or as objects where they have a weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from modelyard.config.kinds import (
    Boolean,
    Kind,
    Name,
    Option,
    Text,
    listed,
    mapped,
    whole,
)
from modelyard.config.sections import Section
from modelyard.config.units import format_duration, parse_duration
from modelyard.config.values import KeyPath
from modelyard.config.wording import near_names, shorten
from modelyard.core.shaping import Choose, Range, Shape, Target, VirtualModel

OURS = frozenset({"model", "stream", "stream_options"})
"""Parameters that route a request; no shape may change them."""

Parameters = Annotated[dict[Name, Option], mapped]


def _read_range(value: object) -> Range:
    bounds = value
    if not isinstance(bounds, list) or len(bounds) != 2:
        raise ValueError("must be two numbers, [least, most]; null bounds nothing")
    for bound in bounds:
        if bound is not None and (isinstance(bound, bool) or not isinstance(bound, int | float)):
            raise ValueError("must be two numbers, [least, most]; null bounds nothing")
    least, most = bounds
    if least is not None and most is not None and least > most:
        raise ValueError(f"the least, {least}, is more than the most, {most}")
    return least, most


def _read_choose(value: object) -> Choose:
    known = [each.value for each in Choose]
    if value not in known:
        raise ValueError(f"must be one of {', '.join(known)}")
    return Choose(str(value))


Bounds = Annotated[
    Any, Kind(_read_range, {"type": "array", "items": {"type": ["number", "null"]}}, list)
]
ChooseName = Annotated[
    Choose, Kind(_read_choose, {"type": "string", "enum": [each.value for each in Choose]}, str)
]
Patience = Annotated[
    float | None,
    Kind(parse_duration, {"type": ["string", "number"]}, format_duration).or_none("never"),
]


class ShapeSection(Section):
    """What is changed in requests, in this order."""

    strip: Annotated[list[Name], listed(",")] = Field(
        [], description="Parameters that are taken out of every request."
    )
    default: Parameters = Field({}, description="Parameters for requests that do not have them.")
    set: Parameters = Field(
        {},
        description="Parameters for every request. An object is laid over the one that the "
        "request has.",
    )
    clamp: Annotated[dict[Name, Bounds], mapped] = Field(
        {}, description="Bounds of numbers, `temperature: [0, 1]`; null bounds nothing."
    )
    max_output_tokens: Annotated[int | None, whole(1, 2**31).or_none()] = Field(
        None, description="Most tokens of an answer, whatever the request says."
    )
    system: Text = Field(
        "", description="What the system prompt of every conversation begins with."
    )
    headers: Annotated[dict[Name, Text], mapped] = Field(
        {}, description="Header lines that the engine gets besides the client's."
    )
    timeout_s: Patience = Field(
        None,
        description="Longest time from a request's arrival to the end of its answer; `never` "
        "bounds nothing.",
    )

    def value(self) -> Shape | None:
        """The shape; None if it changes nothing."""
        shape = Shape(
            strip=frozenset(self.strip),
            default=MappingProxyType(self.default),
            set=MappingProxyType(self.set),
            clamp=MappingProxyType(self.clamp),
            max_output_tokens=self.max_output_tokens,
            system=self.system,
            headers=MappingProxyType({name.lower(): text for name, text in self.headers.items()}),
            timeout_s=self.timeout_s,
        )
        return shape if shape.changes_body or self.headers or self.timeout_s else None


def _read_target(value: object) -> object:
    return {"model": value} if isinstance(value, str) else value


class TargetSection(Section):
    model: Name = Field(description="Id, alias or variant of a model.")
    weight: Annotated[int, whole(0, 10_000)] = Field(
        1, description="Its share of the requests, where `choose` is `weighted`."
    )


Targets = Annotated[list[Annotated[TargetSection, BeforeValidator(_read_target)]], listed(",")]


class VirtualSection(Section):
    """A name that stands for one of several models."""

    targets: Targets = Field([], description="The models that it stands for, the best one first.")
    choose: ChooseName = Field(
        Choose.ORDERED,
        description="Which one is asked: the first (`ordered`), each by its weight (`weighted`), "
        "the first that is ready (`warm`), or the first that can answer at once (`spillover`).",
    )
    fallback: Boolean = Field(
        True, description="Ask the next one if one cannot answer and nothing has been answered yet."
    )
    modes: Annotated[dict[Name, Targets], mapped] = Field(
        {}, description="Other targets, by the name of the mode in which they hold."
    )

    def value(self, name: str) -> VirtualModel:
        return VirtualModel(
            name,
            _targets(self.targets),
            self.choose,
            self.fallback,
            MappingProxyType({mode: _targets(targets) for mode, targets in self.modes.items()}),
        )


def _targets(sections: list[TargetSection]) -> tuple[Target, ...]:
    return tuple(Target(section.model, section.weight) for section in sections)


def shape_problems(shape: ShapeSection) -> Iterator[tuple[KeyPath, str]]:
    """What is wrong with a shape, beyond each key by itself."""
    for key in ("strip", "default", "set", "clamp"):
        for name in sorted(OURS.intersection(getattr(shape, key))):
            yield (key,), f"{name!r} says where a request goes and cannot be changed"
    for name in shape.headers:
        if name.lower() in ("host", "content-length", "transfer-encoding", "connection"):
            yield ("headers", name), "is written by Modelyard itself"


def virtual_problems(
    virtuals: Mapping[str, VirtualSection], models: frozenset[str], *, finds_more: bool
) -> Iterator[tuple[KeyPath, str]]:
    """What is wrong with virtual models.

    `models` are all names that described models have; `finds_more` says that there can be others,
    in folders or at remotes. Those are looked for when the server runs, and told if they are not
    there.
    """
    for name, virtual in virtuals.items():
        if name in models:
            yield (name,), "is the name of a model already"
        lists = {("targets",): virtual.targets} | {
            ("modes", mode): targets for mode, targets in virtual.modes.items()
        }
        for below, targets in lists.items():
            if not targets:
                yield (name, *below), "names no model"
            elif virtual.choose is Choose.WEIGHTED and not any(each.weight for each in targets):
                yield (name, *below), "has no target with a weight"
            for at, target in enumerate(targets):
                if target.model in virtuals:
                    text = f"{target.model!r} is a virtual model; name models"
                    yield (name, *below, at), text
                elif target.model not in models and not finds_more:
                    near = near_names(target.model, sorted(models))
                    text = f"there is no model {shorten(target.model)}, and no models_dirs to find"
                    yield (name, *below, at), f"{text} it in{near}"


def written_shape(shape: Shape | None) -> dict[str, Any]:
    """A shape in the words of the file."""
    shape = shape or Shape()
    return {
        "strip": sorted(shape.strip),
        "default": dict(shape.default),
        "set": dict(shape.set),
        "clamp": {name: list(bounds) for name, bounds in shape.clamp.items()},
        "max_output_tokens": shape.max_output_tokens,
        "system": shape.system,
        "headers": dict(shape.headers),
        "timeout": "never" if shape.timeout_s is None else format_duration(shape.timeout_s),
    }


def written_virtual(virtual: VirtualModel) -> dict[str, Any]:
    """A virtual model in the words of the file."""
    return {
        "targets": _written_targets(virtual.targets),
        "choose": virtual.choose.value,
        "fallback": virtual.fallback,
        "modes": {mode: _written_targets(targets) for mode, targets in virtual.modes.items()},
    }


def _written_targets(targets: tuple[Target, ...]) -> list[dict[str, Any]]:
    return [{"model": target.model, "weight": target.weight} for target in targets]
