"""Options of vLLM by vLLM's own names: checked against a build, and written for its command line.

Laws of this file:
- A name may be written with dashes or underscores. It is right if the build has it; if another
  version had it, the answer says since when or until when, and what is written instead.
- What Modelyard decides (where the engine listens, what it is called, which model it serves) is
  refused here, with the place where it belongs.
- A value's kind is checked as far as the form of the option tells: what vLLM itself checks
  (numbers, choices) is left to it, and told when it refuses.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from typing import Final

from modelyard.core.specs import OptionValue
from modelyard.engines.vllm_builds import Build
from modelyard.engines.vllm_renamed import INSTEAD, REWRITES, CannotRewrite, Settings, rewritten
from modelyard.engines.vllm_table import RECORDED, Form, known, span, version_of

_BELONGS: Final = {
    "where the engine listens is chosen by Modelyard": (
        "host", "port", "uds", "root-path", "grpc", "grpc-port",
    ),
    "write `source` beside the options": ("model", "model-tag"),
    "the model's id and `aliases` are its names": ("served-model-name",),
    "Modelyard alone talks to the engine, over loopback; keys belong to `server`": (
        "api-key", "ssl-keyfile", "ssl-certfile", "ssl-ca-certs", "ssl-cert-reqs", "ssl-ciphers",
        "enable-ssl-refresh",
    ),
    "its options are written here, one by one": ("config",),
    "an engine without a server answers nobody": ("headless",),
    "the devices are the profile's": ("device-ids",),
    "write HF_TOKEN into the model's `env`": ("hf-token",),
}  # fmt: skip
_REFUSED: Final = {name: why for why, names in _BELONGS.items() for name in names}
_SHORT: Final = {
    "tp": "tensor-parallel-size",
    "pp": "pipeline-parallel-size",
    "dp": "data-parallel-size",
    "ep": "enable-expert-parallel",
    "q": "quantization",
    "O": "optimization-level",
    "cc": "compilation-config",
    "sc": "speculative-config",
    "ac": "attention-config",
}
"""vLLM's own short names."""
PARALLEL: Final = ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size")
"""What cards are shared out over; the first two can be filled in."""
_WORDS: Final = {True: "true", False: "false"}


class BadOption(Exception):
    """An option that cannot be used; the message is for the person who wrote it."""


def dashed(name: str) -> str:
    """The long name as vLLM's command line has it; a key of a JSON option stands behind a dot."""
    bare, dot, key = name.lstrip("-").partition(".")
    return _SHORT.get(bare, bare.replace("_", "-")) + dot + key


def laid_over(
    below: Mapping[str, OptionValue], above: Mapping[str, OptionValue]
) -> dict[str, OptionValue]:
    """`above` over `below`, also where one writes dashes and the other underscores."""
    replaced = {dashed(name) for name in above}
    kept = {name: value for name, value in below.items() if dashed(name) not in replaced}
    return {**kept, **above}


def parallel_sizes(meant: Mapping[str, OptionValue]) -> dict[str, int]:
    """Those of the sizes in `PARALLEL` that are given and are numbers above 0."""
    given = {name: meant.get(name) for name in PARALLEL}
    return {name: size for name, size in given.items() if isinstance(size, int) and size > 0}


def settings(options: Mapping[str, OptionValue], build: Build) -> Settings:
    """Options as this build names them; later ones win, and keys of one JSON option are joined.

    Options that cannot be used are left out: `problems` has told of them.
    """
    meant: Settings = {}
    # What `convert` is rewritten into for old versions says more than what `runner` is.
    for name, value in sorted(options.items(), key=lambda each: dashed(each[0]) != "runner"):
        try:
            found = _setting(name, value, build)
        except BadOption:
            continue
        for each, said in found.items():
            before = meant.get(each)
            both = isinstance(before, dict) and isinstance(said, dict)
            meant[each] = {**before, **said} if both else said  # type: ignore[dict-item]  # both are dicts
    return meant


