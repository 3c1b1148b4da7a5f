"""Which texts of a configuration nobody may see, wherever they turn up.

Laws of this file:
- What is named like a secret is one; a value that is too short to be one would hide half of
  everything else, and counts as none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from modelyard.config.publish import SECRET_NAME
from modelyard.config.values import Config
from modelyard.core.errors import ModelyardError
from modelyard.core.specs import ModelSpec, RemoteUpstream

SHORTEST: Final = 8
"""Characters of the shortest text that is taken for a secret."""


def secrets_of(config: Config, reveal: Callable[[str], str]) -> frozenset[str]:
    """The secrets that `config` holds. `reveal` reads a key that was encrypted for this machine;
    what it cannot read is no secret that could turn up. It may read the disk."""
    found = [config.downloads.token, config.downloads.modelscope_token]
    for spec in config.models:
        found += _of_model(spec)
    upstreams: list[RemoteUpstream] = [remote.upstream for remote in config.remotes]
    for spec in config.models:
        upstreams += spec.remote.upstreams
    for upstream in upstreams:
        try:
            found.append(reveal(upstream.key))
        except ModelyardError:
            continue
    return frozenset(text for text in found if text is not None and len(text) >= SHORTEST)


def _of_model(spec: ModelSpec) -> Iterator[str]:
    yield from _named_so(spec.env)
    yield from _named_so(spec.options)
    yield from _given_so(spec.command)
    for shape in (spec.shape, *spec.variants.values()):
        if shape is not None:
            yield from _named_so(shape.headers)
    for profile in spec.profiles:
        yield from _named_so(profile.options)
        yield from _given_so(profile.command)


def _named_so(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _named_so(value)
        elif isinstance(value, str) and SECRET_NAME.search(name):
            yield value


def _given_so(command: Sequence[str]) -> Iterator[str]:
    """What follows options like `--api-key`."""
    for at, argument in enumerate(command):
        name, equals, value = argument.partition("=")
        if name.startswith("-") and SECRET_NAME.search(name):
            if equals:
                yield value
            elif at + 1 < len(command):
                yield command[at + 1]
