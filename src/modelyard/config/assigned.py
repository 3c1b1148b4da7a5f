"""A model's `assigned`: what `modelyard assign` has written into the file.

Laws of this file:
- It stands beside what a person wrote and changes none of it, so that taking it back is leaving
  it out.
- Devices replace all profiles by one, named `assigned`; options are laid over the model's and
  those of every profile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated

from pydantic import Field

from modelyard.config.kinds import Name, Option, listed, mapped
from modelyard.config.sections import Section
from modelyard.core.specs import ModelSpec, OptionValue, Profile

PROFILE = "assigned"


class AssignedSection(Section):
    """Devices and options that a person assigned by command."""

    devices: Annotated[list[Name], listed(",")] = Field(
        [],
        description="Devices to run on, in place of all profiles. Default: those of the profiles.",
    )
    options: Annotated[dict[Name, Option], mapped] = Field(
        {}, description="Laid over the `options` of the model and of its profiles, key by key."
    )


def assigned(spec: ModelSpec, devices: list[str], options: Mapping[str, OptionValue]) -> ModelSpec:
    """`spec` with what was assigned to it."""
    profiles = spec.profiles
    if devices:
        first = profiles[0]
        profiles = (
            Profile(PROFILE, tuple(devices), _memory(first, devices), first.options, first.command),
        )
    return replace(
        spec,
        options=MappingProxyType({**spec.options, **options}),
        profiles=tuple(replace(each, options=_laid_over(each, options)) for each in profiles),
    )


def _memory(profile: Profile, devices: list[str]) -> Mapping[str, int]:
    """What was declared for the profile's devices, place by place; nothing for another number."""
    if len(profile.devices) != len(devices) or len(set(devices)) != len(devices):
        return MappingProxyType({})
    return MappingProxyType(
        {
            device: profile.memory_mib[before]
            for before, device in zip(profile.devices, devices, strict=True)
            if before in profile.memory_mib
        }
    )


def _laid_over(profile: Profile, options: Mapping[str, OptionValue]) -> Mapping[str, OptionValue]:
    """The profile's own options, where nothing else was assigned."""
    kept = {name: value for name, value in profile.options.items() if name not in options}
    return MappingProxyType(kept)