def problems(options: Mapping[str, OptionValue], build: Build) -> Iterator[tuple[str, str]]:
    """Each option that cannot be used with this build, and why."""
    seen: dict[str, str] = {}
    for name, value in options.items():
        other = seen.setdefault(dashed(name), name)
        if other != name:
            yield name, f"it is the same option as {other}; keep one of them"
            continue
        try:
            _setting(name, value, build)
        except BadOption as error:
            yield name, str(error)


def arguments(meant: Settings, build: Build) -> Iterator[str]:
    """Settings as the command line has them, in their order."""
    forms = build.options
    for name, value in meant.items():
        if value is not None:
            yield from _argument(name, value, forms.get(name, Form.VALUE))


def _setting(name: str, value: OptionValue, build: Build) -> Settings:
    bare = dashed(name)
    if bare in _REFUSED:
        raise BadOption(f"it is not an option here: {_REFUSED[bare]}")
    forms = build.options
    if value is None:
        return {} if bare in forms or bare in REWRITES else _unknown(bare, build)
    try:
        found = rewritten(bare, value, forms)
    except CannotRewrite as error:
        raise BadOption(f"{_since_or_until(bare, build)}; {error.why}") from None
    if found is not None:
        return found
    option, dot, _ = bare.partition(".")
    if dot and forms.get(option) is Form.VALUE:
        return {bare: value}
    if bare not in forms:
        positive = bare.removeprefix("no-")
        if positive != bare and positive in forms:
            raise BadOption(f"write `{_underscored(positive)}: false`")
        return _unknown(bare, build)
    _check_value(bare, value, forms[bare])
    return {bare: value}


def _unknown(name: str, build: Build) -> Settings:
    """Always raises: the build has no such option."""
    said = _since_or_until(name, build)
    instead = INSTEAD.get(name)
    if span(name) is not None or instead:
        raise BadOption(f"{said}; {instead or 'remove it'}" if said else str(instead))
    names = {**known(()), **build.options}
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.7)
    meant = f"; did you mean {' or '.join(map(_underscored, near))}?" if near else ""
    raise BadOption(f"{build} has no such option{meant}")


def _since_or_until(name: str, build: Build) -> str:
    """Which versions have the option that this build lacks."""
    seen = span(name)
    if seen is None:
        return f"{build} has no such option"
    first, last = seen
    number = build.number or version_of(RECORDED[-1])
    if number < version_of(first):
        return f"{build} is too old for it: it came with {first} or shortly before"
    if last and number > version_of(last):
        return f"{build} has it no more: {last} was the last version recorded with it"
    return f"{build} has no such option, though {last or RECORDED[-1]} has"


def _check_value(name: str, value: OptionValue, form: Form) -> None:
    is_switch = form in (Form.SWITCH, Form.BOTH)
    if is_switch and not isinstance(value, bool):
        raise BadOption(f"it must be true or false, not {json.dumps(value)}")
    if form is Form.VALUE and isinstance(value, bool):
        raise BadOption(f"it takes a value, not {_WORDS[value]}")
    if name == "gpu-memory-utilization" and not _is_share(value):
        raise BadOption(f"it is a share of the card, more than 0 and at most 1, not {value}")


def _is_share(value: OptionValue) -> bool:
    return isinstance(value, int | float) and 0 < value <= 1


def _argument(name: str, value: OptionValue, form: Form) -> Iterator[str]:
    flag = f"--{name}"
    if form in (Form.SWITCH, Form.BOTH) and isinstance(value, bool):
        if value or form is Form.BOTH:
            yield flag if value else f"--no-{name}"
    elif form is Form.MAYBE and value is True:
        yield flag
    elif form is Form.LIST and isinstance(value, list):
        if value:
            yield flag
            yield from map(_text, value)
    elif form is Form.REPEATED and isinstance(value, list):
        yield from (f"{flag}={_text(item)}" for item in value)
    else:
        yield f"{flag}={_text(value)}"


def _text(value: OptionValue) -> str:
    """A value as one word: JSON for what is no single value."""
    if isinstance(value, bool):
        return _WORDS[value]
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def _underscored(name: str) -> str:
    return name.replace("-", "_")
