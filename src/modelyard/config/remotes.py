"""The section `remotes`: other people's endpoints whose models are served without being written
down one by one.

Laws of this file:
- A model of a remote is called `PREFIX/NAME`, so that it stands apart from those of this machine.
- Which models there are is written here or asked of the endpoint; where it is written, nobody is
  asked.
- No message repeats a key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import Field

from modelyard.config.kinds import (
    MAX_NAME,
    DurationOrNever,
    Kind,
    TaskName,
    listed,
    read_name,
)
from modelyard.config.remote import EndpointSection, written_endpoint
from modelyard.config.units import format_duration
from modelyard.config.values import KeyPath, RemoteEndpoint
from modelyard.config.wording import describe_kind
from modelyard.core.specs import Task

MAX_REMOTES = 100
MAX_WRITTEN = 2000
"""Models of one remote that can be written down."""
_ENDPOINT = RemoteEndpoint("")


def _read_models(value: object) -> dict[str, str] | None:
    if value == "auto":
        return None
    if isinstance(value, list | tuple):
        value = {read_name(each): each for each in value}
    if not isinstance(value, dict):
        raise ValueError(
            f"must be auto, a list of the endpoint's names, or what they are called here "
            f"(name: theirs), not {describe_kind(value)}"
        )
    if not value:
        raise ValueError("names no model; write auto to have the endpoint asked")
    if len(value) > MAX_WRITTEN:
        raise ValueError(f"has {len(value)} models; there can be at most {MAX_WRITTEN}")
    return {read_name(name): read_name(theirs) for name, theirs in value.items()}


def _read_prefix(value: object) -> str:
    return "" if value == "" else read_name(value)


_MODELS = {
    "anyOf": [
        {"const": "auto"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        {"type": "object", "additionalProperties": {"type": "string"}, "minProperties": 1},
    ]
}
Models = Annotated[
    dict[str, str] | None,
    Kind(_read_models, _MODELS, lambda models: "auto" if models is None else models),
]
Prefix = Annotated[
    str | None, Kind(_read_prefix, {"type": "string", "maxLength": MAX_NAME}).or_none()
]


class RemoteSection(EndpointSection):
    """One endpoint whose models are served."""

    models: Models = Field(
        None,
        description="Which of its models are served: `auto` for those that it lists, a list of "
        "names, or what each is called here (`name: theirs`).",
    )
    prefix: Prefix = Field(
        None,
        description="What stands before the names of its models, with a `/` between; empty for "
        "nothing. Default: the remote's name.",
    )
    tasks: Annotated[list[TaskName], listed(",")] = Field(
        [],
        description="What its models can be asked to do. Default: what the endpoint says of each, "
        "else what its name tells, else chat and completion.",
    )
    refresh_s: DurationOrNever = Field(
        _ENDPOINT.refresh_s,
        description="How often the endpoint is asked for its models; `never` asks once, at the "
        "start.",
    )


def remotes_of(
    remotes: Mapping[str, RemoteSection], resolve: Callable[[Path, KeyPath], Path]
) -> tuple[RemoteEndpoint, ...]:
    """The remotes as the rest of the program knows them; `resolve` makes paths absolute."""
    return tuple(
        RemoteEndpoint(
            name,
            section.value(
                resolve(section.ca_file, ("remotes", name, "ca_file")) if section.ca_file else None
            ),
            models=None if section.models is None else MappingProxyType(section.models),
            prefix=name if section.prefix is None else section.prefix,
            tasks=frozenset(section.tasks),
            refresh_s=section.refresh_s,
        )
        for name, section in remotes.items()
    )


def remotes_problems(remotes: Mapping[str, RemoteSection]) -> Iterator[tuple[KeyPath, str]]:
    """What is wrong with the remotes taken together."""
    if len(remotes) > MAX_REMOTES:
        yield (), f"has {len(remotes)} endpoints; there can be at most {MAX_REMOTES}"


def written_endpoints(remotes: tuple[RemoteEndpoint, ...]) -> dict[str, Any]:
    """The remotes in the words of the file, without their keys."""
    return {
        each.name: {
            **written_endpoint(each.upstream),
            "models": "auto" if each.models is None else dict(each.models),
            "prefix": each.prefix,
            "tasks": [task.value for task in Task if task in each.tasks],
            "refresh": "never" if each.refresh_s is None else format_duration(each.refresh_s),
        }
        for each in remotes
    }
